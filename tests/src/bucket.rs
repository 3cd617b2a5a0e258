//! A bucket of its own for each test, on one of the servers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_sdk_s3::config::{Credentials, Region};
use aws_sdk_s3::types::{Event, NotificationConfiguration, QueueConfiguration};
use bytes::Bytes;
use futures_util::StreamExt;
use tempfile::TempDir;
use weir_fuse::model::version::ETag;
use weir_fuse::origin::s3::{S3Origin, S3Settings};
use weir_fuse::origin::{Condition, ListRequest, Origin, OriginError, UploadBody, WriteIntent};
use weir_node::demo::server::EmbeddedS3;

use crate::servers::Running;
use crate::{eventually, minio, runtime, versitygw};

/// The kinds of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// MinIO, in a process of its own.
    Minio,
    /// versitygw over a folder, in a process of its own.
    Versitygw,
    /// The server that the demo brings, in this process.
    Embedded,
    /// The one that `WEIR_SERVER_URL`, `WEIR_SERVER_KEY` and `WEIR_SERVER_SECRET` name.
    Named,
}

/// A bucket, and what reaches it past any mount.
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// URL of its server.
    pub url: String,
    /// Access key id.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    folder: PathBuf,
    origin: Arc<dyn Origin>,
    embedded: Option<(EmbeddedS3, TempDir)>,
}

impl Bucket {
    /// An empty bucket.
    pub fn new(server: Server) -> Self {
        match server {
            Server::Minio => Self::on(minio::shared()),
            Server::Versitygw => {
                let gateway = versitygw::shared();
                let keys = (versitygw::USER, versitygw::PASSWORD);
                Self::make(gateway.url.clone(), &gateway.data, keys, None)
            }
            Server::Named => {
                let of = |name: &str| {
                    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
                };
                let (key, secret) = (of("WEIR_SERVER_KEY"), of("WEIR_SERVER_SECRET"));
                let bucket = Self::of(of("WEIR_SERVER_URL"), "".as_ref(), (&key, &secret), None);
                let made = bucket.client().create_bucket().bucket(&bucket.name).send();
                runtime().block_on(made).unwrap();
                bucket
            }
            Server::Embedded => {
                let dir = tempfile::tempdir_in("/var/tmp").unwrap();
                let s3 = runtime().block_on(EmbeddedS3::start(dir.path())).unwrap();
                let (url, data) = (s3.url(), dir.path().to_owned());
                let (access_key, secret_key) = (s3.access_key.clone(), s3.secret_key.clone());
                let made = Self::make(url, &data, (&access_key, &secret_key), None);
                Self { embedded: Some((s3, dir)), ..made }
            }
        }
    }

    /// An empty bucket on this MinIO.
    pub fn on(minio: &Running) -> Self {
        Self::make(minio.url.clone(), &minio.data, (minio::USER, minio::PASSWORD), None)
    }

    /// An empty bucket on this MinIO, whose certificate is of this authority.
    pub fn over_tls(minio: &Running, authority: &Path) -> Self {
        let keys = (minio::USER, minio::PASSWORD);
        Self::make(minio.url.clone(), &minio.data, keys, Some(authority.to_owned()))
    }

    fn make(url: String, data: &Path, keys: (&str, &str), ca_bundle: Option<PathBuf>) -> Self {
        let bucket = Self::of(url, data, keys, ca_bundle);
        fs::create_dir(&bucket.folder).unwrap();
        bucket
    }

    /// One that is not there yet.
    fn of(
        url: String,
        data: &Path,
        (access_key, secret_key): (&str, &str),
        ca_bundle: Option<PathBuf>,
    ) -> Self {
        let name = format!("test-{:016x}", rand::random::<u64>());
        let folder = data.join(&name);
        let settings = S3Settings {
            bucket: name.clone(),
            endpoint_url: Some(url.clone()),
            region: Some("us-east-1".into()),
            upload_checksums: true,
            ca_bundle,
            ..S3Settings::default()
        };
        let settings = settings.with_keys(access_key, secret_key);
        let origin = runtime().block_on(S3Origin::connect(settings)).unwrap();
        Self {
            name,
            url,
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            folder,
            origin: Arc::new(origin),
            embedded: None,
        }
    }

    /// What asks its server.
    pub fn origin(&self) -> Arc<dyn Origin> {
        self.origin.clone()
    }

    /// Stops the server, where it is this bucket's own.
    pub fn stop_server(&mut self) {
        drop(self.embedded.take().expect("only an embedded server can be stopped"));
    }

    /// Removes the bucket behind everybody's back.
    pub fn remove_folder(&self) {
        fs::remove_dir_all(&self.folder).unwrap();
    }

    /// Stores an object as somebody else would.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) -> ETag {
        let write = WriteIntent { condition: Condition::Always, writer: "somebody-else".into() };
        let stored =
            runtime().block_on(self.origin.put(key, UploadBody::of(bytes), &write)).unwrap();
        stored.etag.unwrap_or_else(|| ETag::new("marker").unwrap())
    }

    /// Tries to store an object under a key that the server may refuse.
    pub fn try_put(&self, key: &str, bytes: &'static str) -> bool {
        let write = WriteIntent { condition: Condition::Always, writer: "somebody-else".into() };
        runtime().block_on(self.origin.put(key, UploadBody::of(bytes), &write)).is_ok()
    }

    /// Makes many objects of the same small bytes on MinIO, which stores the first. The others are
    /// copies of what it keeps of that: a hundred thousand requests take minutes.
    pub fn put_many(&self, mut keys: impl Iterator<Item = String>, bytes: &Bytes) {
        let Some(first) = keys.next() else { return };
        self.put(&first, bytes.clone());
        let stored = fs::read(self.folder.join(first).join("xl.meta")).unwrap();
        for key in keys {
            let folder = self.folder.join(key);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("xl.meta"), &stored).unwrap();
        }
    }

    /// Removes what MinIO leaves of an object where who removes it is killed in the middle: a
    /// folder with its data and without its description, which is listed as a directory. Says
    /// whether there was one.
    pub fn clear_ghost(&self, key: &str) -> bool {
        let folder = self.folder.join(key);
        folder.is_dir() && !folder.join("xl.meta").exists() && fs::remove_dir_all(folder).is_ok()
    }

    /// The bytes of an object, or `None`.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        runtime().block_on(async {
            let info = match self.origin.head(key).await {
                Ok(info) => info,
                Err(OriginError::NotFound) => return None,
                Err(error) => panic!("HEAD {key}: {error}"),
            };
            if info.size == 0 {
                return Some(Vec::new());
            }
            let body = self.origin.get(key, &info.version().unwrap(), 0..info.size).await.unwrap();
            let mut pieces = body.pieces;
            let mut bytes = Vec::new();
            while let Some(piece) = pieces.next().await {
                bytes.extend_from_slice(&piece.unwrap());
            }
            Some(bytes)
        })
    }

    /// Tag of an object.
    pub fn etag(&self, key: &str) -> ETag {
        runtime().block_on(self.origin.head(key)).unwrap().etag.unwrap()
    }

    /// Removes an object as somebody else would.
    pub fn delete(&self, key: &str) {
        runtime().block_on(self.origin.delete(key, &Condition::Always)).unwrap();
    }

    /// Multipart uploads of a key that are under way (MinIO lists them by whole keys alone).
    pub fn uploads_of(&self, key: &str) -> usize {
        let listed = self.client().list_multipart_uploads().bucket(&self.name).prefix(key).send();
        runtime().block_on(listed).unwrap().uploads().len()
    }

    /// Has its server send an event of each change to a target of its own.
    pub fn notify(&self, arn: &str) {
        let queue = QueueConfiguration::builder()
            .queue_arn(arn)
            .events(Event::from("s3:ObjectCreated:*"))
            .events(Event::from("s3:ObjectRemoved:*"))
            .build()
            .unwrap();
        let configured = NotificationConfiguration::builder().queue_configurations(queue).build();
        let asked = self.client().put_bucket_notification_configuration();
        let asked = asked.bucket(&self.name).notification_configuration(configured);
        // It answers before it knows its targets.
        eventually("the server has the target", || {
            runtime().block_on(asked.clone().send()).is_ok()
        });
    }

    fn client(&self) -> aws_sdk_s3::Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version_latest()
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new(
                &self.access_key,
                &self.secret_key,
                None,
                None,
                "tests",
            ))
            .endpoint_url(&self.url)
            .force_path_style(true)
            .build();
        aws_sdk_s3::Client::from_conf(config)
    }

    /// All keys.
    pub fn keys(&self) -> Vec<String> {
        let mut request =
            ListRequest { prefix: String::new(), delimited: false, token: None, max_keys: 1000 };
        let mut keys = Vec::new();
        loop {
            let page = runtime().block_on(self.origin.list(&request)).unwrap();
            keys.extend(page.objects.into_iter().map(|(key, _)| key));
            request.token = page.next;
            if request.token.is_none() {
                return keys;
            }
        }
    }
}
