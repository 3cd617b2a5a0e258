//! Counts and times every request to an origin.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;

use super::{
    Body, Condition, CopySource, ListPage, ListRequest, Origin, OriginError, Part, PartKind,
    PendingUpload, Stored, UploadBody, WriteIntent,
};
use crate::metrics::Metrics;
use crate::model::version::{BucketId, ObjectInfo, Version};

/// What an origin said last, and how much it gave.
#[derive(Default)]
pub struct LastAnswer {
    problem: Mutex<Option<Problem>>,
    fetched_bytes: AtomicU64,
}

struct Problem {
    error: OriginError,
    /// What the bucket refuses, an object may allow.
    only_bucket_clears: bool,
}

/// What a request is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The bucket: listings.
    Bucket,
    /// One object; a refusal says nothing about others.
    Object,
}

impl LastAnswer {
    /// Why the volume as a whole is not served, if its origin's last answer says so.
    pub fn problem(&self) -> Option<OriginError> {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        problem.as_ref().map(|problem| problem.error.clone())
    }

    /// Bytes of objects that came from it.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes.load(Ordering::Relaxed)
    }

    /// Notes that the bucket was given up on, with this error.
    pub fn failed(&self, error: OriginError) {
        self.note::<()>(Scope::Bucket, &Err(error));
    }

    fn note<T>(&self, scope: Scope, result: &Result<T, OriginError>) {
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let error = match result {
            Ok(_) => {
                problem.take_if(|problem| scope == Scope::Bucket || !problem.only_bucket_clears);
                return;
            }
            Err(error @ OriginError::Denied(_)) => {
                if scope == Scope::Object && !error.is_about_account() {
                    return;
                }
                error
            }
            Err(
                error @ (OriginError::NoCredentials(_)
                | OriginError::NoSuchBucket
                | OriginError::WrongRegion(_)
                | OriginError::NoSpace(_)
                | OriginError::NotS3(_)
                | OriginError::Unavailable(_)
                | OriginError::Unreachable(_)
                | OriginError::TimedOut),
            ) => error,
            // About one object or one request: it says nothing about the rest. A HEAD in a
            // bucket that is gone, too, says no more than "not found".
            Err(_) => return,
        };
        let only_bucket_clears =
            matches!(error, OriginError::Denied(_)) && !error.is_about_account();
        *problem = Some(Problem { error: error.clone(), only_bucket_clears });
    }
}

/// Wraps an origin; GETs are timed to their first byte.
pub struct Measured {
    inner: Arc<dyn Origin>,
    metrics: Arc<Metrics>,
    last: Arc<LastAnswer>,
}

impl Measured {
    /// Counts into `metrics`.
    pub fn new(inner: Arc<dyn Origin>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics, last: Arc::default() }
    }

    /// What the origin said last, from now on.
    pub fn last_answer(&self) -> Arc<LastAnswer> {
        self.last.clone()
    }

    async fn timed<T>(
        &self,
        op: &str,
        request: impl Future<Output = Result<T, OriginError>>,
    ) -> Result<T, OriginError> {
        let start = Instant::now();
        let result = request.await;
        let status = match &result {
            Ok(_) => "ok",
            Err(OriginError::NotFound) => "not-found",
            Err(OriginError::Changed | OriginError::Conflict) => "condition",
            Err(OriginError::Denied(_) | OriginError::NoCredentials(_)) => "denied",
            Err(error) if error.is_transient() => "transient",
            Err(_) => "error",
        };
        self.metrics.s3(op, status, start.elapsed());
        let scope = match op {
            "ListObjectsV2" | "ListMultipartUploads" => Scope::Bucket,
            _ => Scope::Object,
        };
        self.last.note(scope, &result);
        result
    }
}

#[async_trait]
impl Origin for Measured {
    fn bucket_id(&self) -> &BucketId {
        self.inner.bucket_id()
    }

    fn doubt_checksums(&self) {
        self.inner.doubt_checksums();
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, OriginError> {
        self.timed("HeadObject", self.inner.head(key)).await
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        let mut body = self.timed("GetObject", self.inner.get(key, version, range)).await?;
        let (last, metrics) = (self.last.clone(), self.metrics.clone());
        let count = move |piece: &Result<Bytes, OriginError>| {
            let bytes = piece.as_ref().map_or(0, |piece| piece.len() as u64);
            last.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
            metrics.origin_fetched_bytes.inc_by(bytes);
        };
        body.pieces = body.pieces.inspect(count).boxed();
        Ok(body)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, OriginError> {
        self.timed("ListObjectsV2", self.inner.list(request)).await
    }

    async fn put(
        &self,
        key: &str,
        body: UploadBody,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        self.timed("PutObject", self.inner.put(key, body, write)).await
    }

    async fn create_upload(
        &self,
        key: &str,
        writer: &str,
        parts: PartKind,
    ) -> Result<String, OriginError> {
        self.timed("CreateMultipartUpload", self.inner.create_upload(key, writer, parts)).await
    }

    async fn create_copy(&self, source: &CopySource, to: &str) -> Result<String, OriginError> {
        self.timed("CreateMultipartUpload", self.inner.create_copy(source, to)).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: u32,
        body: UploadBody,
    ) -> Result<Part, OriginError> {
        self.timed("UploadPart", self.inner.upload_part(key, upload_id, number, body)).await
    }

    async fn copy_part(
        &self,
        source: &CopySource,
        range: Range<u64>,
        key: &str,
        upload_id: &str,
        number: u32,
    ) -> Result<Part, OriginError> {
        let request = self.inner.copy_part(source, range, key, upload_id, number);
        self.timed("UploadPartCopy", request).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let request = self.inner.complete_upload(key, upload_id, parts, write);
        self.timed("CompleteMultipartUpload", request).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), OriginError> {
        self.timed("AbortMultipartUpload", self.inner.abort_upload(key, upload_id)).await
    }

    async fn list_uploads(&self, key: &str) -> Result<Vec<PendingUpload>, OriginError> {
        self.timed("ListMultipartUploads", self.inner.list_uploads(key)).await
    }

    async fn delete(&self, key: &str, condition: &Condition) -> Result<(), OriginError> {
        self.timed("DeleteObject", self.inner.delete(key, condition)).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        to: &str,
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        self.timed("CopyObject", self.inner.copy(source, to, condition)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_object_is_no_problem_of_the_volume_and_clears_none() {
        let last = LastAnswer::default();
        let denied = |code: &str| Err::<(), _>(OriginError::Denied(code.into()));
        last.note(Scope::Object, &denied("AccessDenied"));
        assert!(last.problem().is_none());
        last.note(Scope::Bucket, &denied("AccessDenied"));
        assert!(last.problem().is_some());
        last.note(Scope::Object, &Ok(()));
        assert!(last.problem().is_some(), "an object cleared what the bucket refuses");
        last.note(Scope::Bucket, &Ok(()));
        assert!(last.problem().is_none());
        last.note(Scope::Object, &denied("ExpiredToken"));
        assert!(last.problem().is_some());
        last.note(Scope::Object, &Ok(()));
        assert!(last.problem().is_none());
        last.note(Scope::Object, &Err::<(), _>(OriginError::TimedOut));
        assert!(last.problem().is_some());
        last.note(Scope::Object, &Err::<(), _>(OriginError::NotFound));
        assert!(last.problem().is_some());
    }
}
