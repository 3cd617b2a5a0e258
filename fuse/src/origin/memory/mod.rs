//! An origin in memory, for tests: what S3 promises, without a network, or what its look-alikes
//! do instead.

mod behaviour;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

pub use behaviour::{Behaviour, Obedience};
use state::{Object, State, Upload, bytes_of};

use super::{
    Body, Condition, ConditionKind, CopySource, ListPage, ListRequest, Origin, OriginError, Part,
    PartKind, PendingUpload, Stored, UploadBody, WriteIntent,
};
use crate::model::version::{BucketId, ETag, ObjectInfo, Version};

/// Size of the pieces of a body, in bytes.
const PIECE: usize = 16 * 1024;

/// A bucket held in memory.
pub struct MemoryOrigin {
    id: BucketId,
    state: Mutex<State>,
    next_upload: AtomicU64,
    /// Bytes of bodies that came.
    received: AtomicU64,
}

impl MemoryOrigin {
    /// An empty bucket on an endpoint that behaves as S3 does.
    pub fn new(bucket: &str) -> Self {
        Self::at("memory://", bucket)
    }

    /// Like [`MemoryOrigin::new`], on an endpoint of this URL.
    pub fn at(endpoint: &str, bucket: &str) -> Self {
        Self {
            id: BucketId::new(endpoint, bucket),
            state: Mutex::default(),
            next_upload: AtomicU64::new(1),
            received: AtomicU64::new(0),
        }
    }

    /// Behaves like this from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.lock().behaviour = behaviour;
    }

    /// Stores an object as somebody else would.
    pub fn insert(&self, key: &str, bytes: impl Into<Bytes>) -> ETag {
        let object = Object::whole(bytes.into(), None);
        let etag = object.etag.clone();
        self.lock().objects.insert(key.into(), object);
        etag
    }

    /// As [`MemoryOrigin::insert`], where listings tell of what was there before still.
    pub fn insert_unlisted(&self, key: &str, bytes: impl Into<Bytes>) -> ETag {
        let mut state = self.lock();
        let object = Object::whole(bytes.into(), None).listed_as(state.objects.get(key));
        let etag = object.etag.clone();
        state.objects.insert(key.into(), object);
        etag
    }

    /// Removes an object as somebody else would.
    pub fn remove(&self, key: &str) {
        self.lock().objects.remove(key);
    }

    /// The bytes of an object.
    pub fn bytes(&self, key: &str) -> Option<Bytes> {
        self.lock().objects.get(key).map(|o| o.bytes.clone())
    }

    /// All that is in the bucket.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        let state = self.lock();
        state.objects.iter().map(|(key, object)| (key.clone(), object.bytes.clone())).collect()
    }

    /// Bytes of all bodies that were sent here.
    pub fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// How many multipart uploads are open.
    pub fn open_uploads(&self) -> usize {
        self.lock().uploads.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, key: &str, writer: Option<Box<str>>, kind: PartKind) -> String {
        let id = format!("upload-{}", self.next_upload.fetch_add(1, Ordering::Relaxed));
        let begun = SystemTime::now();
        let key = key.to_owned();
        let upload = Upload { key, writer, kind, begun, parts: BTreeMap::new() };
        self.lock().uploads.insert(id.clone(), upload);
        id
    }
}

#[async_trait]
impl Origin for MemoryOrigin {
    fn bucket_id(&self) -> &BucketId {
        &self.id
    }

    fn doubt_checksums(&self) {
        self.lock().behaviour.checksums_obeyed = true;
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, OriginError> {
        let state = self.lock();
        let object = state.objects.get(key).ok_or(OriginError::NotFound)?;
        let mut info = state.behaviour.told(object.info());
        info.etag = info.etag.filter(|_| !state.behaviour.tags_untold);
        Ok(info)
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        let object = self.lock().objects.get(key).cloned().ok_or(OriginError::Changed)?;
        if object.etag != version.etag {
            return Err(OriginError::Changed);
        }
        let bytes = slice(&object.bytes, range);
        let pieces: Vec<_> = (0..bytes.len())
            .step_by(PIECE)
            .map(|at| Ok(bytes.slice(at..bytes.len().min(at + PIECE))))
            .collect();
        Ok(Body { etag: object.etag, pieces: stream::iter(pieces).boxed(), borrowed: false })
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, OriginError> {
        Ok(self.lock().page(request))
    }

    async fn put(
        &self,
        key: &str,
        body: UploadBody,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let (crc32c, bytes) = (body.crc32c(), bytes_of(body)?);
        self.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut state = self.lock();
        state.check_body(&bytes, crc32c)?;
        let object = Object::whole(bytes, Some(write.writer.as_str().into()));
        state.put(key, object, ConditionKind::of_put(&write.condition), &write.condition)
    }

    async fn create_upload(
        &self,
        key: &str,
        writer: &str,
        parts: PartKind,
    ) -> Result<String, OriginError> {
        Ok(self.begin(key, Some(writer.into()), parts))
    }

    async fn create_copy(&self, source: &CopySource, to: &str) -> Result<String, OriginError> {
        let writer = match self.lock().objects.get(&source.key) {
            Some(object) => object.writer.clone(),
            None => return Err(OriginError::Changed),
        };
        Ok(self.begin(to, writer, PartKind::Mixed))
    }

    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: u32,
        body: UploadBody,
    ) -> Result<Part, OriginError> {
        let (crc32c, bytes) = (body.crc32c(), bytes_of(body)?);
        self.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut state = self.lock();
        state.check_body(&bytes, crc32c)?;
        state.add_part(key, upload_id, number, bytes)
    }

    async fn copy_part(
        &self,
        source: &CopySource,
        range: Range<u64>,
        key: &str,
        upload_id: &str,
        number: u32,
    ) -> Result<Part, OriginError> {
        let mut state = self.lock();
        let object = state.source(source, ConditionKind::CopyPartSource)?;
        if range.end > object.bytes.len() as u64 {
            return Err(OriginError::Invalid("InvalidRange".into()));
        }
        let bytes = slice(&object.bytes, range);
        if state.upload(key, upload_id)?.kind == PartKind::Sent {
            return Err(OriginError::Invalid("InvalidArgument: checksums were asked for".into()));
        }
        state.add_part(key, upload_id, number, bytes)
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        self.lock().complete(key, upload_id, parts, &write.condition)
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), OriginError> {
        let mut state = self.lock();
        state.upload(key, upload_id)?;
        state.uploads.remove(upload_id);
        Ok(())
    }

    async fn list_uploads(&self, key: &str) -> Result<Vec<PendingUpload>, OriginError> {
        let state = self.lock();
        let of_key = state.uploads.iter().filter(|(_, upload)| upload.key == key);
        Ok(of_key.map(|(id, u)| PendingUpload { id: id.clone(), begun: u.begun }).collect())
    }

    async fn delete(&self, key: &str, condition: &Condition) -> Result<(), OriginError> {
        self.lock().delete(key, condition)
    }

    async fn copy(
        &self,
        source: &CopySource,
        to: &str,
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        self.lock().copy(source, to, condition)
    }
}

/// The bytes of a range, as far as there are any.
fn slice(bytes: &Bytes, range: Range<u64>) -> Bytes {
    let end = (range.end as usize).min(bytes.len());
    bytes.slice((range.start as usize).min(end)..end)
}
