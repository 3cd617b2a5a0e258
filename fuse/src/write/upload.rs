//! Moving bytes: the parts of an upload, begun, sent, copied and given up.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;

use super::body;
use super::draft::{Claim, Draft, PartState, Snapshot, UploadId};
use super::gates::DirGates;
use super::layout::Layout;
use super::pace::Slot;
use super::{WriteError, Writer, new_nonce};
use crate::logged::LoggedName;
use crate::origin::{CopySource, OriginError, Part, PartKind, UploadBody, retry};

/// How often a range that changes while it is sent is sent from where it is; then from a copy.
const LIVE_TRIES: u32 = 2;
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
        for sent in self.before_completion(draft, sends).await {
            if let Err(error) = sent {
                tracing::debug!(%error, "part not sent yet");
            }
        }
    }

    /// Moves parts, all at once, while it is found out what their completion will have to know.
    async fn before_completion<T>(
        &self,
        draft: &Draft,
        moves: impl Iterator<Item = impl Future<Output = T>>,
    ) -> Vec<T> {
        let seen = draft.seen();
        let ahead = self.names.origin.expect_completion(&seen);
        let (moved, ()) = tokio::join!(join_all(moves), ahead);
        moved
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
        draft.calls().in_place(|may| draft.beginning_upload(may, &key)).await?;
        let writer = new_nonce();
        let parts = match layout.has_copies() {
            true => PartKind::Mixed,
            false => PartKind::Sent,
        };
        let live = self.live.ask(&key);
        let id = self.names.origin.create_upload(&key, &writer, parts).await?;
        let upload = UploadId { key, id, writer };
        draft.begin_upload(upload.clone(), layout, live);
        draft.note_down().await;
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
        for done in self.before_completion(draft, transfers).await {
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
        draft.note_down().await;
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
        draft.calls().in_place(|may| draft.leave_page_cache(may, of.start, of.len)).await;
        let send = |body| origin.upload_part(&upload.key, &upload.id, part, body);
        let done = self.send_range(draft, of, send).await?;
        slot.done(of.len);
        claim.done(done);
        let leave = |may: &_| {
            draft.leave_page_cache(may, of.start, of.len);
            draft.write_down(may);
        };
        draft.calls().in_place(leave).await;
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
            let at_hand = if frozen { None } else { body::at_hand(draft, of) };
            let body = match at_hand {
                Some(body) => body,
                None => {
                    let read = |may: &_| body::from_disk(may, draft, of, frozen);
                    draft.calls().in_place(read).await?
                }
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
        draft.note_down().await;
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
                    tracing::warn!(key = %LoggedName(key), %error, "upload not aborted; the next mount will");
                    return false;
                }
            }
        }
        if !answered {
            tracing::warn!(key = %LoggedName(key), "upload not aborted: no answer; the next mount will");
        }
        answered
    }

    /// Aborts uploads of a key that were begun since, by a process that never learnt their ids:
    /// not those that are under way here.
    pub(super) async fn abort_begun(&self, key: &str, since: SystemTime) -> bool {
        let pending = match self.names.origin.list_uploads(key).await {
            Ok(pending) => pending,
            Err(error) => {
                tracing::warn!(key = %LoggedName(key), %error, "uploads of an earlier run are not known yet");
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
