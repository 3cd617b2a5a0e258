//! An origin, and sites far from it.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use weir_fuse::origin::s3::{S3Origin, S3Settings};
use weir_tests::aistore::{AiStore, Manners};
use weir_tests::link::Link;
use weir_tests::tmpfs::Tmpfs;
use weir_tests::{minio, random_bytes, runtime};

use super::nginx::Nginx;
use super::{LAN, LinkSettings, WAN};
use crate::stage::{client, upload};

/// Files of the game, and folders that they lie in.
const ASSETS: u64 = 20_000;
const FOLDERS: u64 = 200;
/// Files that a session reads.
const SESSION: usize = 2000;
/// Key of the model that is read in one piece.
pub(super) const MODEL: &str = "models/whole.bin";
/// Key of the model that is read here and there.
pub(super) const RANDOM: &str = "models/random.bin";
/// Bytes of each.
pub(super) const MODEL_BYTES: u64 = 256 << 20;

/// The bucket, on a server.
pub(super) struct Origin {
    pub(super) bucket: String,
    pub(super) direct: Client,
    server: SocketAddr,
    dir: TempDir,
    _memory: Tmpfs,
}

/// Bytes of an asset.
pub(super) fn asset_bytes(number: u64) -> u64 {
    (8 << 10) << (number % 5)
}

/// Key of an asset.
pub(super) fn asset(number: u64) -> String {
    format!("assets/d{:03}/f{number:05}.pak", number % FOLDERS)
}

impl Origin {
    pub(super) fn new() -> Self {
        let memory = Tmpfs::new(6144);
        let dir = tempfile::Builder::new().prefix("weir-bench-").tempdir_in("/var/tmp").unwrap();
        let data = memory.path().join("data");
        fs::create_dir(&data).unwrap();
        let minio = minio::start(data);
        let server = minio.url.trim_start_matches("http://").parse().unwrap();
        let bucket = format!("bench-{:08x}", rand::random::<u32>());
        let origin = Self { bucket, direct: client(&minio.url), server, dir, _memory: memory };
        runtime().block_on(origin.fill());
        origin
    }

    /// A path for folders of the contestants'.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn fill(&self) {
        eprintln!("putting {ASSETS} files");
        self.direct.create_bucket().bucket(&self.bucket).send().await.unwrap();
        let puts = (0..ASSETS).map(|number| async move {
            let body = random_bytes(number, asset_bytes(number) as usize);
            let put = self.direct.put_object().bucket(&self.bucket).key(asset(number));
            put.body(ByteStream::from(body)).send().await.unwrap();
        });
        stream::iter(puts).buffer_unordered(8).count().await;
        for key in [MODEL, RANDOM] {
            let bytes = random_bytes(MODEL_BYTES, MODEL_BYTES as usize).into();
            upload(&self.direct, &self.bucket, key, &bytes).await;
        }
        // nginx signs nothing.
        let policy = serde_json::json!({
            "Version": "2012-10-17",
            "Statement": [{
                "Effect": "Allow", "Principal": {"AWS": ["*"]}, "Action": ["s3:GetObject"],
                "Resource": [format!("arn:aws:s3:::{}/*", self.bucket)],
            }],
        });
        let put = self.direct.put_bucket_policy().bucket(&self.bucket);
        put.policy(policy.to_string()).send().await.unwrap();
    }

    /// The files of one session, each once: the n-th most popular is wanted half as often as twice the
    /// n-th.
    pub(super) fn session(&self, seed: u64) -> Vec<u64> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut total = 0.0;
        let ranks: Vec<f64> = (1..=ASSETS)
            .map(|rank| {
                total += 1.0 / rank as f64;
                total
            })
            .collect();
        let (mut seen, mut session) = (HashSet::new(), Vec::new());
        while session.len() < SESSION {
            let at = random.random_range(0.0..total);
            let rank = ranks.partition_point(|until| *until <= at) as u64;
            // The popular ones lie all over the folders.
            let number = rank * 7919 % ASSETS;
            if seen.insert(number) {
                session.push(number);
            }
        }
        session
    }
}

/// A site: its WAN, and what it has in common.
pub(super) struct Site {
    wan: Link,
    _region: AiStore,
    /// To the region's proxy, and to its target.
    lan: [Link; 2],
    _nginx: Nginx,
    nginx_lan: Link,
}

fn link(to: SocketAddr, settings: LinkSettings) -> Link {
    Link::new(to, settings.round_trip, settings.bits_per_sec)
}

impl Site {
    pub(super) fn new(origin: &Origin) -> Self {
        let wan = link(origin.server, WAN);
        let url = format!("http://{}", wan.address);
        let settings = S3Settings {
            bucket: origin.bucket.clone(),
            endpoint_url: Some(url),
            region: Some("us-east-1".into()),
            ..S3Settings::default()
        };
        let settings = settings.with_keys(minio::USER, minio::PASSWORD);
        let behind = runtime().block_on(S3Origin::connect(settings)).unwrap();
        let region = AiStore::before_origin(&origin.bucket, Arc::new(behind));
        let (proxy, target) = region.addresses();
        let lan = [proxy, target].map(|address| link(address, LAN));
        region.behave(Manners {
            redirects_to: Some(format!("http://{}", lan[1].address)),
            ..Manners::default()
        });
        let nginx = Nginx::start(wan.address);
        let nginx_lan = link(nginx.address, LAN);
        Self { wan, _region: region, lan, _nginx: nginx, nginx_lan }
    }

    /// URL of the origin, over the WAN.
    pub(super) fn wan_url(&self) -> String {
        format!("http://{}", self.wan.address)
    }

    /// URL of nginx.
    pub(super) fn nginx_url(&self) -> String {
        format!("http://{}", self.nginx_lan.address)
    }

    /// How Weir is told of the region.
    pub(super) fn region_flags(&self) -> Vec<String> {
        let [proxy, target] = &self.lan;
        vec![
            "--region-url".into(),
            format!("http://{}", proxy.address),
            "--region-allow".into(),
            target.address.to_string(),
        ]
    }

    /// Bytes that came over the WAN so far.
    pub(super) fn wan_bytes(&self) -> u64 {
        self.wan.carried().1
    }

    /// Waits until nothing comes over the WAN any more.
    pub(super) fn settle(&self) {
        let mut before = self.wan_bytes();
        loop {
            std::thread::sleep(std::time::Duration::from_millis(500));
            let now = self.wan_bytes();
            if now == before {
                return;
            }
            before = now;
        }
    }
}
