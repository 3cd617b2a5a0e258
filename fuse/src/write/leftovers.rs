//! What processes that have died left: their uploads are aborted, and bytes that were not stored
//! go where a person finds them.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::Writer;
use super::draft::{Leftover, Owner, PendingId, leftovers};
use crate::cache::{LostRow, NodeCache};

/// What was in the staging folders when their cache was opened; each is worked off once, by a
/// mount with the bucket and identity of the one that wrote it.
pub struct Leftovers(Mutex<Vec<Leftover>>);

impl Leftovers {
    /// Reads the records beside what is there. Bytes of nobody knows whom go to `lost/` at once.
    pub fn of(cache: &NodeCache) -> Self {
        Self::among(cache, cache.take_staged())
    }

    /// As [`Leftovers::of`], of these files.
    pub(super) fn among(cache: &NodeCache, files: Vec<PathBuf>) -> Self {
        let (known, unknown): (Vec<_>, Vec<_>) =
            leftovers(files).into_iter().partition(|left| left.owner.is_some());
        for leftover in &unknown {
            keep_bytes(cache, leftover);
            leftover.forget_record();
        }
        Self(Mutex::new(known))
    }

    /// Takes those of one owner.
    pub fn take(&self, owner: &Owner) -> Vec<Leftover> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extract_if(.., |leftover| leftover.owner.as_ref() == Some(owner)).collect()
    }
}

impl Writer {
    /// Works off what earlier runs left with this mount's bucket and identity. What the origin
    /// does not allow, or does not answer, is left for the next run.
    pub async fn work_off(&self, leftovers: &Leftovers) {
        for leftover in leftovers.take(&self.owner()) {
            let ended = match &leftover.upload {
                Some(upload) => self.end_upload(upload).await,
                None => true,
            };
            keep_bytes(&self.names.cache, &leftover);
            if ended {
                leftover.forget_record();
            }
        }
        let cache = &self.names.cache;
        for (id, row) in cache.take_journaled_uploads(self.names.bucket()) {
            tracing::info!(key = %row.key, "aborting an upload of an earlier release");
            if self.abort(&row.key, &id).await {
                cache.forget_journaled_upload(&id);
            }
        }
    }

    async fn end_upload(&self, upload: &PendingId) -> bool {
        tracing::info!(key = %upload.key, "aborting an upload of an earlier run");
        match &upload.id {
            Some(id) => self.abort(&upload.key, id).await,
            None => self.abort_begun(&upload.key, upload.begun).await,
        }
    }
}

fn keep_bytes(cache: &NodeCache, leftover: &Leftover) {
    let size = std::fs::metadata(&leftover.staging).map_or(0, |metadata| metadata.len());
    if leftover.clean || leftover.unlinked || size == 0 {
        let _ = std::fs::remove_file(&leftover.staging);
        return;
    }
    let bucket = leftover.owner.as_ref().map_or("", |owner| &owner.bucket);
    let cause = "the process that wrote it ended before it was closed";
    let row = LostRow::new(bucket, &leftover.key, cause, size);
    match cache.keep_lost(&leftover.staging, &row) {
        Ok(kept) => tracing::warn!(
            key = %leftover.key, kept = %kept.display(),
            "bytes of an earlier run were not stored; see weir lost"
        ),
        Err(error) => tracing::error!(
            key = %leftover.key, %error,
            "bytes of an earlier run were not stored, and are not kept either"
        ),
    }
}
