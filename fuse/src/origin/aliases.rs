//! Versions that have another tag in listings than everywhere else.
//!
//! Some endpoints list an object under a tag that HEAD, GET and conditions do not know it by: a copy
//! that the server made of an object of several parts, for one (OpenStack Swift). Where a tag is
//! refused, it is found out whether it is such an alias; then the version is meant by its own tag
//! in requests, and shown by it in listings.

mod known;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{
    Body, Compared, Condition, CopySource, ListPage, ListRequest, Origin, OriginError, Part,
    PartKind, PendingUpload, Stored, UploadBody, WriteIntent,
};
use crate::model::version::{BucketId, ETag, ObjectInfo, Version};
use known::Known;

/// A little longer than what times of modification are told in.
const TICK: Duration = Duration::from_millis(1100);
/// How exact the time of modification is that HEAD tells (RFC 9110, section 5.6.7).
const EXACT: Duration = Duration::from_secs(1);
/// A copy may have to learn about its source and about its target.
const WAYS_MAX: u32 = 3;

/// Whether two times of modification can be the same, one of them rounded.
fn is_about(a: SystemTime, b: SystemTime) -> bool {
    a.max(b).duration_since(a.min(b)).is_ok_and(|apart| apart < EXACT)
}

/// Wraps an origin; nobody above meets a tag that only listings tell.
pub struct Aliases {
    inner: Arc<dyn Origin>,
    known: Known,
    tick: Duration,
}

impl Aliases {
    /// Knows of none yet.
    pub fn new(inner: Arc<dyn Origin>) -> Self {
        Self { inner, known: Known::default(), tick: TICK }
    }

    /// What the first listing of an object says of it, if it is there.
    async fn listed(&self, key: &str) -> Option<ObjectInfo> {
        let request =
            ListRequest { prefix: key.into(), delimited: false, token: None, max_keys: 1 };
        // A key comes before all those that it is a prefix of.
        let first = self.inner.list(&request).await.ok()?.objects.into_iter().next()?;
        (first.0 == key).then_some(first.1)
    }

    /// The own tag of the version that listings call `listed`, if that is no tag of its own.
    ///
    /// Two HEADs agree before and after the listing, and on a time of modification that was over when
    /// it was listed: so it was not another version for a moment. That the listing has the same size
    /// and time, too, tells it from one that is late.
    async fn find(&self, key: &str, listed: &ETag) -> Option<ETag> {
        let is_alias = |row: &ObjectInfo| row.etag.as_ref() == Some(listed);
        if listed.is_any() || !self.listed(key).await.is_some_and(|row| is_alias(&row)) {
            return None;
        }
        let before = self.inner.head(key).await.ok()?;
        let own = before.etag.clone().filter(|own| own != listed)?;
        tokio::time::sleep(self.tick).await;
        let row = self.listed(key).await?;
        let after = self.inner.head(key).await.ok()?;
        let is_late = row.size != after.size || !is_about(row.mtime, after.mtime);
        if !is_alias(&row) || after != before || is_late {
            return None;
        }
        tracing::debug!(%listed, %own, "an object has another tag in listings");
        self.known.add(key, row, own.clone());
        Some(own)
    }

    /// After a refusal of a version by this tag: its own tag, where it was an alias that was not known.
    async fn learn(&self, key: &str, refused: &ETag) -> Option<ETag> {
        if self.known.forget_version(key, refused) {
            return None;
        }
        self.find(key, refused).await
    }

    fn source(&self, source: &CopySource) -> CopySource {
        match self.known.own_tag(&source.key, &source.etag) {
            Some(etag) => CopySource { etag, ..source.clone() },
            None => source.clone(),
        }
    }

    fn condition(&self, key: &str, condition: &Condition) -> Condition {
        let Condition::Matches(etag) = condition else { return condition.clone() };
        self.known.own_tag(key, etag).map_or_else(|| condition.clone(), Condition::Matches)
    }

    /// Sends a request about a version by its own tag.
    async fn by_tag<'a, T>(
        &'a self,
        key: &str,
        etag: &ETag,
        send: impl Fn(ETag) -> BoxFuture<'a, Result<T, OriginError>> + Send + Sync,
    ) -> Result<T, OriginError> {
        let own = self.known.own_tag(key, etag);
        let refusal = match send(own.clone().unwrap_or_else(|| etag.clone())).await {
            Err(refusal @ (OriginError::Changed | OriginError::Conflict)) => refusal,
            sent => return sent,
        };
        match self.learn(key, own.as_ref().unwrap_or(etag)).await {
            Some(own) => send(own).await,
            None => Err(refusal),
        }
    }

    /// As [`Aliases::by_tag`], where the version is that of a condition.
    async fn under<'a, T>(
        &'a self,
        key: &str,
        condition: &Condition,
        send: impl Fn(Condition) -> BoxFuture<'a, Result<T, OriginError>> + Send + Sync,
    ) -> Result<T, OriginError> {
        match condition {
            Condition::Matches(etag) => {
                self.by_tag(key, etag, |own| send(Condition::Matches(own))).await
            }
            other => send(other.clone()).await,
        }
    }

    /// What a refused copy is to be tried with instead.
    async fn better(
        &self,
        refusal: &OriginError,
        (source, to, condition): (&CopySource, &str, &Condition),
    ) -> Option<(CopySource, Condition)> {
        match (refusal, condition) {
            (OriginError::Changed, _) => {
                let etag = self.learn(&source.key, &source.etag).await?;
                Some((CopySource { etag, ..source.clone() }, condition.clone()))
            }
            (OriginError::Conflict, Condition::Matches(etag)) => {
                let own = self.learn(to, etag).await?;
                Some((source.clone(), Condition::Matches(own)))
            }
            _ => None,
        }
    }
}

#[async_trait]
impl Origin for Aliases {
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
        let info = self.inner.head(key).await?;
        self.known.see(key, info.etag.as_ref());
        Ok(info)
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        let owned_key = key.to_owned();
        let send = |own: ETag| {
            let (key, range) = (owned_key.clone(), range.clone());
            let version = Version { etag: own, ..*version };
            async move { self.inner.get(&key, &version, range).await }.boxed()
        };
        let body = self.by_tag(key, &version.etag, send).await?;
        // Bytes can be compared with the tag that they came with only.
        let borrowed = body.borrowed && body.etag == version.etag;
        // The version that was asked for, by whichever tag.
        Ok(Body { etag: version.etag.clone(), borrowed, ..body })
    }

    async fn allows(&self, key: &str, version: &Version) -> Result<(), OriginError> {
        let owned_key = key.to_owned();
        let send = |own: ETag| {
            let (key, version) = (owned_key.clone(), Version { etag: own, ..*version });
            async move { self.inner.allows(&key, &version).await }.boxed()
        };
        self.by_tag(key, &version.etag, send).await
    }

    fn may_fetch_ahead(&self, key: &str, version: &Version) -> bool {
        let etag = self.known.own_tag(key, &version.etag).unwrap_or_else(|| version.etag.clone());
        self.inner.may_fetch_ahead(key, &Version { etag, ..*version })
    }

    fn judge(&self, key: &str, version: &Version, compared: Compared) -> bool {
        self.inner.judge(key, version, compared)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, OriginError> {
        let mut page = self.inner.list(request).await?;
        self.known.replace_aliases(&mut page);
        Ok(page)
    }

    async fn put(
        &self,
        key: &str,
        body: UploadBody,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let owned_key = key.to_owned();
        let send = |condition| {
            let (key, body) = (owned_key.clone(), body.clone());
            let write = WriteIntent { condition, writer: write.writer.clone() };
            async move { self.inner.put(&key, body, &write).await }.boxed()
        };
        self.under(key, &write.condition, send).await
    }

    async fn create_upload(
        &self,
        key: &str,
        writer: &str,
        parts: PartKind,
    ) -> Result<String, OriginError> {
        self.inner.create_upload(key, writer, parts).await
    }

    async fn create_copy(&self, source: &CopySource, to: &str) -> Result<String, OriginError> {
        let owned = (source.clone(), to.to_owned());
        let send = |etag| {
            let (source, to) = owned.clone();
            let source = CopySource { etag, ..source };
            async move { self.inner.create_copy(&source, &to).await }.boxed()
        };
        self.by_tag(&source.key, &source.etag, send).await
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
        let owned = (source.clone(), key.to_owned(), upload_id.to_owned());
        let send = |etag| {
            let ((source, key, upload_id), range) = (owned.clone(), range.clone());
            let source = CopySource { etag, ..source };
            async move { self.inner.copy_part(&source, range, &key, &upload_id, number).await }
                .boxed()
        };
        self.by_tag(&source.key, &source.etag, send).await
    }

    async fn expect_completion(&self, condition: &Condition) {
        self.inner.expect_completion(condition).await;
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let owned = (key.to_owned(), upload_id.to_owned(), parts.to_vec());
        let send = |condition| {
            let (key, upload_id, parts) = owned.clone();
            let write = WriteIntent { condition, writer: write.writer.clone() };
            async move { self.inner.complete_upload(&key, &upload_id, &parts, &write).await }
                .boxed()
        };
        self.under(key, &write.condition, send).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), OriginError> {
        self.inner.abort_upload(key, upload_id).await
    }

    async fn list_uploads(&self, key: &str) -> Result<Vec<PendingUpload>, OriginError> {
        self.inner.list_uploads(key).await
    }

    async fn delete(&self, key: &str, condition: &Condition) -> Result<(), OriginError> {
        let owned_key = key.to_owned();
        let send = |condition: Condition| {
            let key = owned_key.clone();
            async move { self.inner.delete(&key, &condition).await }.boxed()
        };
        self.under(key, condition, send).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        to: &str,
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        let (mut source, mut condition) = (self.source(source), self.condition(to, condition));
        for _ in 1..WAYS_MAX {
            let refusal = match self.inner.copy(&source, to, &condition).await {
                Err(refusal) => refusal,
                copied => return copied,
            };
            let object = (&source, to, &condition);
            let Some(better) = self.better(&refusal, object).await else { return Err(refusal) };
            (source, condition) = better;
        }
        self.inner.copy(&source, to, &condition).await
    }
}
