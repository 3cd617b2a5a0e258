//! What the tests stand on: real S3 servers, real mounts of the real binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot set its stage is to fail, loudly"
)]

pub mod aistore;
pub mod attacks;
pub mod bucket;
pub mod cached;
pub mod cluster;
pub mod csi_node;
pub mod failing_disk;
pub mod hostile;
pub mod http;
#[cfg(target_arch = "x86_64")]
pub mod injected;
pub mod link;
pub mod minio;
pub mod model;
pub mod mount;
pub mod nats;
pub mod node;
pub mod nvml;
pub mod oidc;
pub mod servers;
pub mod shell;
pub mod sqs;
pub mod storm;
pub mod sts;
pub mod suite;
pub mod tmpfs;
pub mod tools;
pub mod versitygw;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

/// Longest wait for something that is to happen; only a hang takes so long.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The runtime in which servers and clients of the tests live.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap())
}

/// Waits until `check` says true.
#[track_caller]
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Bytes that differ everywhere, the same for the same seed.
pub fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    use rand::{RngCore, SeedableRng};
    let mut bytes = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}
