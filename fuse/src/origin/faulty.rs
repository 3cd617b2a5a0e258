//! An origin that misbehaves on command, around another one.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::{
    Body, ListPage, ListRequest, Origin, OriginError, Part, Stored, UploadBody, WriteIntent,
};
use crate::model::version::{BucketId, ETag, ObjectInfo};

/// Which request a fault hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// HEAD.
    Head,
    /// GET.
    Get,
    /// A listing.
    List,
    /// PUT of a whole object.
    Put,
    /// Upload of a part.
    UploadPart,
    /// Completion of an upload.
    Complete,
    /// DELETE.
    Delete,
}

/// What happens to the request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It fails and has no effect.
    Fail(OriginError),
    /// It takes effect, and its reply is lost.
    LoseReply(OriginError),
    /// It is late.
    Delay(Duration),
    /// The body ends after so many bytes, without an error.
    Truncate(usize),
    /// One bit of the body's first byte is wrong.
    FlipBit,
    /// The page is empty; what it should hold comes with the next.
    EmptyPage,
}

/// Wraps an origin; injects faults.
pub struct Faulty {
    inner: Arc<dyn Origin>,
    plan: Mutex<VecDeque<(Op, Fault)>>,
    always: Mutex<Option<OriginError>>,
}

impl Faulty {
    /// Behaves like `inner` until told otherwise.
    pub fn new(inner: Arc<dyn Origin>) -> Self {
        Self { inner, plan: Mutex::default(), always: Mutex::default() }
    }

    /// The next request of kind `op` meets this fault.
    pub fn inject_once(&self, op: Op, fault: Fault) {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).push_back((op, fault));
    }

    /// Every request fails like this until told otherwise.
    pub fn fail_all(&self, error: Option<OriginError>) {
        *self.always.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// Takes the next fault for `op`, having served delays and failures that come first.
    async fn meet(&self, op: Op) -> Result<Option<Fault>, OriginError> {
        if let Some(error) = self.always.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Err(error);
        }
        let fault = {
            let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
            let at = plan.iter().position(|(o, _)| *o == op);
            at.and_then(|at| plan.remove(at)).map(|(_, fault)| fault)
        };
        match fault {
            Some(Fault::Fail(error)) => Err(error),
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                Ok(None)
            }
            other => Ok(other),
        }
    }
}

/// Hands the result on, unless the reply is to be lost.
fn reply<T>(result: Result<T, OriginError>, fault: Option<Fault>) -> Result<T, OriginError> {
    match fault {
        Some(Fault::LoseReply(error)) => Err(error),
        _ => result,
    }
}

#[async_trait]
impl Origin for Faulty {
    fn bucket_id(&self) -> &BucketId {
        self.inner.bucket_id()
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, OriginError> {
        let fault = self.meet(Op::Head).await?;
        reply(self.inner.head(key).await, fault)
    }

    async fn get(&self, key: &str, etag: &ETag, range: Range<u64>) -> Result<Body, OriginError> {
        let fault = self.meet(Op::Get).await?;
        let mut body = self.inner.get(key, etag, range).await?;
        match fault {
            Some(Fault::Truncate(at)) => {
                let mut left = at;
                body.pieces = body
                    .pieces
                    .map(move |piece| {
                        let mut piece = piece?;
                        piece.truncate(left);
                        left -= piece.len();
                        Ok(piece)
                    })
                    .boxed();
            }
            Some(Fault::FlipBit) => {
                let first = body.pieces.next().await.transpose()?.unwrap_or_default();
                let mut damaged = first.to_vec();
                if let Some(byte) = damaged.first_mut() {
                    *byte ^= 1;
                }
                let head = stream::iter([Ok(Bytes::from(damaged))]);
                body.pieces = head.chain(body.pieces).boxed();
            }
            Some(Fault::LoseReply(error)) => return Err(error),
            _ => {}
        }
        Ok(body)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, OriginError> {
        let fault = self.meet(Op::List).await?;
        if let Some(Fault::EmptyPage) = fault {
            let next = Some(request.token.clone().unwrap_or_default());
            return Ok(ListPage { next, ..ListPage::default() });
        }
        reply(self.inner.list(request).await, fault)
    }

    async fn put(
        &self,
        key: &str,
        body: Bytes,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let fault = self.meet(Op::Put).await?;
        reply(self.inner.put(key, body, write).await, fault)
    }

    async fn create_upload(&self, key: &str, writer: &str) -> Result<String, OriginError> {
        self.inner.create_upload(key, writer).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: u32,
        body: UploadBody,
    ) -> Result<Part, OriginError> {
        let fault = self.meet(Op::UploadPart).await?;
        reply(self.inner.upload_part(key, upload_id, number, body).await, fault)
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let fault = self.meet(Op::Complete).await?;
        reply(self.inner.complete_upload(key, upload_id, parts, write).await, fault)
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), OriginError> {
        self.inner.abort_upload(key, upload_id).await
    }

    async fn delete(&self, key: &str) -> Result<(), OriginError> {
        let fault = self.meet(Op::Delete).await?;
        reply(self.inner.delete(key).await, fault)
    }

    async fn copy(
        &self,
        from: &str,
        etag: &ETag,
        size: u64,
        to: &str,
    ) -> Result<Stored, OriginError> {
        self.inner.copy(from, etag, size, to).await
    }
}
