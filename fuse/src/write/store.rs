//! Committing a file under change: one PUT, or the completion of its upload.

use std::sync::Arc;

use super::draft::{Draft, Operation, Outcome, Phase, Snapshot, UploadId};
use super::gates::DirGates;
use super::layout::Layout;
use super::{WriteError, Writer, new_nonce};
use crate::logged::LoggedName;
use crate::model::version::ObjectInfo;
use crate::namespace::file::FileNode;
use crate::origin::{Condition, OriginError, Part, Stored, UploadBody, WriteIntent, retry};

/// How often a commit starts anew because what it sends is cut, or its upload is gone.
const ROUNDS_MAX: u32 = 5;

/// How a round of a commit ended without an answer for the writer.
enum Round {
    Stored,
    /// From the start: with a new upload, or of what is left of a file that was cut.
    Again(WriteError),
}

impl Writer {
    /// Stores the present state; returns when the origin has acknowledged it.
    ///
    /// To be run to its end: a caller that cannot wait leaves it to a task. Where it is dropped
    /// all the same, the next operation asks the origin what became of it.
    ///
    /// # Errors
    /// Why it is not stored. The bytes stay in the staging file, and another try may succeed,
    /// but not after a conflict: then the name belongs to whoever was faster.
    pub async fn commit(&self, draft: &Arc<Draft>) -> Result<(), WriteError> {
        let (dir, _) = draft.node.place();
        let _dirs = DirGates::wait(&[&dir], None).await;
        let _gate = draft.gate.lock().await;
        self.commit_held(draft).await
    }

    /// As [`Writer::commit`], for a holder of the gates.
    pub(super) async fn commit_held(&self, draft: &Draft) -> Result<(), WriteError> {
        if self.settled(draft, Operation::Commit).await? == Outcome::Nothing {
            return Ok(());
        }
        self.metrics.uploads.inc();
        let done = self.store(draft).await;
        // Before anybody is answered.
        draft.note_down().await;
        self.metrics.uploads.dec();
        if let Err(error) = &done {
            let (session, key) = (self.names.session(), draft.key());
            tracing::warn!(session, key = %LoggedName(&key), %error, "file not stored");
            if error.is_conflict() {
                self.give_name_up(draft).await;
            }
        }
        done
    }

    /// What an operation comes to, after the origin has told what became of a request in doubt.
    /// The gate is held.
    pub(super) async fn settled(
        &self,
        draft: &Draft,
        operation: Operation,
    ) -> Result<Outcome, WriteError> {
        match draft.step(operation)? {
            Outcome::Settle => {
                self.settle(draft).await?;
                draft.step(operation)
            }
            other => Ok(other),
        }
    }

    /// Asks the origin what became of the request whose end is not known.
    async fn settle(&self, draft: &Draft) -> Result<(), WriteError> {
        match self.present(&draft.key()).await? {
            Some(info) if draft.wrote(info.writer.as_deref()) => {
                self.note_stored(draft, &info);
                draft.note_down().await;
            }
            None if draft.is_removing() => self.note_removed(draft).await,
            _ => draft.unchanged(),
        }
        Ok(())
    }

    /// What is under a key; `None`: nothing.
    pub(super) async fn present(&self, key: &str) -> Result<Option<ObjectInfo>, OriginError> {
        match self.names.origin.head(key).await {
            Ok(info) => Ok(Some(info)),
            Err(OriginError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn note_stored(&self, draft: &Draft, info: &ObjectInfo) {
        draft.stored(info.writer.as_deref().unwrap_or_default(), info);
        let (dir, _) = draft.node.place();
        self.names.drop_kept(&dir);
    }

    /// Leaves the name to whoever was faster.
    pub(super) async fn give_name_up(&self, draft: &Draft) {
        draft.supersede();
        draft.node.give_name_up();
        let (dir, name) = draft.node.place();
        dir.end_writing(&name, &draft.node, None);
        self.names.drop_kept(&dir);
        self.abandon(draft).await;
    }

    async fn store(&self, draft: &Draft) -> Result<(), WriteError> {
        let mut last = WriteError::Busy;
        for _ in 0..ROUNDS_MAX {
            let commit = draft.commit();
            let snapshot = &commit.snapshot;
            let layout = draft.layout(Some(snapshot), self.copies_work());
            if draft.upload().is_some() && !draft.upload_serves(snapshot, &layout) {
                self.abandon(draft).await;
            }
            let single = draft.upload().is_none()
                && !layout.has_copies()
                && snapshot.size <= self.plan.base();
            let round = match single {
                true => self.put_whole(draft, snapshot).await,
                false => self.put_parts(draft, snapshot, layout).await,
            };
            let round = match round {
                // What was there before the open is replaced, although nobody knew of it.
                Err(error) if error.is_conflict() && draft.learns_seen().await => {
                    Round::Again(error)
                }
                round => round?,
            };
            match round {
                Round::Stored => {
                    self.metrics.stored_bytes.inc_by(snapshot.size);
                    return Ok(());
                }
                Round::Again(error) => last = error,
            }
        }
        Err(last)
    }

    async fn put_whole(&self, draft: &Draft, snapshot: &Snapshot) -> Result<Round, WriteError> {
        let write = WriteIntent { condition: draft.seen(), writer: new_nonce() };
        let key = draft.key();
        let whole = draft.whole_file(snapshot);
        let put = async |body| {
            draft.sending(&write.writer, snapshot);
            draft.note_down().await;
            self.names.origin.put(&key, body, &write).await
        };
        let sent = self.send_range(draft, whole, put);
        match sent.await {
            Ok(stored) => self.acknowledged(draft, &key, snapshot, stored, &write.writer).await,
            Err(WriteError::Origin(error)) => self.after_failure(draft, &key, error).await,
            Err(error) => {
                // The staging file: nothing was sent, or an earlier try of it was.
                if draft.phase() == Phase::InDoubt {
                    self.settle(draft).await?;
                }
                cut(draft, snapshot, error).await
            }
        }
    }

    async fn put_parts(
        &self,
        draft: &Draft,
        snapshot: &Snapshot,
        layout: Layout,
    ) -> Result<Round, WriteError> {
        let upload = self.ensure_upload(draft, layout).await?;
        let parts = match self.all_parts(draft, &upload, snapshot).await {
            Ok(parts) => parts,
            Err(WriteError::Origin(OriginError::NoSuchUpload)) => {
                return Ok(self.upload_is_gone(draft));
            }
            // The version that this is a change of is not there any more.
            Err(WriteError::Origin(OriginError::Changed | OriginError::NotFound)) => {
                let gone = OriginError::Conflict;
                return self.after_failure(draft, &upload.key, gone).await;
            }
            Err(error) => return cut(draft, snapshot, error).await,
        };
        let write = WriteIntent { condition: draft.seen(), writer: upload.writer.clone() };
        draft.sending(&write.writer, snapshot);
        draft.note_down().await;
        match self.complete(&upload, &parts, &write).await {
            Ok(stored) => {
                draft.upload_ended();
                self.acknowledged(draft, &upload.key, snapshot, stored, &write.writer).await
            }
            Err(OriginError::NoSuchUpload) => {
                let round = self.after_failure(draft, &upload.key, OriginError::NoSuchUpload);
                match round.await {
                    Ok(Round::Stored) => Ok(Round::Stored),
                    _ => Ok(self.upload_is_gone(draft)),
                }
            }
            // The upload is of no use any more; some servers also take none of which parts are left
            // out.
            Err(error @ (OriginError::UploadClash(_) | OriginError::Invalid(_)))
                if matches!(error, OriginError::UploadClash(_)) || draft.exceeds(parts.len()) =>
            {
                draft.unchanged();
                self.abandon(draft).await;
                Ok(Round::Again(error.into()))
            }
            Err(error) => self.after_failure(draft, &upload.key, error).await,
        }
    }

    fn upload_is_gone(&self, draft: &Draft) -> Round {
        draft.unchanged();
        draft.take_upload();
        draft.upload_ended();
        Round::Again(OriginError::NoSuchUpload.into())
    }

    async fn complete(
        &self,
        upload: &UploadId,
        parts: &[Part],
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let origin = &self.names.origin;
        let mut tries = 0;
        loop {
            tries += 1;
            match origin.complete_upload(&upload.key, &upload.id, parts, write).await {
                Err(error) if retry::upload_again(&error, tries) => {
                    tokio::time::sleep(retry::backoff(tries)).await;
                }
                other => return other,
            }
        }
    }

    async fn acknowledged(
        &self,
        draft: &Draft,
        key: &str,
        snapshot: &Snapshot,
        stored: Stored,
        writer: &str,
    ) -> Result<Round, WriteError> {
        let info = match stored.etag {
            Some(_) => stored.into_info(snapshot.size, Some(writer.into())),
            // It stays in doubt where that is not answered.
            None => self.names.origin.head(key).await?,
        };
        self.note_stored(draft, &info);
        Ok(Round::Stored)
    }

    /// After an error of a request that may have stored the file: whether it did after all.
    async fn after_failure(
        &self,
        draft: &Draft,
        key: &str,
        error: OriginError,
    ) -> Result<Round, WriteError> {
        let refused = !error.is_transient()
            && !matches!(error, OriginError::Conflict | OriginError::NotFound)
            && !matches!(error, OriginError::NoSuchUpload);
        if refused {
            draft.unchanged();
            return Err(error.into());
        }
        match self.names.origin.head(key).await {
            Ok(info) if draft.wrote(info.writer.as_deref()) => {
                self.note_stored(draft, &info);
                // An earlier request of ours may have come through instead of the last one.
                Ok(match draft.is_dirty() {
                    true => Round::Again(error.into()),
                    false => Round::Stored,
                })
            }
            Ok(_) | Err(OriginError::NotFound) => {
                draft.unchanged();
                Err(meaning(draft, error))
            }
            // Nobody knows: the next operation asks again. A conflict is an answer, though.
            Err(_) if matches!(error, OriginError::Conflict) => {
                draft.unchanged();
                Err(meaning(draft, error))
            }
            Err(_) => Err(error.into()),
        }
    }

    /// Asks the origin what is there under the name of a file that is being created, whatever is:
    /// it is replaced. The question is on its way when this returns, and nobody waits for it.
    pub fn inquire(self: &Arc<Self>, draft: &Arc<Draft>) {
        draft.inquire();
        let (writer, draft) = (self.clone(), draft.clone());
        self.runtime.spawn(async move {
            let asker = draft.asker();
            match writer.present(&draft.key()).await {
                Ok(Some(ObjectInfo { etag: Some(etag), .. })) => {
                    asker.answer(Condition::Matches(etag));
                }
                Ok(None) => asker.answer(Condition::Absent),
                Ok(Some(_)) | Err(_) => {}
            }
        });
    }

    /// Makes a stored file that is not under change empty.
    ///
    /// # Errors
    /// Why it is not emptied; ESTALE when it was replaced meanwhile.
    pub async fn store_empty(&self, node: &FileNode) -> Result<ObjectInfo, WriteError> {
        let (dir, _) = node.place();
        let _dirs = DirGates::take(&[&dir], None).await?;
        let key = node.key();
        let condition = node.version().map_or(Condition::Always, |v| Condition::Matches(v.etag));
        let write = WriteIntent { condition, writer: new_nonce() };
        let body = UploadBody::empty();
        let origin = &self.names.origin;
        match origin.put(&key, body, &write).await {
            Ok(stored) if stored.etag.is_some() => {
                Ok(stored.into_info(0, Some(write.writer.into())))
            }
            Ok(_) => Ok(origin.head(&key).await?),
            Err(OriginError::NotFound) => Err(OriginError::Conflict.into()),
            Err(error) if error.is_transient() || matches!(error, OriginError::Conflict) => {
                match origin.head(&key).await {
                    Ok(info) if info.writer.as_deref() == Some(&write.writer) => Ok(info),
                    _ => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// An error on the way to the request: none where the file was cut below what was to be sent.
async fn cut(draft: &Draft, snapshot: &Snapshot, error: WriteError) -> Result<Round, WriteError> {
    // It may be cut at this moment.
    let size = draft.calls().in_place(|may| draft.settled_size(may)).await;
    match size < snapshot.size {
        true => Ok(Round::Again(error)),
        false => Err(error),
    }
}

/// What an error of a store means to the writer.
fn meaning(draft: &Draft, error: OriginError) -> WriteError {
    match (error, draft.seen()) {
        (OriginError::Conflict, _) => draft.conflict(),
        // S3 answers so where the object to be replaced was removed meanwhile.
        (OriginError::NotFound, Condition::Matches(_)) => draft.conflict(),
        (error, _) => error.into(),
    }
}
