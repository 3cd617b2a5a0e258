//! An origin that misbehaves on command, around another one.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use super::{
    Body, Condition, CopySource, ListPage, ListRequest, Origin, OriginError, Part, PartKind,
    PendingUpload, Stored, UploadBody, WriteIntent,
};
use crate::model::version::{BucketId, ObjectInfo, Version};

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
    /// Beginning of an upload.
    Create,
    /// Upload of a part.
    UploadPart,
    /// Copy of a range into a part.
    CopyPart,
    /// Completion of an upload.
    Complete,
    /// Abort of an upload.
    Abort,
    /// A listing of uploads.
    ListUploads,
    /// DELETE.
    Delete,
    /// Copy of an object.
    Copy,
    /// Whatever comes; in plans alone.
    Any,
}

impl Op {
    fn covers(self, op: Self) -> bool {
        self == op || self == Self::Any
    }
}

/// What happens to the request. One that waits may be given up by dropping its future.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It fails and has no effect.
    Fail(OriginError),
    /// It takes effect, and its reply is lost.
    LoseReply(OriginError),
    /// It is late.
    Delay(Duration),
    /// It waits before it takes effect, until the gate opens.
    Stall(Gate),
    /// It takes effect, and its reply waits until the gate opens.
    StallReply(Gate),
    /// The body ends after so many bytes, without an error.
    Truncate(usize),
    /// One bit of the body's first byte is wrong.
    FlipBit,
    /// The page is empty; what it should hold comes with the next.
    EmptyPage,
}

/// Where requests wait; shared by its clones.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<GateState>>);

#[derive(Clone, Copy, Debug, Default)]
struct GateState {
    open: bool,
    /// How many requests have come to it so far.
    arrived: usize,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A closed one.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(GateState::default())))
    }

    /// Lets through whoever waits, and whoever comes.
    pub fn open(&self) {
        self.0.send_modify(|state| state.open = true);
    }

    /// Waits until a request has come to it.
    pub async fn reached(&self) {
        self.reached_by(1).await;
    }

    /// Waits until so many requests have come to it.
    pub async fn reached_by(&self, requests: usize) {
        // The sender is held here, so that the wait ends by its condition alone.
        let _ = self.0.subscribe().wait_for(|state| state.arrived >= requests).await;
    }

    async fn pass(&self) {
        self.0.send_modify(|state| state.arrived += 1);
        let _ = self.0.subscribe().wait_for(|state| state.open).await;
    }
}

/// Wraps an origin; injects faults.
pub struct Faulty {
    inner: Arc<dyn Origin>,
    plan: Mutex<Plan>,
}

#[derive(Default)]
struct Plan {
    /// For the next request of each kind, one after the other.
    next: VecDeque<(Op, Fault)>,
    /// How many requests of the kind come before the one that is hit.
    counted: Vec<(Op, usize, Fault)>,
    always: Option<OriginError>,
}

impl Plan {
    fn take(&mut self, op: Op) -> Option<Fault> {
        let of_op = |counted: &&mut (Op, usize, Fault)| counted.0.covers(op) && counted.1 > 0;
        let due = self.counted.iter().position(|(of, before, _)| of.covers(op) && *before == 0);
        self.counted.iter_mut().filter(of_op).for_each(|(_, before, _)| *before -= 1);
        if let Some(due) = due {
            return Some(self.counted.remove(due).2);
        }
        let at = self.next.iter().position(|(of, _)| of.covers(op));
        at.and_then(|at| self.next.remove(at)).map(|(_, fault)| fault)
    }
}

impl Faulty {
    /// Behaves like `inner` until told otherwise.
    pub fn new(inner: Arc<dyn Origin>) -> Self {
        Self { inner, plan: Mutex::default() }
    }

    /// The next request of kind `op` that nothing else was planned for meets this fault.
    pub fn inject_once(&self, op: Op, fault: Fault) {
        self.plan().next.push_back((op, fault));
    }

    /// The `n`th request of kind `op` from now on meets this fault; 1 is the next.
    pub fn inject_nth(&self, op: Op, n: usize, fault: Fault) {
        self.plan().counted.push((op, n.saturating_sub(1), fault));
    }

    /// Forgets what was planned for requests to come.
    pub fn forget_faults(&self) {
        *self.plan() = Plan::default();
    }

    /// Every request fails like this until told otherwise.
    pub fn fail_all(&self, error: Option<OriginError>) {
        self.plan().always = error;
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next fault for `op`, having served what comes before the request's effect.
    async fn meet(&self, op: Op) -> Result<Option<Fault>, OriginError> {
        let fault = {
            let mut plan = self.plan();
            if let Some(error) = plan.always.clone() {
                return Err(error);
            }
            plan.take(op)
        };
        match fault {
            Some(Fault::Fail(error)) => return Err(error),
            Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
            Some(Fault::Stall(gate)) => gate.pass().await,
            other => return Ok(other),
        }
        Ok(None)
    }

    async fn around<T>(
        &self,
        op: Op,
        request: impl Future<Output = Result<T, OriginError>> + Send,
    ) -> Result<T, OriginError> {
        let fault = self.meet(op).await?;
        after(fault, request.await).await
    }
}

/// What a fault makes of a reply.
async fn after<T>(fault: Option<Fault>, result: Result<T, OriginError>) -> Result<T, OriginError> {
    match fault {
        Some(Fault::LoseReply(error)) => Err(error),
        Some(Fault::StallReply(gate)) => {
            gate.pass().await;
            result
        }
        _ => result,
    }
}

/// Ends the body after `left` bytes.
fn truncated(mut body: Body, mut left: usize) -> Body {
    let cut = move |piece: Result<Bytes, OriginError>| {
        let mut piece = piece?;
        piece.truncate(left);
        left -= piece.len();
        Ok(piece)
    };
    body.pieces = body.pieces.map(cut).boxed();
    body
}

async fn with_flipped_bit(mut body: Body) -> Result<Body, OriginError> {
    let first = body.pieces.next().await.transpose()?.unwrap_or_default();
    let mut damaged = first.to_vec();
    if let Some(byte) = damaged.first_mut() {
        *byte ^= 1;
    }
    let head = stream::iter([Ok(Bytes::from(damaged))]);
    body.pieces = head.chain(body.pieces).boxed();
    Ok(body)
}

#[async_trait]
impl Origin for Faulty {
    fn bucket_id(&self) -> &BucketId {
        self.inner.bucket_id()
    }

    fn doubt_checksums(&self) {
        self.inner.doubt_checksums();
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, OriginError> {
        self.around(Op::Head, self.inner.head(key)).await
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        let fault = self.meet(Op::Get).await?;
        let body = self.inner.get(key, version, range).await?;
        match fault {
            Some(Fault::Truncate(at)) => return Ok(truncated(body, at)),
            Some(Fault::FlipBit) => return with_flipped_bit(body).await,
            Some(Fault::LoseReply(error)) => return Err(error),
            Some(Fault::StallReply(gate)) => gate.pass().await,
            _ => {}
        }
        Ok(body)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, OriginError> {
        match self.meet(Op::List).await? {
            Some(Fault::EmptyPage) => {
                let next = Some(request.token.clone().unwrap_or_default());
                Ok(ListPage { next, ..ListPage::default() })
            }
            fault => after(fault, self.inner.list(request).await).await,
        }
    }

    async fn put(
        &self,
        key: &str,
        body: UploadBody,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        self.around(Op::Put, self.inner.put(key, body, write)).await
    }

    async fn create_upload(
        &self,
        key: &str,
        writer: &str,
        parts: PartKind,
    ) -> Result<String, OriginError> {
        self.around(Op::Create, self.inner.create_upload(key, writer, parts)).await
    }

    async fn create_copy(&self, source: &CopySource, to: &str) -> Result<String, OriginError> {
        self.around(Op::Create, self.inner.create_copy(source, to)).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: u32,
        body: UploadBody,
    ) -> Result<Part, OriginError> {
        self.around(Op::UploadPart, self.inner.upload_part(key, upload_id, number, body)).await
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
        self.around(Op::CopyPart, request).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let request = self.inner.complete_upload(key, upload_id, parts, write);
        self.around(Op::Complete, request).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), OriginError> {
        self.around(Op::Abort, self.inner.abort_upload(key, upload_id)).await
    }

    async fn list_uploads(&self, key: &str) -> Result<Vec<PendingUpload>, OriginError> {
        self.around(Op::ListUploads, self.inner.list_uploads(key)).await
    }

    async fn delete(&self, key: &str, condition: &Condition) -> Result<(), OriginError> {
        self.around(Op::Delete, self.inner.delete(key, condition)).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        to: &str,
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        self.around(Op::Copy, self.inner.copy(source, to, condition)).await
    }
}
