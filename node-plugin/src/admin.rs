//! The admin socket: one per process, answering each connection with its status.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use weir_csi::accept;
use weir_fuse::blocking::{MayBlock, in_place};
use weir_fuse::cache::CacheStats;
use weir_fuse::engine::status::SessionStatus;
use weir_fuse::feed::hearing::FeedStatus;

use crate::lost::folder::LostTotal;

/// How long who asks may take to read the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a process tells about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Where it serves metrics, if it does.
    pub metrics: Option<SocketAddr>,
    /// Its mounts.
    pub mounts: Vec<MountStatus>,
    /// Its cache.
    pub cache: CacheStats,
    /// What it counted.
    pub counters: Counters,
    /// Files in its cache directories that could not be stored.
    #[serde(default)]
    pub lost: LostTotal,
    /// The regions before its origin.
    #[serde(default)]
    pub regions: Vec<RegionStatus>,
    /// The feed of changes that it follows, if it does.
    #[serde(default)]
    pub feed: Option<FeedStatus>,
}

/// One mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountStatus {
    /// What is mounted.
    pub source: String,
    /// Where.
    pub mountpoint: PathBuf,
    /// Figures.
    #[serde(flatten)]
    pub session: SessionStatus,
}

/// A region.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegionStatus {
    /// URL of its endpoint.
    pub url: String,
    /// Whether it is left alone, since it fails.
    pub is_shut: bool,
}

/// Totals since the process started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Counters {
    /// Opens served from the cache.
    pub cache_hits: u64,
    /// Opens that waited for the origin.
    pub cache_misses: u64,
    /// Bytes that opens found in the cache.
    pub saved_bytes: u64,
    /// Bytes fetched for readers.
    pub fetched_bytes: u64,
    /// Bytes that came from the origin, those of questions and of second GETs among them.
    #[serde(default)]
    pub origin_bytes: u64,
    /// Bytes that came from the region.
    #[serde(default)]
    pub region_bytes: u64,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// Uploads under way.
    pub uploads_in_flight: i64,
    /// Memory for bytes on their way, in use.
    pub memory_used: u64,
    /// Its limit.
    pub memory_target: u64,
}

/// A listening socket; its file goes with it.
pub struct AdminSocket {
    path: PathBuf,
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl AdminSocket {
    /// Listens at `path` (mode 0600) and answers every connection with what `status` says.
    ///
    /// # Errors
    /// What bind reports.
    pub fn serve(
        path: &Path,
        status: impl Fn(&MayBlock) -> NodeStatus + Send + Sync + 'static,
    ) -> io::Result<Self> {
        // It gets its name once it listens and is private: between bind(2) and listen(2) it
        // refuses, and who asks takes a socket that refuses for a dead one and removes it.
        let unnamed = path.with_extension("new");
        // Left by a process that died; its pid is ours now.
        let _ = fs::remove_file(&unnamed);
        let listener = UnixListener::bind(&unnamed)?;
        fs::set_permissions(&unnamed, fs::Permissions::from_mode(0o600))?;
        fs::rename(&unnamed, path)?;
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    // Who does not read keeps nobody else waiting.
                    Ok((stream, _)) => {
                        drop(tokio::spawn(tell(stream, in_place(&status), PATIENCE)));
                    }
                    Err(error) => accept::failed(&error).await,
                }
            }
        });
        Ok(Self { path: path.to_owned() })
    }
}

async fn tell(mut stream: UnixStream, status: NodeStatus, patience: Duration) {
    let text = serde_json::to_vec(&status).unwrap_or_default();
    match tokio::time::timeout(patience, stream.write_all(&text)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "status not delivered"),
        Err(_) => tracing::debug!("status not delivered: nobody reads it"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::status;

    fn nothing(_: &MayBlock) -> NodeStatus {
        NodeStatus {
            pid: 1,
            version: String::new(),
            metrics: None,
            mounts: Vec::new(),
            cache: CacheStats::default(),
            counters: Counters {
                cache_hits: 0,
                cache_misses: 0,
                saved_bytes: 0,
                fetched_bytes: 0,
                origin_bytes: 0,
                region_bytes: 0,
                stored_bytes: 0,
                uploads_in_flight: 0,
                memory_used: 0,
                memory_target: 0,
            },
            lost: LostTotal::default(),
            regions: Vec::new(),
            feed: None,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_socket_is_not_taken_for_a_dead_one_while_it_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let over = AtomicBool::new(false);
        let removed = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    status::all_in(dir.path());
                }
            });
            let removed = (0..300).find(|n| {
                let path = dir.path().join(format!("weir-{n}.sock"));
                let socket = AdminSocket::serve(&path, nothing);
                socket.is_err() || !path.exists()
            });
            over.store(true, Ordering::Relaxed);
            removed
        });
        assert_eq!(removed, None, "a live socket was removed");
    }

    /// More than a socket holds.
    fn long(may: &MayBlock) -> NodeStatus {
        NodeStatus { version: "x".repeat(4 << 20), ..nothing(may) }
    }

    #[tokio::test]
    async fn who_does_not_read_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weir.sock");
        let _socket = AdminSocket::serve(&path, long).unwrap();
        let _silent = UnixStream::connect(&path).await.unwrap();
        let mut asks = UnixStream::connect(&path).await.unwrap();
        let mut text = Vec::new();
        let told = tokio::time::timeout(PATIENCE / 2, asks.read_to_end(&mut text)).await;
        assert!(told.is_ok_and(|told| told.is_ok()) && text.len() > 4 << 20);
    }

    #[tokio::test]
    async fn who_does_not_read_is_left_after_a_while() {
        let (mine, _silent) = UnixStream::pair().unwrap();
        let told = tell(mine, in_place(long), Duration::from_millis(50));
        tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
    }
}
