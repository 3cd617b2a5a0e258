//! The stage: a MinIO, a bucket with the input, the same files on the disk, perhaps a slow link.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Credentials, Region, RequestChecksumCalculation};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use futures_util::{StreamExt, stream};
use tempfile::TempDir;
use weir_tests::link::Link;
use weir_tests::tmpfs::Tmpfs;
use weir_tests::{minio, random_bytes, runtime};

/// How large the input is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Bytes of the big file.
    pub(crate) big: u64,
    /// Small files to read; they lie in folders of 60.
    pub(crate) small: usize,
    /// Small files to write.
    pub(crate) written: usize,
}

/// Files in one folder.
pub(crate) const FOLDER: usize = 60;
/// Bytes of a small file that is read.
pub(crate) const SMALL: usize = 16 << 10;
/// Key of the big file.
pub(crate) const BIG: &str = "big/model.bin";
/// Part size of bare requests, in bytes.
pub(crate) const PART: u64 = 8 << 20;

/// Round trip of the slow link.
pub(crate) const ROUND_TRIP: Duration = Duration::from_millis(20);
/// Most keys whose objects the server keeps in memory: each takes some 10 KiB there.
const KEYS_IN_MEMORY: usize = 200_000;
/// Bandwidth of the slow link, each way.
pub(crate) const BITS_PER_SEC: f64 = 1e9;

/// Everything that contestants share.
pub(crate) struct Stage {
    /// URL of the server, or of the link to it.
    pub(crate) url: String,
    /// The bucket.
    pub(crate) bucket: String,
    /// The same files on the disk.
    pub(crate) raw: PathBuf,
    /// Sizes of the input.
    pub(crate) sizes: Sizes,
    /// A client that goes through the link, if there is one.
    pub(crate) client: Client,
    direct: Client,
    link: Option<Link>,
    dir: TempDir,
    _memory: Option<Tmpfs>,
}

impl Stage {
    /// Starts the server and makes the input. The server's data is in memory, so that it does
    /// not share the disk with the caches; but for so many `keys` that they do not fit.
    pub(crate) fn new(sizes: Sizes, slow: bool, keys: usize) -> Self {
        let size = u32::try_from(sizes.big >> 20).unwrap() * 7 + 2048;
        let memory = (keys <= KEYS_IN_MEMORY).then(|| Tmpfs::new(size));
        let dir = tempfile::Builder::new().prefix("weir-bench-").tempdir_in("/var/tmp").unwrap();
        let data = memory.as_ref().map_or(dir.path(), Tmpfs::path).join("data");
        fs::create_dir(&data).unwrap();
        let minio = minio::start(data);
        let server: SocketAddr = minio.url.trim_start_matches("http://").parse().unwrap();
        let link = slow.then(|| Link::new(server, ROUND_TRIP, BITS_PER_SEC));
        let url = link.as_ref().map_or(minio.url.clone(), |l| format!("http://{}", l.address));
        let bucket = format!("bench-{:08x}", rand::random::<u32>());
        let raw = dir.path().join("raw");
        let stage = Self {
            client: client(&url),
            direct: client(&minio.url),
            url,
            bucket,
            raw,
            sizes,
            link,
            dir,
            _memory: memory,
        };
        runtime().block_on(stage.make_input());
        rustix::fs::sync();
        stage
    }

    /// A path for the contestants' folders, on the cache's disk.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Whether requests go over the slow link.
    pub(crate) fn is_slow(&self) -> bool {
        self.link.is_some()
    }

    /// Keys of the small files.
    pub(crate) fn small_keys(&self) -> Vec<String> {
        let key = |n: usize| format!("small/d{:02}/f{:04}.bin", n / FOLDER, n);
        (0..self.sizes.small).map(key).collect()
    }

    async fn make_input(&self) {
        self.direct.create_bucket().bucket(&self.bucket).send().await.unwrap();
        let small = self.small_keys();
        let puts = small.iter().enumerate().map(|(n, key)| {
            let bytes = random_bytes(n as u64, SMALL);
            write_raw(&self.raw.join(key), &bytes);
            self.put(key, bytes)
        });
        stream::iter(puts).buffer_unordered(8).count().await;
        let mut all = Vec::with_capacity(self.sizes.big as usize);
        for n in 0..self.sizes.big / PART {
            all.extend_from_slice(&random_bytes(1000 + n, PART as usize));
        }
        write_raw(&self.raw.join(BIG), &all);
        upload(&self.direct, &self.bucket, BIG, &all.into()).await;
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) {
        let body = ByteStream::from(bytes);
        self.direct.put_object().bucket(&self.bucket).key(key).body(body).send().await.unwrap();
    }

    /// Puts small objects with keys `PREFIXn`, many at once.
    pub(crate) fn put_many(&self, keys: impl Iterator<Item = String>) {
        let puts = keys.map(|key| async move { self.put(&key, b"x".to_vec()).await });
        runtime().block_on(stream::iter(puts).buffer_unordered(32).count());
    }

    /// A bare ranged GET.
    pub(crate) fn get(&self, key: &str, at: u64, len: u64) {
        let range = format!("bytes={at}-{}", at + len - 1);
        let request = self.client.get_object().bucket(&self.bucket).key(key).range(range);
        let body = runtime().block_on(async { request.send().await.unwrap().body.collect().await });
        assert_eq!(body.unwrap().into_bytes().len() as u64, len);
    }

    /// Puts an object of random bytes.
    pub(crate) fn put_big(&self, key: &str, size: u64) {
        let bytes = random_bytes(size, size as usize).into();
        runtime().block_on(upload(&self.direct, &self.bucket, key, &bytes));
    }

    /// Size of an object, if it is there.
    pub(crate) fn size_at_s3(&self, key: &str) -> Option<u64> {
        let head = self.direct.head_object().bucket(&self.bucket).key(key).send();
        let reply = runtime().block_on(head).ok()?;
        reply.content_length().and_then(|len| u64::try_from(len).ok())
    }

    /// Removes what contestants wrote.
    pub(crate) fn clear(&self, prefix: &str) {
        runtime().block_on(async {
            loop {
                let list =
                    self.direct.list_objects_v2().bucket(&self.bucket).prefix(prefix).send().await;
                let keys: Vec<String> = list
                    .unwrap()
                    .contents()
                    .iter()
                    .filter_map(|object| object.key().map(str::to_owned))
                    .collect();
                if keys.is_empty() {
                    return;
                }
                let deletes = keys
                    .iter()
                    .map(|key| self.direct.delete_object().bucket(&self.bucket).key(key).send());
                stream::iter(deletes).buffer_unordered(16).count().await;
            }
        });
    }
}

fn write_raw(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A bare client.
pub(crate) fn client(url: &str) -> Client {
    let keys = Credentials::new(minio::USER, minio::PASSWORD, None, None, "bench");
    Client::from_conf(config(url).credentials_provider(keys).build())
}

/// A bare client that signs nothing.
pub(crate) fn client_unsigned(url: &str) -> Client {
    Client::from_conf(config(url).allow_no_auth().build())
}

fn config(url: &str) -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::Config::builder()
        .behavior_version_latest()
        .region(Region::new("us-east-1"))
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .force_path_style(true)
        .endpoint_url(url)
}

/// A bare multipart upload, eight parts in flight, nothing of it signed or summed but the
/// headers.
pub(crate) async fn upload(client: &Client, bucket: &str, key: &str, bytes: &bytes::Bytes) {
    let made = client.create_multipart_upload().bucket(bucket).key(key).send().await.unwrap();
    let id = made.upload_id().unwrap();
    let sends = (0..bytes.len().div_ceil(PART as usize)).map(|n| {
        let from = n * PART as usize;
        let body = bytes.slice(from..(from + PART as usize).min(bytes.len()));
        async move {
            let number = i32::try_from(n + 1).unwrap();
            let request = client
                .upload_part()
                .bucket(bucket)
                .key(key)
                .upload_id(id)
                .part_number(number)
                .body(ByteStream::from(body));
            let sent = request.customize().disable_payload_signing().send().await.unwrap();
            CompletedPart::builder().part_number(number).e_tag(sent.e_tag().unwrap()).build()
        }
    });
    let mut parts: Vec<_> = stream::iter(sends).buffer_unordered(8).collect().await;
    parts.sort_by_key(CompletedPart::part_number);
    let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let request = client.complete_multipart_upload().bucket(bucket).key(key).upload_id(id);
    request.multipart_upload(parts).send().await.unwrap();
}
