//! What nodes do, by files of a mount or by bare requests.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use aws_sdk_s3::Client;
use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use weir_tests::{random_bytes, runtime};

use super::site::{self, MODEL_BYTES, Origin, Site};
use crate::contestant::Contestant;
use crate::stage::{PART, client, client_unsigned, upload as upload_bare};

const MIB: f64 = 1_048_576.0;
/// Files, or requests, at once.
const AT_ONCE: usize = 8;
/// Random reads of a model: of 64 KiB, and of 8 MiB.
const READS: [usize; 2] = [200, 30];
const UPLOADED: usize = 128 << 20;

/// What files are read by.
pub(super) trait Files: Sync {
    /// Reads all of an object, `size` bytes, in one go.
    fn read_whole(&self, key: &str, size: u64);

    /// Reads a range.
    fn read_at(&self, key: &str, at: u64, len: u64);

    /// Reads all of these, several at once.
    fn read_many(&self, files: &[(String, u64)]);

    /// Stores an object; `None` where that is not durable once it returns, or not done.
    fn store(&self, key: &str, bytes: bytes::Bytes) -> Option<()>;
}

/// Seconds of a session.
pub(super) fn session(files: &dyn Files, _: &Origin, numbers: &[u64]) -> f64 {
    let all: Vec<_> = numbers.iter().map(|n| (site::asset(*n), site::asset_bytes(*n))).collect();
    let start = Instant::now();
    files.read_many(&all);
    start.elapsed().as_secs_f64()
}

/// MiB a second of a model that is read from its start to its end.
pub(super) fn download(files: &dyn Files, _: &Origin, key: &str) -> f64 {
    let start = Instant::now();
    files.read_whole(key, MODEL_BYTES);
    MODEL_BYTES as f64 / MIB / start.elapsed().as_secs_f64()
}

/// MiB a second until it is stored.
pub(super) fn upload(files: &dyn Files, origin: &Origin) -> Option<f64> {
    let bytes = random_bytes(7, UPLOADED).into();
    let start = Instant::now();
    files.store("up/loaded.bin", bytes)?;
    let took = start.elapsed().as_secs_f64();
    let head = origin.direct.head_object().bucket(&origin.bucket).key("up/loaded.bin").send();
    let stored = runtime().block_on(head).unwrap().content_length().unwrap();
    assert_eq!(stored as usize, UPLOADED);
    Some(UPLOADED as f64 / MIB / took)
}

/// Milliseconds of reads of this size at random places: P50, P90, P99.
pub(super) fn random_reads(files: &dyn Files, size: u64, seed: u64) -> [f64; 3] {
    let mut random = StdRng::seed_from_u64(seed);
    let count = READS[usize::from(size > 1 << 20)];
    let mut times: Vec<f64> = (0..count)
        .map(|_| {
            let at = random.random_range(0..MODEL_BYTES / size) * size;
            let start = Instant::now();
            files.read_at(site::RANDOM, at, size);
            start.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    [50, 90, 99].map(|percent| times[(times.len() * percent / 100).min(times.len() - 1)])
}

/// Bare GETs and PUTs.
pub(super) struct Bare {
    client: Client,
    bucket: String,
    can_store: bool,
}

impl Bare {
    /// Over the WAN.
    pub(super) fn signed(site: &Site, origin: &Origin) -> Self {
        let (client, bucket) = (client(&site.wan_url()), origin.bucket.clone());
        Self { client, bucket, can_store: true }
    }

    /// By the site's nginx, which is there for reads.
    pub(super) fn unsigned(site: &Site, origin: &Origin) -> Self {
        let (client, bucket) = (client_unsigned(&site.nginx_url()), origin.bucket.clone());
        Self { client, bucket, can_store: false }
    }

    async fn get(&self, key: &str, range: Option<(u64, u64)>, len: u64) {
        let range = range.map(|(at, len)| format!("bytes={at}-{}", at + len - 1));
        let request = self.client.get_object().bucket(&self.bucket).key(key).set_range(range);
        let mut body = request.send().await.unwrap().body;
        let mut total = 0;
        while let Some(piece) = body.next().await {
            total += piece.unwrap().len() as u64;
        }
        assert_eq!(total, len);
    }
}

impl Files for Bare {
    fn read_whole(&self, key: &str, size: u64) {
        let gets = (0..size / PART)
            .map(|n| async move { self.get(key, Some((n * PART, PART)), PART).await });
        runtime().block_on(stream::iter(gets).buffer_unordered(AT_ONCE).count());
    }

    fn read_at(&self, key: &str, at: u64, len: u64) {
        runtime().block_on(self.get(key, Some((at, len)), len));
    }

    fn read_many(&self, files: &[(String, u64)]) {
        let gets = files.iter().map(|(key, size)| async move { self.get(key, None, *size).await });
        runtime().block_on(stream::iter(gets).buffer_unordered(AT_ONCE).count());
    }

    fn store(&self, key: &str, bytes: bytes::Bytes) -> Option<()> {
        let stores =
            self.can_store.then(|| upload_bare(&self.client, &self.bucket, key, &bytes))?;
        runtime().block_on(stores);
        Some(())
    }
}

/// Files of a mount.
pub(super) struct Mounted(Contestant);

impl Mounted {
    pub(super) fn new(contestant: Contestant) -> Self {
        Self(contestant)
    }

    pub(super) fn end(self) {
        self.0.end();
    }
}

impl Files for Mounted {
    fn read_whole(&self, key: &str, size: u64) {
        let mut file = File::open(self.0.join(key)).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut total = 0;
        loop {
            let read = file.read(&mut buffer).unwrap();
            if read == 0 {
                break;
            }
            total += read as u64;
        }
        assert_eq!(total, size);
    }

    fn read_at(&self, key: &str, at: u64, len: u64) {
        let file = File::open(self.0.join(key)).unwrap();
        file.read_exact_at(&mut vec![0; len as usize], at).unwrap();
    }

    fn read_many(&self, files: &[(String, u64)]) {
        std::thread::scope(|scope| {
            for worker in 0..AT_ONCE {
                let mine = files.iter().skip(worker).step_by(AT_ONCE);
                scope.spawn(move || {
                    for (key, size) in mine {
                        let bytes = fs::read(self.0.join(key)).unwrap();
                        assert_eq!(bytes.len() as u64, *size);
                    }
                });
            }
        });
    }

    fn store(&self, key: &str, bytes: bytes::Bytes) -> Option<()> {
        if !self.0.kind.is_durable() {
            return None;
        }
        let path = self.0.join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = File::create(path).unwrap();
        file.write_all(&bytes).unwrap();
        rustix::fs::fsync(&file).unwrap();
        Some(())
    }
}
