//! Conditions that hold, whatever the endpoint makes of them.
//!
//! Endpoints that speak S3 obey a condition on one request and ignore it on another, and a
//! request that succeeds does not tell which. So each kind is tried on objects of our own before
//! it is first relied on ([`probe`]), and what was found is remembered ([`verdicts`]). Where a
//! condition means nothing, the object is asked for just before the request instead, which
//! leaves a gap of one round trip.

mod copy;
mod probe;
#[cfg(test)]
mod tests;
mod verdicts;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::uploads::UploadLog;
use super::{
    Body, Compared, Condition, ConditionKind, CopySource, ListPage, ListRequest, Origin,
    OriginError, Part, PartKind, PendingUpload, Stored, UploadBody, WriteIntent,
};
use crate::model::key::{DirPrefix, PROBE_COPY_NAME, PROBE_NAME};
use crate::model::version::{BucketId, ObjectInfo, Version};
use probe::Prober;
use verdicts::Known;
pub use verdicts::{MemoryVerdicts, Question, Verdict, Verdicts};

/// After a probe that proved nothing, how long until the next.
const PROBE_AGAIN: Duration = Duration::from_secs(60);
/// Longest wait for a probe; a writer waits for it.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// Wraps an origin; a write whose condition does not hold fails, as far as the endpoint lets it.
///
/// No request is sent that was not asked for where the condition is [`Condition::Always`], but
/// for the first copy (its source is always a certain version) and the first upload by parts
/// (whether checksums are checked).
pub struct Conditional {
    inner: Arc<dyn Origin>,
    probe_key: String,
    probe_copy_key: String,
    verdicts: Arc<dyn Verdicts>,
    /// Knows of the uploads of copies and probes.
    uploads: Arc<dyn UploadLog>,
    state: Mutex<State>,
    /// Held while the endpoint is asked: the objects of a probe are there once.
    probing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    known: Known,
    /// When something was asked in vain.
    unanswered: HashMap<Question, Instant>,
}

/// How a condition is seen to.
enum Means {
    /// By sending it.
    Send(Condition),
    /// By asking for the object before the request.
    Ask,
}

impl Conditional {
    /// Probes below `prefix`; keeps what it learns in `verdicts`, and remembers uploads of its own
    /// in `uploads`.
    pub fn new(
        inner: Arc<dyn Origin>,
        prefix: &DirPrefix,
        verdicts: Arc<dyn Verdicts>,
        uploads: Arc<dyn UploadLog>,
    ) -> Self {
        Self {
            inner,
            probe_key: prefix.key_of(PROBE_NAME),
            probe_copy_key: prefix.key_of(PROBE_COPY_NAME),
            verdicts,
            uploads,
            // What is kept is loaded before anything is asked.
            state: Mutex::default(),
            probing: tokio::sync::Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn learn(&self, question: Question, verdict: Verdict) {
        if !verdict.is_obeyed() {
            tracing::warn!(
                ?question,
                ?verdict,
                "the endpoint does not do what S3 does; checks before and after requests stand in"
            );
        }
        let others = Known::load(&*self.verdicts, self.inner.bucket_id()).await;
        let (mut state, now) = (self.state(), SystemTime::now());
        state.known.note(question, verdict, now);
        state.known.add(others, now);
        state.known.store(&*self.verdicts, self.inner.bucket_id());
    }

    /// Takes over what other mounts of the bucket have learnt since.
    async fn learn_from_others(&self) {
        let known = Known::load(&*self.verdicts, self.inner.bucket_id()).await;
        self.state().known.add(known, SystemTime::now());
    }

    /// What is known, or was asked in vain a short time ago.
    fn remembered(&self, question: Question, newer_than: Duration) -> Option<Option<Verdict>> {
        let state = self.state();
        if let Some((verdict, age)) = state.known.get(question, SystemTime::now())
            && age < newer_than
        {
            return Some(Some(verdict));
        }
        let asked = state.unanswered.get(&question)?;
        (asked.elapsed() < PROBE_AGAIN).then_some(None)
    }

    /// What the endpoint does; asked where it is not known. `None`: it could not be found out;
    /// then the condition is sent and the answer believed.
    async fn verdict(&self, question: Question) -> Option<Verdict> {
        self.verdict_newer_than(question, Duration::MAX).await
    }

    async fn verdict_newer_than(&self, question: Question, age: Duration) -> Option<Verdict> {
        if let Some(verdict) = self.remembered(question, age) {
            return verdict;
        }
        let _probing = self.probing.lock().await;
        self.learn_from_others().await;
        if let Some(verdict) = self.remembered(question, age) {
            return verdict;
        }
        let prober = Prober {
            origin: &*self.inner,
            uploads: &*self.uploads,
            key: &self.probe_key,
            copy_key: &self.probe_copy_key,
        };
        let asked = tokio::time::timeout(PROBE_DEADLINE, prober.ask(question));
        match asked.await.unwrap_or(Err(OriginError::TimedOut)) {
            Ok(verdict) => {
                self.learn(question, verdict).await;
                Some(verdict)
            }
            Err(error) => {
                tracing::debug!(?question, %error, "the endpoint could not be asked");
                self.state().unanswered.insert(question, Instant::now());
                None
            }
        }
    }

    /// Sees to it that bodies are guarded, whether or not the endpoint knows CRC32C.
    async fn guard_bodies(&self) {
        if self.verdict(Question::Checksums).await == Some(Verdict::Ignored) {
            self.inner.doubt_checksums();
        }
    }

    async fn means(&self, kind: Option<ConditionKind>, condition: &Condition) -> Means {
        let Some(kind) = kind else { return Means::Send(condition.clone()) };
        // A weak tag holds in no header (RFC 9110, section 13.1.1).
        if matches!(condition, Condition::Matches(etag) if !etag.is_strong()) {
            return Means::Ask;
        }
        match self.verdict(Question::Condition(kind)).await {
            Some(Verdict::Ignored | Verdict::Refused) => Means::Ask,
            Some(Verdict::ObeyedBare) => Means::Send(condition.bare()),
            Some(Verdict::Obeyed) | None => Means::Send(condition.clone()),
        }
    }

    /// What is there now.
    async fn present(&self, key: &str) -> Result<Option<ObjectInfo>, OriginError> {
        match self.inner.head(key).await {
            Ok(info) => Ok(Some(info)),
            Err(OriginError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn holds(&self, key: &str, condition: &Condition) -> Result<bool, OriginError> {
        Ok(condition.holds_for(self.present(key).await?.as_ref()))
    }

    /// Sends a request with its condition, or sees to the condition by other means.
    async fn enforce<'a, T>(
        &'a self,
        kind: Option<ConditionKind>,
        key: &str,
        condition: &Condition,
        send: impl Fn(Condition) -> BoxFuture<'a, Result<T, OriginError>> + Send + Sync,
    ) -> Result<T, OriginError> {
        if let Means::Send(sent) = self.means(kind, condition).await {
            let error = match send(sent).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            match (error, kind) {
                (OriginError::Unsupported(_), Some(kind)) => {
                    self.learn(Question::Condition(kind), Verdict::Refused).await;
                }
                // Refused although it holds: in this form the endpoint does not know it.
                (OriginError::Conflict, Some(kind))
                    if self.holds(key, condition).await.unwrap_or(false) =>
                {
                    let verdict = self.verdict_newer_than(Question::Condition(kind), PROBE_AGAIN);
                    if verdict.await == Some(Verdict::ObeyedBare) {
                        return send(condition.bare()).await;
                    }
                }
                (error, _) => return Err(error),
            }
        }
        if !self.holds(key, condition).await? {
            return Err(OriginError::Conflict);
        }
        send(Condition::Always).await
    }
}

#[async_trait]
impl Origin for Conditional {
    fn bucket_id(&self) -> &BucketId {
        self.inner.bucket_id()
    }

    fn doubt_checksums(&self) {
        self.inner.doubt_checksums();
    }

    fn credentials_changed(&self) {
        self.inner.credentials_changed();
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, OriginError> {
        self.inner.head(key).await
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        self.inner.get(key, version, range).await
    }

    async fn allows(&self, key: &str, version: &Version) -> Result<(), OriginError> {
        self.inner.allows(key, version).await
    }

    fn may_fetch_ahead(&self, key: &str, version: &Version) -> bool {
        self.inner.may_fetch_ahead(key, version)
    }

    fn judge(&self, key: &str, version: &Version, compared: Compared) -> bool {
        self.inner.judge(key, version, compared)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, OriginError> {
        self.inner.list(request).await
    }

    async fn put(
        &self,
        key: &str,
        body: UploadBody,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let kind = ConditionKind::of_put(&write.condition);
        if kind.is_some() && !body.is_empty() {
            self.guard_bodies().await;
        }
        let owned_key = key.to_owned();
        let send = |condition| {
            let (key, body) = (owned_key.clone(), body.clone());
            let write = WriteIntent { condition, writer: write.writer.clone() };
            async move { self.inner.put(&key, body, &write).await }.boxed()
        };
        self.enforce(kind, key, &write.condition, send).await
    }

    async fn create_upload(
        &self,
        key: &str,
        writer: &str,
        parts: PartKind,
    ) -> Result<String, OriginError> {
        let create = self.inner.create_upload(key, writer, parts);
        // Needed for its parts only.
        let (id, ()) = tokio::join!(create, self.guard_bodies());
        id
    }

    async fn create_copy(&self, source: &CopySource, to: &str) -> Result<String, OriginError> {
        self.inner.create_copy(source, to).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: u32,
        body: UploadBody,
    ) -> Result<Part, OriginError> {
        self.inner.upload_part(key, upload_id, number, body).await
    }

    async fn copy_part(
        &self,
        source: &CopySource,
        range: Range<u64>,
        key: &str,
        upload_id: &str,
        number: u32,
    ) -> Result<Part, OriginError> {
        copy::copy_part(self, source, range, key, upload_id, number).await
    }

    async fn expect_completion(&self, condition: &Condition) {
        if let Some(kind) = ConditionKind::of_complete(condition) {
            self.verdict(Question::Condition(kind)).await;
        }
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let kind = ConditionKind::of_complete(&write.condition);
        let owned = (key.to_owned(), upload_id.to_owned(), parts.to_vec());
        let send = |condition| {
            let (key, upload_id, parts) = owned.clone();
            let write = WriteIntent { condition, writer: write.writer.clone() };
            async move { self.inner.complete_upload(&key, &upload_id, &parts, &write).await }
                .boxed()
        };
        self.enforce(kind, key, &write.condition, send).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), OriginError> {
        self.inner.abort_upload(key, upload_id).await
    }

    async fn list_uploads(&self, key: &str) -> Result<Vec<PendingUpload>, OriginError> {
        self.inner.list_uploads(key).await
    }

    async fn delete(&self, key: &str, condition: &Condition) -> Result<(), OriginError> {
        let kind = match condition {
            Condition::Matches(_) => Some(ConditionKind::DeleteMatches),
            _ => None,
        };
        let owned_key = key.to_owned();
        let send = |condition: Condition| {
            let key = owned_key.clone();
            async move { self.inner.delete(&key, &condition).await }.boxed()
        };
        self.enforce(kind, key, condition, send).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        to: &str,
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        copy::copy(self, source, to, condition).await
    }
}
