//! Moving bytes: ranges of a staging file, and the parts of an upload.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::join_all;

use super::draft::{Claim, Draft, PartState, Snapshot, UploadId};
use super::gates::DirGates;
use super::pace::Slot;
use super::{WriteError, Writer, new_nonce};
use crate::model::blocks::BLOCK;
use crate::origin::{OriginError, Part, UploadBody, retry};

/// Ranges up to this size are read into memory; larger ones go out of the staging file, so that an
/// upload takes no share of the readers' memory.
const MEMORY_MAX: u64 = 1 << 20;
/// How often a range that changes while it is sent is sent from where it is; then from a copy.
const LIVE_TRIES: u32 = 2;
/// How often an abort is repeated until the upload is gone: parts under way may land after it, and
/// there are servers (MinIO) that never say that it is gone.
const ABORTS_MAX: u32 = 3;

impl Writer {
    /// Sends parts that the writer has passed, in the background. Failures show at close.
    pub fn send_passed(self: &Arc<Self>, draft: &Arc<Draft>, parts: Vec<u32>) {
        if parts.is_empty() {
            return;
        }
        let (writer, draft) = (self.clone(), draft.clone());
        self.runtime.spawn(async move { writer.pass(&draft, parts).await });
    }

    /// Sends parts that the writer has passed, unless a commit has begun to choose them.
    pub(super) async fn pass(&self, draft: &Draft, parts: Vec<u32>) {
        let upload = {
            let (dir, _) = draft.node.place();
            let _dirs = DirGates::wait(&[&dir], None).await;
            let _gate = draft.gate.lock().await;
            if draft.phase() != super::draft::Phase::Writing {
                return;
            }
            match self.ensure_upload(draft).await {
                Ok(upload) => upload,
                Err(error) => {
                    tracing::debug!(%error, "upload not begun yet");
                    return;
                }
            }
        };
        let sends = parts.into_iter().map(|part| self.send_passed_part(draft, &upload, part));
        for sent in join_all(sends).await {
            if let Err(error) = sent {
                tracing::debug!(%error, "part not sent yet");
            }
        }
    }

    async fn send_passed_part(
        &self,
        draft: &Draft,
        upload: &UploadId,
        part: u32,
    ) -> Result<(), WriteError> {
        let slot = self.pace.slot().await;
        match draft.claim_passed(part) {
            Some(of) => self.send_part(draft, upload, part, of, slot).await,
            None => Ok(()),
        }
    }

    /// The upload under way, begun if there is none. The gate is held.
    pub(super) async fn ensure_upload(&self, draft: &Draft) -> Result<UploadId, WriteError> {
        let key = draft.key();
        if let Some(upload) = draft.upload() {
            if upload.key == key {
                return Ok(upload);
            }
            // Begun under a name that the file no longer has: of no use for the new one.
            self.abandon(draft).await;
        }
        self.abandon_begun(draft).await;
        draft.beginning_upload(&key)?;
        let writer = new_nonce();
        let id = self.names.origin.create_upload(&key, &writer).await?;
        let upload = UploadId { key, id, writer };
        draft.begin_upload(upload.clone());
        Ok(upload)
    }

    /// Sends what is missing, until every part of the snapshot is stored.
    pub(super) async fn all_parts(
        &self,
        draft: &Draft,
        upload: &UploadId,
        snapshot: &Snapshot,
    ) -> Result<Vec<Part>, WriteError> {
        // What the writer had passed before is under way, and ends by itself.
        draft.until_sent().await;
        let missing = match draft.whole(&snapshot.parts) {
            Ok(parts) => return Ok(parts),
            Err(missing) => missing,
        };
        let sends = missing.into_iter().map(|part| async move {
            let slot = self.pace.slot().await;
            let len = snapshot.parts[part as usize - 1].len;
            match draft.claim(part, len) {
                Some(of) => self.send_part(draft, upload, part, of, slot).await,
                None => Ok(()),
            }
        });
        for sent in join_all(sends).await {
            sent?;
        }
        draft.whole(&snapshot.parts).map_err(|_| OriginError::NoSuchUpload.into())
    }

    async fn send_part(
        &self,
        draft: &Draft,
        upload: &UploadId,
        part: u32,
        of: PartState,
        slot: Slot<'_>,
    ) -> Result<(), WriteError> {
        let claim = Claim::new(draft, upload, part, of);
        let origin = &self.names.origin;
        let send = |body| origin.upload_part(&upload.key, &upload.id, part, body);
        let done = self.send_range(draft, part, of, send).await?;
        slot.done(of.len);
        claim.done(done);
        draft.leave_page_cache(self.plan.range(part).start, of.len);
        Ok(())
    }

    /// Sends a part's range by `send`, again while that may help. A range that changes under the
    /// request is sent again, and in the end from a copy that nobody changes.
    pub(super) async fn send_range<T, F>(
        &self,
        draft: &Draft,
        part: u32,
        of: PartState,
        send: impl Fn(UploadBody) -> F,
    ) -> Result<T, WriteError>
    where
        F: Future<Output = Result<T, OriginError>>,
    {
        let offset = self.plan.range(part).start;
        let (mut tries, mut changes) = (0, 0);
        loop {
            let frozen = changes >= LIVE_TRIES;
            let read = || read_range(draft, offset, of.len, frozen);
            let (body, sums) = tokio::task::block_in_place(read)?;
            draft.set_sums(part, of, sums);
            let error = match send(body).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let changed = draft.changed_since(part, of);
            if changed && !frozen {
                changes += 1;
                continue;
            }
            tries += 1;
            if !retry::upload_again(&error, tries) {
                return Err(error.into());
            }
            tokio::time::sleep(retry::backoff(tries)).await;
        }
    }

    /// Gives up the upload under way. What cannot be aborted now stays in the file's record.
    pub(super) async fn abandon(&self, draft: &Draft) {
        self.abandon_begun(draft).await;
        // It stays known until it is gone: who is dropped here leaves it to the next one.
        let Some(upload) = draft.upload() else { return };
        let gone = self.abort(&upload.key, &upload.id).await;
        draft.take_upload();
        match gone {
            true => draft.upload_ended(),
            false => draft.upload_stays(),
        }
    }

    /// Aborts what was begun by a request whose answer was lost.
    async fn abandon_begun(&self, draft: &Draft) {
        let Some((key, since)) = draft.begins() else { return };
        if !self.abort_begun(&key, since).await {
            draft.upload_stays();
        }
        draft.forget_begins();
    }

    /// Aborts an upload, again until it is gone; says whether it is.
    pub(super) async fn abort(&self, key: &str, id: &str) -> bool {
        for tries in 1..=ABORTS_MAX {
            match self.names.origin.abort_upload(key, id).await {
                Err(OriginError::NoSuchUpload | OriginError::NotFound) => return true,
                // Parts that were under way may have landed after it.
                Ok(()) => {}
                Err(error) if error.is_transient() => {
                    tokio::time::sleep(retry::backoff(tries)).await
                }
                Err(error) => {
                    tracing::warn!(key, %error, "upload not aborted; the next mount will");
                    return false;
                }
            }
        }
        true
    }

    /// Aborts uploads of a key that were begun since, by a process that never learnt their ids.
    pub(super) async fn abort_begun(&self, key: &str, since: SystemTime) -> bool {
        let pending = match self.names.origin.list_uploads(key).await {
            Ok(pending) => pending,
            Err(error) => {
                tracing::warn!(key, %error, "uploads of an earlier run are not known yet");
                return false;
            }
        };
        // S3 tells whole seconds, and its clock is another one.
        let since = since - Duration::from_secs(5);
        let mut gone = true;
        for upload in pending.into_iter().filter(|upload| upload.begun >= since) {
            gone &= self.abort(key, &upload.id).await;
        }
        gone
    }
}

/// A range of the staging file as a body, and the checksums of its blocks.
fn read_range(
    draft: &Draft,
    offset: u64,
    len: u64,
    frozen: bool,
) -> io::Result<(UploadBody, Vec<u32>)> {
    if len <= MEMORY_MAX {
        let mut bytes = vec![0; len as usize];
        draft.file().read_exact_at(&mut bytes, offset)?;
        let sums: Vec<u32> = bytes.chunks(BLOCK as usize).map(crc32c::crc32c).collect();
        let crc32c = combined(&sums, len);
        return Ok((UploadBody::Memory { bytes: Bytes::from(bytes), crc32c }, sums));
    }
    let (file, offset) = match frozen {
        true => (Arc::new(copy_of(draft, offset, len)?), 0),
        false => (draft.file().clone(), offset),
    };
    let (crc32c, sums) = file_sums(&file, offset, len)?;
    Ok((UploadBody::File { file, offset, len, crc32c }, sums))
}

/// A nameless copy of a range.
fn copy_of(draft: &Draft, mut offset: u64, mut len: u64) -> io::Result<File> {
    let path = draft.path().with_extension("frozen");
    let mut options = File::options();
    let copy = options.read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    let mut at = 0;
    while len > 0 {
        let step = usize::try_from(len.min(1 << 30)).unwrap_or(usize::MAX);
        let (mut from, mut to) = (offset, at);
        let copied =
            rustix::fs::copy_file_range(draft.file(), Some(&mut from), &copy, Some(&mut to), step)?;
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (offset, at, len) = (from, to, len - copied as u64);
    }
    Ok(copy)
}

/// CRC32C of `len` bytes, from those of their blocks.
fn combined(sums: &[u32], len: u64) -> u32 {
    let block = |at: u64| (len - at).min(BLOCK) as usize;
    let pairs = sums.iter().zip((0..len).step_by(BLOCK as usize));
    pairs.fold(0, |crc, (sum, at)| crc32c::crc32c_combine(crc, *sum, block(at)))
}

/// CRC32C of a range of a file, and of each of its blocks.
fn file_sums(file: &File, offset: u64, len: u64) -> io::Result<(u32, Vec<u32>)> {
    let mut buffer = vec![0; BLOCK as usize];
    let (mut sums, mut at) = (Vec::new(), 0);
    while at < len {
        let take = (len - at).min(BLOCK) as usize;
        let piece = &mut buffer[..take];
        file.read_exact_at(piece, offset + at)?;
        sums.push(crc32c::crc32c(piece));
        at += take as u64;
    }
    Ok((combined(&sums, len), sums))
}
