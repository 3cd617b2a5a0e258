//! An S3 server in this process, over a directory: s3s-fs, with what it lacks of S3 added.
//!
//! Added are conditions on GET, tags in listings, markers of empty directories, and listings
//! that look at one directory instead of at the whole bucket.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use tokio::io::AsyncSeekExt;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::io::ReaderStream;

/// Tag of a marker object: MD5 of nothing.
const EMPTY_MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";
/// File that marks a directory for which a marker object was stored.
const MARKER: &str = ".weir-demo-marker";
/// Size of the pieces of a body.
const PIECE: usize = 256 * 1024;

/// A running server; it ends when this is dropped.
pub struct EmbeddedS3 {
    /// Where it listens, on loopback.
    pub address: SocketAddr,
    /// Access key id.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    task: JoinHandle<()>,
}

impl Drop for EmbeddedS3 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl EmbeddedS3 {
    /// Serves `root`, whose folders are the buckets, on a free port of loopback.
    ///
    /// # Errors
    /// When the directory cannot be used or no port is free.
    pub async fn start(root: &Path) -> std::io::Result<Self> {
        let inner = s3s_fs::FileSystem::new(root)
            .map_err(|e| std::io::Error::other(format!("s3s-fs: {e:?}")))?;
        let store = Store { inner, root: root.canonicalize()?, tags: Mutex::default() };
        let access_key = format!("weir{:08x}", rand::random::<u32>());
        let secret_key = format!("{:032x}", rand::random::<u128>());
        let mut builder = S3ServiceBuilder::new(store);
        builder.set_auth(SimpleAuth::from_single(&access_key, secret_key.as_str()));
        let service = builder.build();
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            // Connections end with the server.
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let _ = stream.set_nodelay(true);
                let service = service.clone();
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    let http = auto::Builder::new(TokioExecutor::new());
                    // A client that goes away in the middle is no fault of the server.
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Self { address, access_key, secret_key, task })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

struct Store {
    inner: s3s_fs::FileSystem,
    root: PathBuf,
    /// Tags by path, as of a time and size: s3s-fs keeps each in a file of its own.
    tags: Mutex<HashMap<PathBuf, (SystemTime, u64, ETag)>>,
}

fn with_input<T, U>(req: &S3Request<T>, input: U) -> S3Request<U>
where
    T: Clone,
{
    req.clone().map_input(|_| input)
}

fn head_input(bucket: &str, key: &str) -> S3Result<HeadObjectInput> {
    HeadObjectInput::builder()
        .bucket(bucket.to_owned())
        .key(key.to_owned())
        .build()
        .map_err(|e| s3_error!(e, InvalidArgument))
}

impl Store {
    fn path(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.join(bucket).join(key)
    }

    /// Objects and groups directly in one directory whose names begin with what follows the
    /// last slash of the prefix.
    async fn level<T: Clone>(
        &self,
        req: &S3Request<T>,
        bucket: &str,
        prefix: &str,
    ) -> S3Result<Vec<(String, Option<Object>)>> {
        let (dir, start) = prefix.rsplit_once('/').map_or(("", prefix), |(d, s)| (d, s));
        let path = self.path(bucket, dir);
        let mut found = Vec::new();
        let Ok(mut entries) = tokio::fs::read_dir(&path).await else { return Ok(found) };
        let base = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        while let Some(entry) =
            entries.next_entry().await.map_err(|e| s3_error!(e, InternalError))?
        {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name == MARKER && start.is_empty() {
                found.push((base.clone(), Some(marker(&base))));
            }
            if !name.starts_with(start) || name == MARKER || name.starts_with(".tmp.") {
                continue;
            }
            let key = format!("{base}{name}");
            if entry.file_type().await.is_ok_and(|kind| kind.is_dir()) {
                found.push((format!("{key}/"), None));
            } else if let Ok(object) = self.object(req, bucket, &key).await {
                found.push((key, Some(object)));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    async fn object<T: Clone>(
        &self,
        req: &S3Request<T>,
        bucket: &str,
        key: &str,
    ) -> S3Result<Object> {
        let path = self.path(bucket, key);
        let meta = std::fs::metadata(&path).map_err(|e| s3_error!(e, NoSuchKey))?;
        let modified = meta.modified().map_err(|e| s3_error!(e, InternalError))?;
        let known = {
            let tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
            let tag =
                tags.get(&path).filter(|(time, size, _)| (*time, *size) == (modified, meta.len()));
            tag.map(|(_, _, tag)| tag.clone())
        };
        let e_tag = match known {
            Some(tag) => Some(tag),
            None => {
                let head = with_input(req, head_input(bucket, key)?);
                let tag = self.inner.head_object(head).await?.output.e_tag;
                if let Some(tag) = &tag {
                    let mut tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
                    tags.insert(path, (modified, meta.len(), tag.clone()));
                }
                tag
            }
        };
        Ok(Object {
            key: Some(key.to_owned()),
            size: i64::try_from(meta.len()).ok(),
            e_tag,
            last_modified: Some(Timestamp::from(modified)),
            ..Object::default()
        })
    }

    /// Everything below a prefix, groups resolved.
    async fn below<T: Clone>(
        &self,
        req: &S3Request<T>,
        bucket: &str,
        prefix: &str,
    ) -> S3Result<Vec<(String, Option<Object>)>> {
        let mut out = Vec::new();
        let mut open = vec![prefix.to_owned()];
        while let Some(prefix) = open.pop() {
            for (key, object) in self.level(req, bucket, &prefix).await? {
                match object {
                    Some(object) => out.push((key, Some(object))),
                    None => open.push(key),
                }
            }
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(out)
    }
}

impl Store {
    fn has_marker(&self, bucket: &str, key: &str) -> bool {
        self.path(bucket, key).join(MARKER).exists()
    }

    /// Stores a marker object.
    fn put_marker(&self, bucket: &str, key: &str) -> std::io::Result<()> {
        let path = self.path(bucket, key);
        std::fs::create_dir_all(&path)?;
        std::fs::write(path.join(MARKER), "")
    }

    /// Removes folders that hold nothing any more: in S3 there are none.
    fn prune(&self, bucket: &str, key: &str) {
        let bucket = self.root.join(bucket);
        let path = bucket.join(key);
        for folder in path.ancestors().take_while(|folder| *folder != bucket) {
            // Fails where something is left, and that is the end.
            if folder.is_dir() && std::fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }
}

fn marker(key: &str) -> Object {
    Object {
        key: Some(key.to_owned()),
        size: Some(0),
        e_tag: Some(ETag::Strong(EMPTY_MD5.to_owned())),
        last_modified: Some(Timestamp::from(SystemTime::now())),
        ..Object::default()
    }
}

#[async_trait::async_trait]
impl S3 for Store {
    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        self.inner.create_bucket(req).await
    }

    async fn head_bucket(
        &self,
        req: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.inner.head_bucket(req).await
    }

    async fn head_object(
        &self,
        req: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let (bucket, key) = (&req.input.bucket, &req.input.key);
        let is_dir = self.path(bucket, key).is_dir();
        match (is_dir, key.ends_with('/')) {
            (true, true) if self.has_marker(bucket, key) => {
                let output = HeadObjectOutput {
                    content_length: Some(0),
                    e_tag: Some(ETag::Strong(EMPTY_MD5.to_owned())),
                    last_modified: Some(Timestamp::from(SystemTime::now())),
                    ..HeadObjectOutput::default()
                };
                Ok(S3Response::new(output))
            }
            (false, false) => self.inner.head_object(req).await,
            _ => Err(s3_error!(NoSuchKey)),
        }
    }

    async fn get_object(
        &self,
        req: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = &req.input;
        let head = self.head_object(with_input(&req, head_input(&input.bucket, &input.key)?));
        let head = head.await?.output;
        if let Some(ETagCondition::ETag(wanted)) = &input.if_match
            && head.e_tag.as_ref() != Some(wanted)
        {
            return Err(s3_error!(PreconditionFailed));
        }
        let size = u64::try_from(head.content_length.unwrap_or(0)).unwrap_or(0);
        let range = match &input.range {
            Some(range) => range.check(size)?,
            None => 0..size,
        };
        let failed = |e: std::io::Error| s3_error!(e, NoSuchKey);
        let path = self.path(&input.bucket, &input.key);
        let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
        file.seek(std::io::SeekFrom::Start(range.start)).await.map_err(failed)?;
        let len = range.end - range.start;
        let body = tokio::io::AsyncReadExt::take(file, len);
        let part = input.range.is_some();
        let output = GetObjectOutput {
            body: Some(StreamingBlob::wrap(ReaderStream::with_capacity(body, PIECE))),
            content_length: i64::try_from(len).ok(),
            content_range: part
                .then(|| format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1))),
            e_tag: head.e_tag,
            last_modified: head.last_modified,
            metadata: head.metadata,
            ..GetObjectOutput::default()
        };
        Ok(S3Response::new(output))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = &req.input;
        if !self.root.join(&input.bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let prefix = input.prefix.clone().unwrap_or_default();
        let all = match input.delimiter.as_deref() {
            Some("/") => self.level(&req, &input.bucket, &prefix).await?,
            None => self.below(&req, &input.bucket, &prefix).await?,
            Some(_) => return Err(s3_error!(NotImplemented)),
        };
        let after = input.continuation_token.clone().or_else(|| input.start_after.clone());
        let after = after.unwrap_or_default();
        let max = usize::try_from(input.max_keys.unwrap_or(1000)).unwrap_or(1000).min(1000);
        let mut rest = all.into_iter().filter(|(key, _)| *key > after).peekable();
        let (mut contents, mut common_prefixes, mut last) = (Vec::new(), Vec::new(), None);
        for (key, object) in rest.by_ref().take(max) {
            last = Some(key.clone());
            match object {
                Some(object) => contents.push(object),
                None => common_prefixes.push(CommonPrefix { prefix: Some(key) }),
            }
        }
        let more = rest.peek().is_some();
        let output = ListObjectsV2Output {
            is_truncated: Some(more),
            next_continuation_token: last.filter(|_| more),
            key_count: i32::try_from(contents.len() + common_prefixes.len()).ok(),
            contents: Some(contents),
            common_prefixes: Some(common_prefixes),
            name: Some(input.bucket.clone()),
            prefix: input.prefix.clone(),
            delimiter: input.delimiter.clone(),
            max_keys: input.max_keys,
            ..ListObjectsV2Output::default()
        };
        Ok(S3Response::new(output))
    }

    async fn put_object(
        &self,
        req: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let input = &req.input;
        if !input.key.ends_with('/') {
            return self.inner.put_object(req).await;
        }
        let absent_only = input.if_none_match.as_ref().is_some_and(ETagCondition::is_any);
        if absent_only && self.has_marker(&input.bucket, &input.key) {
            return Err(s3_error!(PreconditionFailed));
        }
        let stored = self.put_marker(&input.bucket, &input.key);
        stored.map_err(|e| s3_error!(e, InternalError))?;
        let e_tag = Some(ETag::Strong(EMPTY_MD5.to_owned()));
        Ok(S3Response::new(PutObjectOutput { e_tag, ..PutObjectOutput::default() }))
    }

    async fn copy_object(
        &self,
        req: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        if req.input.key.ends_with('/') {
            let stored = self.put_marker(&req.input.bucket, &req.input.key);
            stored.map_err(|e| s3_error!(e, InternalError))?;
            let result = CopyObjectResult {
                e_tag: Some(ETag::Strong(EMPTY_MD5.to_owned())),
                ..CopyObjectResult::default()
            };
            let output = CopyObjectOutput {
                copy_object_result: Some(result),
                ..CopyObjectOutput::default()
            };
            return Ok(S3Response::new(output));
        }
        self.inner.copy_object(req).await
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        let path = self.path(&bucket, &key);
        if key.ends_with('/') {
            // One that is not there is removed as well.
            let _ = std::fs::remove_file(path.join(MARKER));
        } else if !path.is_dir() {
            self.inner.delete_object(req).await?;
        }
        self.prune(&bucket, &key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.inner.create_multipart_upload(req).await
    }

    async fn upload_part(
        &self,
        req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        self.inner.upload_part(req).await.map_err(no_such_upload)
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.inner.complete_multipart_upload(req).await.map_err(no_such_upload)
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.inner.abort_multipart_upload(req).await.map_err(no_such_upload)
    }
}

/// What S3 answers for an upload that is gone, where s3s-fs denies access: there is one user here.
fn no_such_upload(error: S3Error) -> S3Error {
    match error.code() {
        S3ErrorCode::AccessDenied => s3_error!(NoSuchUpload),
        _ => error,
    }
}
