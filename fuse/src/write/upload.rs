//! From the staging file to the origin: parts while the writer writes, the rest at close.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::staging::{Snapshot, Staging};
use super::{WriteError, Writer, new_nonce};
use crate::buffers::{Share, capacity_for};
use crate::cache::records::UploadRow;
use crate::model::blocks::BLOCK;
use crate::model::version::ObjectInfo;
use crate::namespace::file::FileNode;
use crate::origin::{Condition, OriginError, Part, Stored, UploadBody, WriteIntent, retry};

/// Parts up to this size go through memory; larger ones are streamed from the staging file.
const MEMORY_MAX: u64 = 32 << 20;
/// Rounds of sending what changed meanwhile, before a commit is given up.
const ROUNDS_MAX: u32 = 64;

impl Writer {
    /// Sends parts that the writer has passed, in the background. Failures show at close.
    pub fn send_passed(self: &Arc<Self>, staging: &Arc<Staging>, parts: Vec<u32>) {
        if parts.is_empty() {
            return;
        }
        let (writer, staging) = (self.clone(), staging.clone());
        self.runtime.spawn(async move {
            {
                let _gate = staging.gate.lock().await;
                if !staging.is_dirty() || staging.is_overtaken() {
                    return;
                }
                if let Err(error) = writer.ensure_upload(&staging).await {
                    tracing::debug!(%error, "upload not begun yet");
                    return;
                }
            }
            let sends = parts.into_iter().map(|part| writer.send_part(&staging, part));
            for sent in futures_util::future::join_all(sends).await {
                if let Err(error) = sent {
                    tracing::debug!(%error, "part not sent yet");
                }
            }
        });
    }

    /// Stores the present state; returns when the origin has acknowledged it.
    ///
    /// # Errors
    /// Why it is not stored. The bytes stay in the staging file, and another try may succeed,
    /// but not after a conflict: then the name is given up, and belongs to whoever was faster.
    pub async fn commit(self: &Arc<Self>, staging: &Arc<Staging>) -> Result<(), WriteError> {
        let _gate = staging.gate.lock().await;
        if !staging.is_dirty() {
            return Ok(());
        }
        if staging.is_overtaken() {
            return Err(conflict(OriginError::Conflict, &staging.snapshot().condition));
        }
        self.metrics.uploads.inc();
        let done = self.store(staging).await;
        self.metrics.uploads.dec();
        if let Err(error) = &done {
            tracing::warn!(key = %staging.node.key(), %error, "file not stored");
            if error.is_conflict() {
                staging.overtake();
                staging.node.give_name_up();
                let (dir, name) = staging.node.place();
                dir.end_writing(&name, &staging.node, None);
            }
        }
        done
    }

    async fn store(&self, staging: &Arc<Staging>) -> Result<(), WriteError> {
        let snapshot = staging.snapshot();
        let key = staging.node.key();
        let single = staging.upload().is_none() && snapshot.size <= self.plan.base();
        let (stored, nonce) = if single {
            self.put_whole(staging, &key, &snapshot).await?
        } else {
            self.put_parts(staging, &key, &snapshot).await?
        };
        let info = self.info_of(&key, snapshot.size, stored, nonce).await?;
        let next = info.etag.clone().map_or(Condition::Always, Condition::Matches);
        staging.set_stored(&snapshot, next);
        staging.node.set_stored(&info);
        self.metrics.stored_bytes.inc_by(snapshot.size);
        let (dir, _) = staging.node.place();
        self.names.drop_kept(&dir);
        Ok(())
    }

    async fn put_whole(
        &self,
        staging: &Arc<Staging>,
        key: &str,
        snapshot: &Snapshot,
    ) -> Result<(Stored, String), WriteError> {
        let generation = staging.part_generation(1);
        let len = snapshot.size as usize;
        let share = self.buffers.share(capacity_for(len)).await;
        let body = tokio::task::block_in_place(|| read_part(staging, 0, len, share))?;
        let sums = block_sums(&body);
        let body = UploadBody::Memory { crc32c: combined(&sums, snapshot.size), bytes: body };
        if !sums.is_empty() {
            staging.set_sums(1, generation, sums);
        }
        self.put_body(key, body, &snapshot.condition).await
    }

    /// Makes a stored file empty.
    ///
    /// # Errors
    /// Why it is not emptied; ESTALE when it was replaced meanwhile.
    pub async fn store_empty(&self, node: &FileNode) -> Result<ObjectInfo, WriteError> {
        let key = node.key();
        let wanted = node.version().map_or(Condition::Always, |v| Condition::Matches(v.etag));
        let (stored, nonce) = self.put_body(&key, UploadBody::empty(), &wanted).await?;
        self.info_of(&key, 0, stored, nonce).await
    }

    async fn put_body(
        &self,
        key: &str,
        body: UploadBody,
        wanted: &Condition,
    ) -> Result<(Stored, String), WriteError> {
        let nonce = new_nonce();
        let write = WriteIntent { condition: wanted.clone(), writer: nonce.clone() };
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.names.origin.put(key, body.clone(), &write).await {
                Ok(stored) => return Ok((stored, nonce)),
                Err(error) => error,
            };
            if retry::upload_again(&error, tries) {
                tokio::time::sleep(retry::backoff(tries)).await;
                continue;
            }
            return match self.stored_after_all(key, &nonce, &error).await {
                Some(stored) => Ok((stored, nonce)),
                None => Err(conflict(error, wanted)),
            };
        }
    }

    async fn put_parts(
        &self,
        staging: &Arc<Staging>,
        key: &str,
        snapshot: &Snapshot,
    ) -> Result<(Stored, String), WriteError> {
        for attempt in 0.. {
            self.ensure_upload(staging).await?;
            let Some((id, nonce)) = staging.upload() else { continue };
            let parts = self.all_parts(staging, snapshot.size).await?;
            let condition = snapshot.condition.clone();
            let write = WriteIntent { condition, writer: nonce.clone() };
            let mut tries = 0;
            let error = loop {
                tries += 1;
                match self.names.origin.complete_upload(key, &id, &parts, &write).await {
                    Ok(stored) => {
                        self.journal(&id, None);
                        return Ok((stored, nonce));
                    }
                    Err(error) if retry::upload_again(&error, tries) => {
                        tokio::time::sleep(retry::backoff(tries)).await;
                    }
                    Err(error) => break error,
                }
            };
            if let Some(stored) = self.stored_after_all(key, &nonce, &error).await {
                self.journal(&id, None);
                return Ok((stored, nonce));
            }
            self.abandon(staging).await;
            // Somebody removed the upload, as a lifecycle rule does, or another write spoilt it:
            // once more from the start.
            let is_spoilt =
                matches!(error, OriginError::NoSuchUpload | OriginError::UploadClash(_));
            if !is_spoilt || attempt > 0 {
                return Err(conflict(error, &snapshot.condition));
            }
        }
        Err(OriginError::NoSuchUpload.into())
    }

    /// Sends what is missing, until every part of the present state is stored.
    async fn all_parts(&self, staging: &Arc<Staging>, size: u64) -> Result<Vec<Part>, WriteError> {
        for _ in 0..ROUNDS_MAX {
            let missing = match staging.parts(size) {
                Ok(parts) => return Ok(parts),
                Err(missing) => missing,
            };
            let sends = missing.into_iter().map(|part| self.send_part(staging, part));
            for sent in futures_util::future::join_all(sends).await {
                sent?;
            }
            // What others are sending ends by itself.
            while staging.is_sending() {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        }
        Err(WriteError::Busy)
    }

    async fn ensure_upload(&self, staging: &Arc<Staging>) -> Result<(), WriteError> {
        if staging.upload().is_some() {
            return Ok(());
        }
        let key = staging.node.key();
        let nonce = new_nonce();
        let id = self.names.origin.create_upload(&key, &nonce).await?;
        let row = UploadRow { bucket: self.names.bucket().as_str().to_owned(), key };
        self.journal(&id, Some(row));
        staging.set_upload(Some((id, nonce)));
        Ok(())
    }

    async fn send_part(&self, staging: &Arc<Staging>, part: u32) -> Result<(), WriteError> {
        let Some((id, _)) = staging.upload() else { return Ok(()) };
        let Some(generation) = staging.claim(part) else { return Ok(()) };
        let sent = self.send_claimed(staging, &id, part, generation).await;
        staging.sent(&id, part, generation, sent.as_ref().ok().cloned());
        sent.map(|_| ())
    }

    async fn send_claimed(
        &self,
        staging: &Arc<Staging>,
        id: &str,
        part: u32,
        generation: u64,
    ) -> Result<Part, WriteError> {
        let _slot = self.slots.acquire().await;
        let range = self.plan.range(part);
        let len = range.end.min(staging.size()).saturating_sub(range.start);
        let in_memory = len <= MEMORY_MAX.min(self.buffers.total() / 4);
        let share = match in_memory {
            true => self.buffers.share(capacity_for(len as usize)).await,
            false => None,
        };
        let (body, sums) = tokio::task::block_in_place(|| {
            if in_memory {
                let body = read_part(staging, range.start, len as usize, share)?;
                staging.leave_page_cache(range.start, len);
                let sums = block_sums(&body);
                let crc32c = combined(&sums, len);
                return Ok::<_, io::Error>((UploadBody::Memory { bytes: body, crc32c }, sums));
            }
            let (crc32c, sums) = file_sums(staging, range.start, len)?;
            let file = staging.file().clone();
            Ok((UploadBody::File { file, offset: range.start, len, crc32c }, sums))
        })?;
        staging.set_sums(part, generation, sums);
        let key = staging.node.key();
        let mut tries = 0;
        loop {
            tries += 1;
            match self.names.origin.upload_part(&key, id, part, body.clone()).await {
                Ok(done) => {
                    staging.leave_page_cache(range.start, len);
                    return Ok(done);
                }
                Err(error) if retry::upload_again(&error, tries) => {
                    tokio::time::sleep(retry::backoff(tries)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// After a conflict, or an answer that never came: whether it was our own write that won.
    async fn stored_after_all(
        &self,
        key: &str,
        nonce: &str,
        error: &OriginError,
    ) -> Option<Stored> {
        let maybe = matches!(error, OriginError::Conflict | OriginError::NoSuchUpload)
            || error.is_transient();
        if !maybe {
            return None;
        }
        let info = self.names.origin.head(key).await.ok()?;
        (info.writer.as_deref() == Some(nonce)).then_some(Stored {
            etag: info.etag,
            version_id: info.version_id,
            mtime: info.mtime,
        })
    }

    async fn info_of(
        &self,
        key: &str,
        size: u64,
        stored: Stored,
        nonce: String,
    ) -> Result<ObjectInfo, WriteError> {
        if stored.etag.is_none() {
            return Ok(self.names.origin.head(key).await?);
        }
        Ok(ObjectInfo {
            size,
            etag: stored.etag,
            mtime: stored.mtime,
            version_id: stored.version_id,
            writer: Some(nonce.into()),
        })
    }

    /// The work at the last close of a file that was written: stores what is still dirty, and
    /// makes the staging file the cached version.
    pub async fn finish(self: &Arc<Self>, staging: &Arc<Staging>) {
        let stored = self.commit(staging).await;
        let (dir, name) = staging.node.place();
        if let Err(error) = stored {
            self.abandon(staging).await;
            self.metrics.lost_closes.inc();
            let kept = self.names.cache.keep_lost(staging.path());
            let kept = kept.map_or_else(|e| e.to_string(), |path| path.display().to_string());
            tracing::error!(key = %staging.node.key(), %error, %kept, "bytes not stored at close");
            dir.end_writing(&name, &staging.node, None);
            return;
        }
        let sums = staging.seal();
        let key = self.names.version_key(&staging.node);
        let (size, mtime) = staging.node.size_and_mtime();
        match (sums, &key) {
            (Some(sums), Some(key)) if size > 0 && key.version.size == size => {
                tokio::task::block_in_place(|| {
                    self.names.cache.adopt(key, staging.path(), &sums);
                });
            }
            _ => {
                let _ = std::fs::remove_file(staging.path());
            }
        }
        let info = key.map(|key| ObjectInfo {
            size,
            etag: Some(key.version.etag),
            mtime,
            version_id: staging.node.version_id(),
            writer: None,
        });
        if !staging.is_unlinked() {
            dir.end_writing(&name, &staging.node, info);
        }
    }

    /// Gives up an upload under way.
    pub async fn abandon(&self, staging: &Arc<Staging>) {
        let Some((id, _)) = staging.upload() else { return };
        staging.set_upload(None);
        self.abort(&staging.node.key(), &id).await;
    }

    /// Aborts an upload at the origin; what fails is left in the journal for the next mount.
    pub async fn abort(&self, key: &str, id: &str) {
        match self.names.origin.abort_upload(key, id).await {
            Ok(()) | Err(OriginError::NoSuchUpload) => self.journal(id, None),
            Err(error) => tracing::warn!(key, %error, "upload not aborted; the next mount will"),
        }
    }

    /// Aborts uploads that an earlier run of this cache directory left on this bucket.
    pub async fn abort_leftovers(&self) {
        for (id, row) in self.names.cache.take_leftovers(self.names.bucket()) {
            tracing::info!(key = %row.key, "aborting an upload of an earlier run");
            self.abort(&row.key, &id).await;
        }
    }

    fn journal(&self, id: &str, row: Option<UploadRow>) {
        self.names.cache.journal_upload(id, row);
    }
}

/// Says what a conflict means to the one who writes.
fn conflict(error: OriginError, condition: &Condition) -> WriteError {
    match (error, condition) {
        (OriginError::Conflict, Condition::Absent) => WriteError::Exists,
        // S3 answers so where the object to be replaced was removed meanwhile.
        (OriginError::NotFound, Condition::Matches(_)) => OriginError::Conflict.into(),
        (error, _) => WriteError::Origin(error),
    }
}

fn read_part(
    staging: &Staging,
    offset: u64,
    len: usize,
    share: Option<Share>,
) -> io::Result<Bytes> {
    let Some(mut share) = share.filter(|_| len > 0) else { return Ok(Bytes::new()) };
    let mut buffer = share.buffer(len);
    staging.read_exact(offset, buffer.bytes_mut())?;
    Ok(buffer.into_bytes())
}

fn block_sums(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(BLOCK as usize).map(crc32c::crc32c).collect()
}

/// CRC32C of `len` bytes, from those of their blocks.
fn combined(sums: &[u32], len: u64) -> u32 {
    let block = |at: u64| (len - at).min(BLOCK) as usize;
    let pairs = sums.iter().zip((0..len).step_by(BLOCK as usize));
    pairs.fold(0, |crc, (sum, at)| crc32c::crc32c_combine(crc, *sum, block(at)))
}

/// CRC32C of a range of the staging file, and of each of its blocks.
fn file_sums(staging: &Staging, offset: u64, len: u64) -> io::Result<(u32, Vec<u32>)> {
    let file = File::open(staging.path())?;
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
