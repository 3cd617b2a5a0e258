//! Moving bytes: ranges of a staging file, and the parts of an upload.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;

use super::draft::{Claim, Draft, PartState, Snapshot, UploadId, by_block};
use super::gates::DirGates;
use super::layout::Layout;
use super::pace::Slot;
use super::{WriteError, Writer, new_nonce};
use crate::model::blocks::BLOCK;
use crate::model::crc;
use crate::origin::{CopySource, OriginError, Part, PartKind, UploadBody, retry};
use crate::page_cache::{self, Chunk};

/// Ranges up to this size are read into memory; larger ones go out of the staging file, so that an
/// upload takes no share of the readers' memory.
const MEMORY_MAX: u64 = 1 << 20;
/// How often a range that changes while it is sent is sent from where it is; then from a copy.
const LIVE_TRIES: u32 = 2;
/// What the name of a copy of a range ends with: for a moment it has one.
pub(super) const FROZEN: &str = "frozen";
/// How often an abort is repeated until the upload is gone: parts under way may land after it, and
/// there are servers (MinIO) that never say that it is gone.
const ABORTS_MAX: u32 = 3;

impl Writer {
    /// Sends parts that the writer has passed, in the background. Failures show at close.
    pub fn send_passed(self: &Arc<Self>, draft: &Arc<Draft>, parts: Vec<Range<u64>>) {
        if parts.is_empty() {
            return;
        }
        let (writer, draft) = (self.clone(), draft.clone());
        self.runtime.spawn(async move { writer.pass(&draft, parts).await });
    }

    /// Sends parts that the writer has passed, unless a commit has begun to choose them.
    pub(super) async fn pass(&self, draft: &Draft, parts: Vec<Range<u64>>) {
        let upload = {
            let (dir, _) = draft.node.place();
            let _dirs = DirGates::wait(&[&dir], None).await;
            let _gate = draft.gate.lock().await;
            if draft.phase() != super::draft::Phase::Writing {
                return;
            }
            let layout = draft.layout(None, self.copies_work());
            match self.ensure_upload(draft, layout).await {
                Ok(upload) => upload,
                Err(error) => {
                    tracing::debug!(%error, "upload not begun yet");
                    return;
                }
            }
        };
        let sends = parts.into_iter().map(|part| self.send_passed_part(draft, &upload, part));
        let seen = draft.seen();
        let ahead = self.names.origin.expect_completion(&seen);
        let (sent, ()) = tokio::join!(join_all(sends), ahead);
        for sent in sent {
            if let Err(error) = sent {
                tracing::debug!(%error, "part not sent yet");
            }
        }
    }

    async fn send_passed_part(
        &self,
        draft: &Draft,
        upload: &UploadId,
        range: Range<u64>,
    ) -> Result<(), WriteError> {
        let slot = self.pace.slot().await;
        match draft.claim_passed(range) {
            Some((part, of)) => self.send_part(draft, upload, part, of, slot).await,
            None => Ok(()),
        }
    }

    /// The upload under way, begun if there is none. The gate is held.
    pub(super) async fn ensure_upload(
        &self,
        draft: &Draft,
        layout: Layout,
    ) -> Result<UploadId, WriteError> {
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
        let parts = match layout.has_copies() {
            true => PartKind::Mixed,
            false => PartKind::Sent,
        };
        let live = self.live.ask(&key);
        let id = self.names.origin.create_upload(&key, &writer, parts).await?;
        let upload = UploadId { key, id, writer };
        draft.begin_upload(upload.clone(), layout, live);
        Ok(upload)
    }

    /// Whether ranges of objects are to be copied by the server.
    pub(super) fn copies_work(&self) -> bool {
        self.copies.load(Ordering::Relaxed)
    }

    /// Sends or copies what is missing, until every part of the snapshot is stored.
    pub(super) async fn all_parts(
        &self,
        draft: &Draft,
        upload: &UploadId,
        snapshot: &Snapshot,
    ) -> Result<Vec<Part>, WriteError> {
        // What the writer had passed before is under way, and ends by itself.
        draft.until_sent().await;
        let wanted = draft.parts(snapshot);
        let missing = match draft.whole(&wanted) {
            Ok(parts) => return Ok(parts),
            Err(missing) => missing,
        };
        let transfers = missing.into_iter().map(|part| {
            let want = wanted[part as usize - 1];
            self.transfer(draft, upload, part, want)
        });
        let transfers: Vec<_> = transfers.collect();
        let seen = draft.seen();
        let ahead = self.names.origin.expect_completion(&seen);
        let (transfers, ()) = tokio::join!(join_all(transfers), ahead);
        for done in transfers {
            done?;
        }
        draft.whole(&wanted).map_err(|_| OriginError::NoSuchUpload.into())
    }

    async fn transfer(
        &self,
        draft: &Draft,
        upload: &UploadId,
        part: u32,
        want: PartState,
    ) -> Result<(), WriteError> {
        let slot = self.pace.slot().await;
        let Some((of, source)) = draft.claim(part, want) else { return Ok(()) };
        if let Some(source) = source {
            match self.copy_part(draft, upload, part, of, &source).await {
                Ok(()) => return Ok(()),
                Err(error) if !self.sends_instead(&error) => return Err(error.into()),
                Err(_) => {}
            }
        }
        self.send_part(draft, upload, part, of, slot).await
    }

    async fn copy_part(
        &self,
        draft: &Draft,
        upload: &UploadId,
        part: u32,
        of: PartState,
        source: &CopySource,
    ) -> Result<(), OriginError> {
        let claim = Claim::new(draft, upload, part, of);
        let origin = &self.names.origin;
        let copied = origin.copy_part(source, of.range(), &upload.key, &upload.id, part).await?;
        claim.done(copied);
        self.metrics.copied_bytes.inc_by(of.len);
        Ok(())
    }

    /// Whether bytes that could not be copied are sent: they are all here. Not where the version
    /// that was changed is not there any more, which is the end of this change.
    fn sends_instead(&self, error: &OriginError) -> bool {
        match error {
            OriginError::Changed | OriginError::NotFound | OriginError::NoSuchUpload => false,
            error => {
                if !error.is_transient() && self.copies.swap(false, Ordering::Relaxed) {
                    tracing::warn!(
                        %error,
                        "the endpoint copies no ranges: what did not change is sent again, too"
                    );
                }
                true
            }
        }
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
        // On its way to the disk meanwhile.
        draft.leave_page_cache(of.start, of.len);
        let send = |body| origin.upload_part(&upload.key, &upload.id, part, body);
        let done = self.send_range(draft, of, send).await?;
        slot.done(of.len);
        claim.done(done);
        draft.leave_page_cache(of.start, of.len);
        Ok(())
    }

    /// Sends a range by `send`, again while that may help. One that changes under the request is
    /// sent again, and in the end from a copy that nobody changes.
    pub(super) async fn send_range<T, F>(
        &self,
        draft: &Draft,
        of: PartState,
        send: impl Fn(UploadBody) -> F,
    ) -> Result<T, WriteError>
    where
        F: Future<Output = Result<T, OriginError>>,
    {
        let (mut tries, mut changes) = (0, 0);
        loop {
            let frozen = changes >= LIVE_TRIES;
            let body = match at_hand(draft, of).filter(|_| !frozen) {
                Some(body) => body,
                None => tokio::task::block_in_place(|| read_range(draft, of, frozen))?,
            };
            let error = match send(body).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let changed = draft.changed_since(of);
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
        let mut answered = false;
        for tries in 1..=ABORTS_MAX {
            match self.names.origin.abort_upload(key, id).await {
                Err(OriginError::NoSuchUpload | OriginError::NotFound) => return true,
                // Parts that were under way may have landed after it.
                Ok(()) => answered = true,
                Err(error) if error.is_transient() => {
                    tokio::time::sleep(retry::backoff(tries)).await
                }
                Err(error) => {
                    tracing::warn!(key, %error, "upload not aborted; the next mount will");
                    return false;
                }
            }
        }
        if !answered {
            tracing::warn!(key, "upload not aborted: no answer; the next mount will");
        }
        answered
    }

    /// Aborts uploads of a key that were begun since, by a process that never learnt their ids:
    /// not those that are under way here.
    pub(super) async fn abort_begun(&self, key: &str, since: SystemTime) -> bool {
        let pending = match self.names.origin.list_uploads(key).await {
            Ok(pending) => pending,
            Err(error) => {
                tracing::warn!(key, %error, "uploads of an earlier run are not known yet");
                return false;
            }
        };
        let pending = self.live.others(key, pending).await;
        // S3 tells whole seconds, and its clock is another one.
        let since = since - Duration::from_secs(5);
        let mut gone = true;
        for upload in pending.into_iter().filter(|upload| upload.begun >= since) {
            gone &= self.abort(key, &upload.id).await;
        }
        gone
    }
}

/// The checksums of all blocks of a file of `size` bytes that nobody writes any more.
pub(super) fn sums(draft: &Draft, size: u64) -> io::Result<Vec<u32>> {
    let sum = |block: Range<u64>| match draft.sum(block.start / BLOCK) {
        Some(sum) => Ok(sum),
        None => file_sum(draft.file(), block),
    };
    by_block(0..size).map(sum).collect()
}

/// A range of the staging file as a body, where that needs nothing of the disk.
fn at_hand(draft: &Draft, of: PartState) -> Option<UploadBody> {
    let (offset, len) = (of.start, of.len);
    if len <= MEMORY_MAX {
        let mut chunk = Chunk::new(len as usize);
        let is_read = page_cache::read(draft.file(), chunk.bytes_mut(), offset);
        return is_read.then(|| UploadBody::of(chunk.into_bytes()));
    }
    let noted = |range| noted_sum(draft, &range).ok_or_else(|| io::ErrorKind::WouldBlock.into());
    let crc32c = combined(by_block(of.range()), noted).ok()?;
    Some(UploadBody::File { file: draft.file().clone(), offset, len, crc32c })
}

/// A range of the staging file as a body.
fn read_range(draft: &Draft, of: PartState, frozen: bool) -> io::Result<UploadBody> {
    let (offset, len) = (of.start, of.len);
    if len <= MEMORY_MAX {
        let mut chunk = Chunk::new(len as usize);
        draft.file().read_exact_at(chunk.bytes_mut(), offset)?;
        return Ok(UploadBody::of(chunk.into_bytes()));
    }
    if frozen {
        let file = Arc::new(copy_of(draft, offset, len)?);
        let crc32c = combined(by_block(0..len), |range| file_sum(&file, range))?;
        return Ok(UploadBody::File { file, offset: 0, len, crc32c });
    }
    let crc32c = combined(by_block(of.range()), |range| known_sum(draft, of, range))?;
    Ok(UploadBody::File { file: draft.file().clone(), offset, len, crc32c })
}

/// The checksum of bytes within one block of a part: as they were written, or read now.
fn known_sum(draft: &Draft, of: PartState, range: Range<u64>) -> io::Result<u32> {
    if let Some(sum) = noted_sum(draft, &range) {
        return Ok(sum);
    }
    let sum = file_sum(draft.file(), range.clone())?;
    if is_block(draft, &range) {
        draft.block_read(of, range, sum);
    }
    Ok(sum)
}

/// The checksum of a block as it was written.
fn noted_sum(draft: &Draft, range: &Range<u64>) -> Option<u32> {
    is_block(draft, range).then(|| draft.sum(range.start / BLOCK)).flatten()
}

/// Whether a range is a whole block: one that goes on beyond the range is another one.
fn is_block(draft: &Draft, range: &Range<u64>) -> bool {
    range.start.is_multiple_of(BLOCK)
        && (range.end.is_multiple_of(BLOCK) || range.end == draft.size())
}

/// A nameless copy of a range.
fn copy_of(draft: &Draft, mut offset: u64, mut len: u64) -> io::Result<File> {
    let path = draft.path().with_extension(FROZEN);
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

/// The CRC32C of ranges that follow one another, from those of each.
fn combined(
    mut ranges: impl Iterator<Item = Range<u64>>,
    sum: impl Fn(Range<u64>) -> io::Result<u32>,
) -> io::Result<u32> {
    let Some(first) = ranges.next() else { return Ok(0) };
    ranges.try_fold(sum(first)?, |crc, range| {
        let len = range.end - range.start;
        Ok(crc::combine(crc, sum(range)?, len))
    })
}

/// The CRC32C of a range of a file of at most a block.
fn file_sum(file: &File, range: Range<u64>) -> io::Result<u32> {
    let mut chunk = Chunk::new((range.end - range.start) as usize);
    file.read_exact_at(chunk.bytes_mut(), range.start)?;
    Ok(crc32c::crc32c(chunk.bytes_mut()))
}
