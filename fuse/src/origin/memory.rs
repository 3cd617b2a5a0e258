//! An origin in memory, for tests: what S3 promises, without a network.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use md5::{Digest, Md5};

use super::{
    Body, Condition, ListPage, ListRequest, Origin, OriginError, Part, Stored, UploadBody,
    WriteIntent,
};
use crate::model::version::{BucketId, ETag, ObjectInfo};

/// Size of the pieces of a body.
const PIECE: usize = 16 * 1024;

/// A bucket held in memory.
pub struct MemoryOrigin {
    id: BucketId,
    state: Mutex<State>,
    next_upload: AtomicU64,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: HashMap<String, Upload>,
}

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    etag: ETag,
    mtime: SystemTime,
    writer: Option<Box<str>>,
}

struct Upload {
    key: String,
    parts: BTreeMap<u32, Bytes>,
}

impl MemoryOrigin {
    /// An empty bucket.
    pub fn new(bucket: &str) -> Self {
        Self {
            id: BucketId::new("memory://", bucket),
            state: Mutex::default(),
            next_upload: AtomicU64::new(1),
        }
    }

    /// Stores an object as somebody else would.
    pub fn insert(&self, key: &str, bytes: impl Into<Bytes>) -> ETag {
        let object = Object::new(bytes.into(), None);
        let etag = object.etag.clone();
        self.lock().objects.insert(key.into(), object);
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

    /// How many multipart uploads are open.
    pub fn open_uploads(&self) -> usize {
        self.lock().uploads.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, key: &str, bytes: Bytes, write: &WriteIntent) -> Result<Stored, OriginError> {
        let mut state = self.lock();
        let holds = match (&write.condition, state.objects.get(key)) {
            (Condition::Always, _) | (Condition::Absent, None) => true,
            (Condition::Absent, Some(_)) | (Condition::Matches(_), None) => false,
            (Condition::Matches(etag), Some(object)) => object.etag == *etag,
        };
        if !holds {
            return Err(OriginError::Conflict);
        }
        let object = Object::new(bytes, Some(write.writer.as_str().into()));
        let stored = object.stored();
        state.objects.insert(key.into(), object);
        Ok(stored)
    }
}

impl Object {
    fn new(bytes: Bytes, writer: Option<Box<str>>) -> Self {
        let hex: String = Md5::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        // A text of hex digits is never empty.
        let etag = ETag::new(&hex).unwrap_or_else(|| unreachable!("an MD5 sum has digits"));
        Self { bytes, etag, mtime: SystemTime::now(), writer }
    }

    fn info(&self) -> ObjectInfo {
        ObjectInfo {
            size: self.bytes.len() as u64,
            etag: Some(self.etag.clone()),
            mtime: self.mtime,
            version_id: None,
            writer: self.writer.clone(),
        }
    }

    fn stored(&self) -> Stored {
        Stored { etag: Some(self.etag.clone()), version_id: None, mtime: self.mtime }
    }
}

#[async_trait]
impl Origin for MemoryOrigin {
    fn bucket_id(&self) -> &BucketId {
        &self.id
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, OriginError> {
        self.lock().objects.get(key).map(Object::info).ok_or(OriginError::NotFound)
    }

    async fn get(&self, key: &str, etag: &ETag, range: Range<u64>) -> Result<Body, OriginError> {
        let object = self.lock().objects.get(key).cloned().ok_or(OriginError::Changed)?;
        if object.etag != *etag {
            return Err(OriginError::Changed);
        }
        let end = (range.end as usize).min(object.bytes.len());
        let start = (range.start as usize).min(end);
        let bytes = object.bytes.slice(start..end);
        let pieces: Vec<_> = (0..bytes.len())
            .step_by(PIECE)
            .map(|at| Ok(bytes.slice(at..bytes.len().min(at + PIECE))))
            .collect();
        Ok(Body { etag: object.etag, pieces: stream::iter(pieces).boxed() })
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, OriginError> {
        let state = self.lock();
        let after = request.token.clone().unwrap_or_default();
        let mut page = ListPage::default();
        let mut last = String::new();
        let from = (Bound::Included(request.prefix.clone()), Bound::Unbounded);
        for (key, object) in state.objects.range::<String, _>(from) {
            let Some(rest) = key.strip_prefix(&request.prefix) else { break };
            let group = match rest.find('/') {
                Some(at) if request.delimited => Some(&key[..request.prefix.len() + at + 1]),
                _ => None,
            };
            let shown = group.unwrap_or(key);
            if shown <= after.as_str() || shown == last {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == usize::from(request.max_keys) {
                page.next = Some(last);
                break;
            }
            last = shown.to_owned();
            match group {
                Some(prefix) => page.prefixes.push(prefix.to_owned()),
                None => page.objects.push((key.clone(), object.info())),
            }
        }
        Ok(page)
    }

    async fn put(
        &self,
        key: &str,
        body: Bytes,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        self.store(key, body, write)
    }

    async fn create_upload(&self, key: &str, _writer: &str) -> Result<String, OriginError> {
        let id = format!("upload-{}", self.next_upload.fetch_add(1, Ordering::Relaxed));
        let upload = Upload { key: key.to_owned(), parts: BTreeMap::new() };
        self.lock().uploads.insert(id.clone(), upload);
        Ok(id)
    }

    async fn upload_part(
        &self,
        _key: &str,
        upload_id: &str,
        number: u32,
        body: UploadBody,
    ) -> Result<Part, OriginError> {
        let body = match body {
            UploadBody::Memory { bytes, .. } => bytes,
            UploadBody::File { path, offset, len, .. } => {
                let all = std::fs::read(path).map_err(|e| OriginError::Invalid(e.to_string()))?;
                Bytes::from(all).slice(offset as usize..(offset + len) as usize)
            }
        };
        let mut state = self.lock();
        let upload = state.uploads.get_mut(upload_id).ok_or(OriginError::NoSuchUpload)?;
        let crc32c = crc32c::crc32c(&body);
        upload.parts.insert(number, body);
        Ok(Part { number, etag: format!("\"{crc32c:08x}\""), crc32c })
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let mut bytes = Vec::new();
        {
            let state = self.lock();
            let upload = state.uploads.get(upload_id).ok_or(OriginError::NoSuchUpload)?;
            if upload.key != key {
                return Err(OriginError::NoSuchUpload);
            }
            for part in parts {
                match upload.parts.get(&part.number) {
                    Some(body) if crc32c::crc32c(body) == part.crc32c => {
                        bytes.extend_from_slice(body);
                    }
                    _ => return Err(OriginError::Invalid("InvalidPart".into())),
                }
            }
        }
        let stored = self.store(key, bytes.into(), write)?;
        self.lock().uploads.remove(upload_id);
        Ok(stored)
    }

    async fn abort_upload(&self, _key: &str, upload_id: &str) -> Result<(), OriginError> {
        self.lock().uploads.remove(upload_id);
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<(), OriginError> {
        self.lock().objects.remove(key);
        Ok(())
    }

    async fn copy(
        &self,
        from: &str,
        etag: &ETag,
        _size: u64,
        to: &str,
    ) -> Result<Stored, OriginError> {
        let mut state = self.lock();
        let object = state.objects.get(from).cloned().ok_or(OriginError::Changed)?;
        if object.etag != *etag {
            return Err(OriginError::Changed);
        }
        let copy = Object { mtime: SystemTime::now(), ..object };
        let stored = copy.stored();
        state.objects.insert(to.to_owned(), copy);
        Ok(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn listings_group_and_page_like_s3() {
        let origin = MemoryOrigin::new("b");
        for key in ["a", "d/1", "d/2", "d/e/3", "z"] {
            origin.insert(key, vec![1]);
        }
        let mut seen = Vec::new();
        let mut token = None;
        loop {
            let request =
                ListRequest { prefix: String::new(), delimited: true, token, max_keys: 1 };
            let page = origin.list(&request).await.unwrap();
            seen.extend(page.objects.into_iter().map(|(key, _)| key));
            seen.extend(page.prefixes);
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(seen, ["a", "d/", "z"]);
    }
}
