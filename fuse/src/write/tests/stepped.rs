//! An origin that makes two steps of each request: one before its effect, one before its reply.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use async_trait::async_trait;

use crate::model::version::{BucketId, ObjectInfo, Version};
use crate::origin::faulty::Op;
use crate::origin::{
    Body, Condition, CopySource, ListPage, ListRequest, Origin, OriginError, Part, PartKind,
    PendingUpload, Stored, UploadBody, WriteIntent,
};

/// Makes two steps of each request, and remembers which were begun, of which keys.
pub(super) struct Stepped {
    inner: Arc<dyn Origin>,
    begun: Mutex<Vec<(Op, String)>>,
}

/// Lets whoever polls stop here.
async fn step() {
    let mut stopped = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut stopped, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Stepped {
    pub(super) fn new(inner: Arc<dyn Origin>) -> Self {
        Self { inner, begun: Mutex::default() }
    }

    /// Requests begun since this was asked last.
    pub(super) fn begun(&self) -> Vec<(Op, String)> {
        std::mem::take(&mut *self.begun.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn steps<T>(&self, op: Op, key: &str, request: impl Future<Output = T>) -> T {
        let begun = (op, key.to_owned());
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).push(begun);
        step().await;
        let answer = request.await;
        step().await;
        answer
    }
}

#[async_trait]
impl Origin for Stepped {
    fn doubt_checksums(&self) {
        self.inner.doubt_checksums();
    }

    fn bucket_id(&self) -> &BucketId {
        self.inner.bucket_id()
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, OriginError> {
        self.steps(Op::Head, key, self.inner.head(key)).await
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        self.steps(Op::Get, key, self.inner.get(key, version, range)).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, OriginError> {
        self.steps(Op::List, &request.prefix, self.inner.list(request)).await
    }

    async fn put(
        &self,
        key: &str,
        body: UploadBody,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        self.steps(Op::Put, key, self.inner.put(key, body, write)).await
    }

    async fn create_upload(
        &self,
        key: &str,
        writer: &str,
        parts: PartKind,
    ) -> Result<String, OriginError> {
        self.steps(Op::Create, key, self.inner.create_upload(key, writer, parts)).await
    }

    async fn create_copy(&self, source: &CopySource, to: &str) -> Result<String, OriginError> {
        self.steps(Op::Create, to, self.inner.create_copy(source, to)).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: u32,
        body: UploadBody,
    ) -> Result<Part, OriginError> {
        self.steps(Op::UploadPart, key, self.inner.upload_part(key, upload_id, number, body)).await
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
        self.steps(Op::CopyPart, key, request).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let request = self.inner.complete_upload(key, upload_id, parts, write);
        self.steps(Op::Complete, key, request).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), OriginError> {
        self.steps(Op::Abort, key, self.inner.abort_upload(key, upload_id)).await
    }

    async fn list_uploads(&self, key: &str) -> Result<Vec<PendingUpload>, OriginError> {
        self.steps(Op::ListUploads, key, self.inner.list_uploads(key)).await
    }

    async fn delete(&self, key: &str, condition: &Condition) -> Result<(), OriginError> {
        self.steps(Op::Delete, key, self.inner.delete(key, condition)).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        to: &str,
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        self.steps(Op::Copy, to, self.inner.copy(source, to, condition)).await
    }
}
