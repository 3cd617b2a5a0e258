//! The end of a file under change: what its last writer left is stored, cached, or kept where a
//! person finds it.

use std::sync::Arc;

use super::draft::{Draft, Operation, Outcome, Remains};
use super::gates::DirGates;
use super::{WriteError, Writer, body};
use crate::blocking::MayBlock;
use crate::cache::LostRow;
use crate::logged::LoggedName;
use crate::model::version::ObjectInfo;

impl Writer {
    /// The work at the last close of a file that was written: stores what is still dirty, and
    /// makes the staging file the cached version. Returns why bytes that nobody was told about were
    /// left here.
    pub async fn finish(&self, draft: &Arc<Draft>) -> Option<WriteError> {
        let (dir, _) = draft.node.place();
        let dirs = DirGates::wait(&[&dir], None).await;
        let gate = draft.gate.lock().await;
        let stored = match self.settled(draft, Operation::Finish).await {
            Ok(Outcome::Nothing) => return None,
            Ok(_) => self.commit_held(draft).await,
            Err(error) => Err(error),
        };
        self.abandon(draft).await;
        let unlinked = draft.is_unlinked();
        let left = self.end(draft, (draft.remains(), unlinked), stored.err()).await;
        drop((gate, dirs));
        left
    }

    /// Ends a change whose writer is gone without having closed it. Unfinished bytes are never
    /// published: half a checkpoint would take the place of the last whole one. Returns as
    /// [`Writer::finish`].
    pub async fn break_off(&self, draft: &Arc<Draft>) -> Option<WriteError> {
        let _gate = draft.gate.lock().await;
        if draft.is_sealed() {
            return None;
        }
        let error = match self.settled(draft, Operation::Finish).await {
            Ok(_) => draft.is_dirty().then(|| std::io::Error::other("it was never closed").into()),
            Err(error) => Some(error),
        };
        self.abandon(draft).await;
        // Somebody may be writing still: what becomes of the bytes is said of all of them.
        let unlinked = draft.is_unlinked();
        let remains = draft.end_writes().await;
        self.end(draft, (remains, unlinked), error).await
    }

    /// Puts the bytes where they belong. The gate is held, and no upload is left.
    async fn end(
        &self,
        draft: &Arc<Draft>,
        (remains, unlinked): (Remains, bool),
        error: Option<WriteError>,
    ) -> Option<WriteError> {
        let mut left = None;
        let (dir, name) = draft.node.place();
        match remains {
            Remains::Stored => {
                let info = self.cache_stored(draft).await;
                dir.end_writing(&name, &draft.node, info);
            }
            Remains::Nothing => {
                let remove = |may: &_| {
                    draft.staging().remove(may);
                    draft.end_record(may);
                };
                draft.calls().in_place(remove).await;
                if !unlinked {
                    dir.end_writing(&name, &draft.node, None);
                }
            }
            Remains::Untold => {
                let cause = error.unwrap_or(WriteError::Ended);
                draft.calls().in_place(|may| self.keep_lost(may, draft, &cause)).await;
                left = Some(cause);
                dir.end_writing(&name, &draft.node, None);
            }
        }
        draft.seal();
        self.drafts().remove(&draft.node.ino);
        left
    }

    /// Makes the bytes of a stored file its cached version. What the name shows from now on.
    async fn cache_stored(&self, draft: &Draft) -> Option<ObjectInfo> {
        let Some(key) = self.names.version_key(&draft.node) else {
            draft.calls().in_place(|may| draft.end_record(may)).await;
            return None;
        };
        let (size, mtime) = draft.node.size_and_mtime();
        let is_whole = size > 0 && key.version.size == size;
        let adopt = |may: &_| {
            match is_whole.then(|| body::sums(may, draft, size)) {
                Some(Ok(sums)) => self.names.cache.adopt(may, &key, draft.staging(), &sums),
                Some(Err(_)) | None => draft.staging().remove(may),
            }
            draft.end_record(may);
        };
        draft.calls().in_place(adopt).await;
        Some(ObjectInfo {
            size,
            etag: Some(key.version.etag),
            mtime,
            version_id: draft.node.version_id(),
            writer: None,
        })
    }

    fn keep_lost(&self, may: &MayBlock, draft: &Draft, cause: &WriteError) {
        let cause = &*cause.to_string();
        self.metrics.lost_closes.inc();
        let bucket = self.names.bucket().as_str();
        let tenant = self.share.tenant().to_owned();
        let lost = LostRow { tenant, ..LostRow::new(bucket, &draft.key(), cause, draft.size()) };
        match self.names.cache.keep_lost(may, draft.path(), &lost) {
            Ok(kept) => tracing::error!(
                key = %LoggedName(&lost.key), cause, kept = %kept.display(),
                "bytes not stored at the last close; see weir lost"
            ),
            Err(error) => tracing::error!(
                key = %LoggedName(&lost.key), cause, %error,
                "bytes not stored at the last close, and not kept either"
            ),
        }
        draft.end_record(may);
    }
}
