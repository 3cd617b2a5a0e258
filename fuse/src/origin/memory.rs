//! An origin in memory, for tests: what S3 promises, without a network.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, Range};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use md5::{Digest, Md5};

use super::{
    Body, Condition, CopySource, ListPage, ListRequest, Origin, OriginError, Part, PendingUpload,
    Stored, UploadBody, WriteIntent,
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
    begun: SystemTime,
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

    /// All that is in the bucket.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        let state = self.lock();
        state.objects.iter().map(|(key, object)| (key.clone(), object.bytes.clone())).collect()
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
        if !holds(&write.condition, state.objects.get(key)) {
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

fn holds(condition: &Condition, present: Option<&Object>) -> bool {
    match (condition, present) {
        (Condition::Always, _) | (Condition::Absent, None) => true,
        (Condition::Absent, Some(_)) | (Condition::Matches(_), None) => false,
        (Condition::Matches(etag), Some(object)) => object.etag == *etag,
    }
}

fn part_etag(bytes: &[u8]) -> String {
    format!("\"{:08x}\"", crc32c::crc32c(bytes))
}

fn bytes_of(body: UploadBody) -> Result<Bytes, OriginError> {
    match body {
        UploadBody::Memory { bytes, .. } => Ok(bytes),
        UploadBody::File { file, offset, len, .. } => {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, offset)
                .map_err(|e| OriginError::Invalid(format!("staging file: {e}")))?;
            Ok(bytes.into())
        }
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
        body: UploadBody,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        self.store(key, bytes_of(body)?, write)
    }

    async fn create_upload(&self, key: &str, _writer: &str) -> Result<String, OriginError> {
        let id = format!("upload-{}", self.next_upload.fetch_add(1, Ordering::Relaxed));
        let upload =
            Upload { key: key.to_owned(), begun: SystemTime::now(), parts: BTreeMap::new() };
        self.lock().uploads.insert(id.clone(), upload);
        Ok(id)
    }

    async fn create_copy(&self, source: &CopySource, to: &str) -> Result<String, OriginError> {
        self.create_upload(to, &self.head(&source.key).await?.writer.unwrap_or_default()).await
    }

    async fn upload_part(
        &self,
        _key: &str,
        upload_id: &str,
        number: u32,
        body: UploadBody,
    ) -> Result<Part, OriginError> {
        let bytes = bytes_of(body)?;
        let mut state = self.lock();
        let upload = state.uploads.get_mut(upload_id).ok_or(OriginError::NoSuchUpload)?;
        let part = Part { number, etag: part_etag(&bytes), checksum: None };
        upload.parts.insert(number, bytes);
        Ok(part)
    }

    async fn copy_part(
        &self,
        source: &CopySource,
        range: Range<u64>,
        key: &str,
        upload_id: &str,
        number: u32,
    ) -> Result<Part, OriginError> {
        let mut body = self.get(&source.key, &source.etag, range).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = body.pieces.next().await {
            bytes.extend_from_slice(&piece?);
        }
        self.upload_part(key, upload_id, number, UploadBody::of(bytes)).await
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
                    Some(body) if part_etag(body) == part.etag => {
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
        self.lock().uploads.remove(upload_id).map(|_| ()).ok_or(OriginError::NoSuchUpload)
    }

    async fn list_uploads(&self, key: &str) -> Result<Vec<PendingUpload>, OriginError> {
        let state = self.lock();
        let of_key = state.uploads.iter().filter(|(_, upload)| upload.key == key);
        Ok(of_key.map(|(id, u)| PendingUpload { id: id.clone(), begun: u.begun }).collect())
    }

    async fn delete(&self, key: &str, condition: &Condition) -> Result<(), OriginError> {
        let mut state = self.lock();
        match (condition, state.objects.get(key)) {
            (Condition::Matches(_), None) => return Err(OriginError::NotFound),
            (Condition::Matches(etag), Some(object)) if object.etag != *etag => {
                return Err(OriginError::Conflict);
            }
            (Condition::Absent, _) => return Err(OriginError::Invalid("If-None-Match".into())),
            _ => state.objects.remove(key),
        };
        Ok(())
    }

    async fn copy(
        &self,
        source: &CopySource,
        to: &str,
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        let mut state = self.lock();
        let object = state.objects.get(&source.key).cloned().ok_or(OriginError::Changed)?;
        if object.etag != source.etag {
            return Err(OriginError::Changed);
        }
        if !holds(condition, state.objects.get(to)) {
            return Err(OriginError::Conflict);
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
