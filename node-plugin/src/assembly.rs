//! How an engine is put together from its parts: for one mount, and for a whole node.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Resource;
use tokio::runtime::Runtime;
use weir_fuse::blocking::MayBlock;
use weir_fuse::cache::{CacheSettings, DiskSettings, NodeCache};
use weir_fuse::engine::Engine;
use weir_fuse::engine::owner::Processes;
use weir_fuse::feed::nats::{Feed, FeedSettings};
use weir_fuse::metrics::Metrics;
use weir_fuse::origin::hedge::Hedged;
use weir_fuse::origin::measured::{LastAnswer, Measured};
use weir_fuse::origin::region::{ProofScope, RegionSettings, Regional, Regions};
use weir_fuse::origin::s3::{S3Origin, S3Settings};
use weir_fuse::origin::{Origin, OriginError};

use crate::config::cache::CacheConfig;
use crate::exit::{Failure, Kind};
use crate::logging;

/// Threads of the runtime's that may wait: those that have a turn at a disk of the cache, and others, by
/// which names of hosts are looked up, too.
const THREADS_OF_DISK: usize = 32;
const OTHER_THREADS: usize = 96;

/// Each cached file in use takes a descriptor; the usual soft limit of 1024 is for select(2).
pub(crate) fn raise_file_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "limit of open files not raised");
    }
}

/// The runtime that everything asynchronous runs in, with a cache on so many disks.
///
/// # Errors
/// When threads cannot be started.
pub(crate) fn runtime(disks: usize) -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(OTHER_THREADS + THREADS_OF_DISK * disks)
        .thread_name("weir-io")
        .build()
        .map_err(|e| Failure::new(Kind::Other, format!("runtime: {e}")))?;
    runtime.spawn(logging::tell_what_is_left_out());
    Ok(runtime)
}

/// Counters of a process.
///
/// # Errors
/// Never, unless two counters had one name.
pub(crate) fn metrics() -> Result<Arc<Metrics>, Failure> {
    Ok(Arc::new(Metrics::new().map_err(|e| Failure::new(Kind::Other, e.to_string()))?))
}

/// Most bytes of a spare cache: as much as a container's `/dev/shm` has, unless it was given more.
const SPARE_MAX: u64 = 64 << 20;

fn spare_disk(dir: PathBuf) -> DiskSettings {
    let rest = weir_fuse::cache::dir::file_system_free(&dir).saturating_sub(SPARE_MAX);
    DiskSettings { lost_max: SPARE_MAX / 4, ..DiskSettings::new(dir, SPARE_MAX, rest) }
}

fn cache_settings(config: &CacheConfig) -> CacheSettings {
    let max_size = match config.max {
        u64::MAX => u64::MAX,
        max => max / config.dirs.len() as u64,
    };
    let disk = |dir: &PathBuf| {
        let whole = weir_fuse::cache::dir::file_system_bytes(dir);
        let usual = DiskSettings::new(dir.clone(), max_size, config.min_free.of(whole));
        let inodes = weir_fuse::cache::dir::file_system_inodes(dir);
        DiskSettings {
            min_free_inodes: config.min_free_inodes.of(inodes),
            lost_max: config.lost_max.unwrap_or(usual.lost_max),
            apart_from: config.apart_from.clone(),
            ..usual
        }
    };
    CacheSettings { disks: config.dirs.iter().map(disk).collect() }
}

/// Whether a cache that could not be opened could be now.
pub(crate) fn can_open(may: &MayBlock, config: &CacheConfig, counted: Arc<Metrics>) -> bool {
    let opened = NodeCache::open(may, &cache_settings(config), counted);
    opened.map(|cache| cache.close(may)).is_ok()
}

/// Opens the cache and makes an engine on it.
///
/// # Errors
/// Why the cache cannot be used.
pub(crate) fn engine(
    may: &MayBlock,
    config: &CacheConfig,
    counted: Arc<Metrics>,
    runtime: tokio::runtime::Handle,
    processes: Arc<dyn Processes>,
) -> Result<Arc<Engine>, Failure> {
    let spare = config.spare.clone().map(spare_disk);
    let cache = NodeCache::open_or(may, &cache_settings(config), spare.as_ref(), counted.clone())?;
    Engine::new(may, cache, config.memory, counted, runtime, config.read_part, processes)
        .map_err(|e| Failure::new(Kind::Other, format!("threads: {e}")))
}

/// Follows a feed: mounts that are made from now on know what is heard there. `name` is this process's
/// own.
///
/// # Errors
/// What is wrong with the settings.
pub(crate) async fn feed(
    settings: &FeedSettings,
    name: &str,
    engine: &Engine,
) -> Result<Arc<Feed>, Failure> {
    let started = Feed::start(settings.clone(), name, engine.metrics.clone()).await;
    let feed = started.map_err(|e| Failure::new(Kind::Usage, format!("--feed: {e}")))?;
    engine.follow(feed.hearing().clone());
    Ok(feed)
}

/// The regions of a process; `None` where none are named.
pub(crate) fn regions(
    settings: Vec<RegionSettings>,
    counted: &Arc<Metrics>,
) -> Option<Arc<Regions>> {
    (!settings.is_empty()).then(|| Arc::new(Regions::new(settings, counted.clone())))
}

/// Regions before an origin, for some credentials.
pub(crate) struct Near<'a> {
    pub(crate) regions: &'a Regions,
    /// What the origin's word to them is good for, and how long.
    pub(crate) proof: (ProofScope, Duration),
}

/// Makes an origin of a bucket, hedged and counted, and the place where its last answer is
/// noted. Sends nothing, except what the credentials
/// chain asks for.
///
/// # Errors
/// What is wrong with the settings.
pub(crate) async fn origin(
    settings: S3Settings,
    counted: &Arc<Metrics>,
    near: Option<Near<'_>>,
) -> Result<(Arc<dyn Origin>, Arc<LastAnswer>), OriginError> {
    let regions = match &near {
        Some(near) => Some((near.regions.of(&settings.bucket).await?, near.proof)),
        None => None,
    };
    let s3 = S3Origin::connect(settings).await?;
    let hedges = counted.clone();
    let measured = Arc::new(Measured::new(Arc::new(s3), counted.clone()));
    let last = measured.last_answer();
    let origin = Arc::new(Hedged::new(measured, move || hedges.hedges.inc()));
    Ok(match regions {
        Some((regions, proof)) => (Arc::new(Regional::new(origin, regions, proof)), last),
        None => (origin, last),
    })
}
