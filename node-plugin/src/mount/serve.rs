//! A mount from start to end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use weir_fuse::adapter::{self, MountOptions, Mounted, mount as fuse_mount};
use weir_fuse::blocking::{MayBlock, beside, in_place};
use weir_fuse::cache::NodeCache;
use weir_fuse::engine::owner::Proc;
use weir_fuse::engine::{Engine, Session};
use weir_fuse::feed::nats::Feed;
use weir_fuse::metrics::Metrics;
use weir_fuse::origin::Origin;
use weir_fuse::origin::region::{ProofScope, RegionState, Regions};

use super::background::Ready;
use super::preflight::{self, Start, Unfit, Wanted};
use crate::admin::{AdminSocket, Counters, MountStatus, NodeStatus, RegionStatus};
use crate::assembly::Near;
use crate::cli::LogArgs;
use crate::config::mount::MountConfig;
use crate::exit::{Failure, Kind};
use crate::lost::folder;
use crate::run_dir;
use crate::{assembly, metrics};

/// How long the end of a mount waits for those who still use it, after a signal.
const USE_PATIENCE: Duration = Duration::from_secs(5);

/// A mount being served, with all that belongs to it.
pub struct Service {
    /// The session.
    pub session: Arc<Session>,
    cache: Arc<NodeCache>,
    mounted: Mounted,
    source: String,
    /// What is asked for bytes before the origin.
    regions: Option<Arc<Regions>>,
    /// What tells of changes that others make.
    feed: Option<Arc<Feed>>,
    /// How long its end may take.
    grace: Duration,
}

/// Runs a mount in this process until it is unmounted or a signal ends it.
///
/// # Errors
/// Why nothing is mounted.
pub fn run(config: &MountConfig, log: &LogArgs, ready: Option<Ready>) -> Result<(), Failure> {
    assembly::raise_file_limit();
    let runtime = assembly::runtime(config.cache.dirs.len())?;
    let done = runtime.block_on(async {
        let service = Service::start(config, runtime.handle().clone()).await?;
        let metrics = match log.metrics_listen {
            None => None,
            Some(address) => {
                let counted = service.session.engine().metrics.clone();
                match metrics::serve(address, counted).await {
                    Ok(taken) => Some(taken),
                    Err(failure) => {
                        service.end().await;
                        return Err(failure);
                    }
                }
            }
        };
        let _admin = service.serve_admin(metrics);
        if let Some(ready) = ready {
            ready.tell();
        }
        service.until_unmounted().await
    });
    // Where somebody still uses the mount, tasks hold replies; dropped with their runtime they
    // would be answered with EIO while the process ends, and say so in the log.
    std::mem::forget(runtime);
    done
}

impl Service {
    /// Checks everything, then mounts.
    ///
    /// # Errors
    /// Why nothing is mounted.
    pub async fn start(
        config: &MountConfig,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, Failure> {
        let mountpoint = fuse_mount::check_mountpoint(&config.mountpoint)?;
        let counted = assembly::metrics()?;
        // The index is opened while the bucket answers.
        let (settings, of_cache) = (config.cache.clone(), counted.clone());
        let opening =
            beside(move |may| assembly::engine(may, &settings, of_cache, runtime, Arc::new(Proc)));
        let connected = connect(config, &counted).await;
        let opened = opening.await;
        let opened = opened.map_err(|e| Failure::new(Kind::Other, format!("cache: {e}")))?;
        let engine = match opened {
            Ok(engine) => engine,
            Err(failure) => {
                // What is wrong with the bucket is said first.
                let (_, looked, _) = connected?;
                return Err(looked.map_or_else(|unfit| unfit.explain(&config.s3), |()| failure));
            }
        };
        let cache = engine.cache.clone();
        let regions = connected.as_ref().ok().and_then(|(_, _, regions)| regions.clone());
        let begun = match follow(config, &engine).await {
            Ok(feed) => begin(config, engine, connected).await.map(|session| (session, feed)),
            Err(failure) => Err(failure),
        };
        let (session, feed) = match begun {
            Ok(begun) => begun,
            Err(failure) => {
                in_place(|may| cache.close(may));
                return Err(failure);
            }
        };
        let source = format!("s3://{}/{}", config.s3.bucket, config.session.names.prefix);
        let options = MountOptions {
            source: source.clone(),
            mountpoint,
            allow_other: config.allow_other,
            read_only: config.session.read_only,
            selinux_context: None,
        };
        // The kernel's first request is answered before mount returns; that blocks.
        let mounted = in_place(|_| adapter::mount(&session, &options));
        let mounted = match mounted {
            Ok(mounted) => mounted,
            Err(error) => {
                in_place(|may| cache.close(may));
                return Err(error.into());
            }
        };
        tracing::info!(
            source,
            mountpoint = %options.mountpoint.display(),
            passthrough = mounted.passthrough(),
            "mounted"
        );
        Ok(Self { session, cache, mounted, source, regions, feed, grace: config.grace })
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.mounted.mountpoint().to_owned()
    }

    /// Whether the kernel reads cached files by itself.
    pub fn passthrough(&self) -> bool {
        self.mounted.passthrough()
    }

    /// Unmounts, stores what is left and closes the cache.
    pub async fn end(self) {
        self.unmount();
        let _ = self.finish().await;
    }

    fn unmount(&self) {
        let mountpoint = self.mounted.mountpoint();
        if let Err(error) = fuse_mount::unmount(mountpoint, false) {
            tracing::info!(%error, "still in use: detached, and ended when nobody uses it any more");
            let _ = fuse_mount::unmount(mountpoint, true);
        }
    }

    async fn until_unmounted(self) -> Result<(), Failure> {
        let signals = |kind| {
            signal(kind).map_err(|e| Failure::new(Kind::Other, format!("signal handler: {e}")))
        };
        let (mut term, mut int) =
            (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
        let Self { session, cache, mounted, feed, grace, .. } = self;
        let mountpoint = mounted.mountpoint().to_owned();
        let mut joined = beside(move |_| mounted.join());
        let signalled = tokio::select! {
            ended = &mut joined => {
                report(ended);
                false
            }
            _ = term.recv() => true,
            _ = int.recv() => true,
        };
        let until = Instant::now() + grace;
        if signalled {
            detach(&mountpoint, &mut joined, USE_PATIENCE.min(grace / 4)).await;
        }
        close(&session, &cache, feed, until).await
    }

    async fn finish(self) -> Result<(), Failure> {
        let Self { session, cache, mounted, feed, grace, .. } = self;
        let until = Instant::now() + grace;
        let mut joined = beside(move |_| mounted.join());
        if tokio::time::timeout(USE_PATIENCE.min(grace / 4), &mut joined).await.is_err() {
            tracing::warn!("somebody still uses the mount; ending all the same");
        }
        close(&session, &cache, feed, until).await
    }

    /// Serves the admin socket; without one the mount works all the same.
    pub fn serve_admin(&self, metrics: Option<SocketAddr>) -> Option<AdminSocket> {
        let (session, source) = (self.session.clone(), self.source.clone());
        let mountpoint = self.mountpoint();
        let (regions, feed) = (self.regions.clone(), self.feed.clone());
        let status = move |may: &_| {
            let states = regions.iter().flat_map(|regions| regions.states());
            let status = |RegionState { url, is_shut }| RegionStatus { url, is_shut };
            let regions = states.map(status).collect();
            let feed = feed.as_ref().map(|feed| feed.status());
            NodeStatus { metrics, regions, feed, ..status_of(may, &session, &source, &mountpoint) }
        };
        let serve = || {
            let name = format!("weir-{}.sock", std::process::id());
            let dir = run_dir::make().map_err(|error| error.to_string())?;
            AdminSocket::serve(&dir.join(name), status).map_err(|error| error.to_string())
        };
        serve().inspect_err(|error| tracing::warn!(error, "no admin socket")).ok()
    }
}

/// An origin, what it says of what is to be mounted, and what is before it.
type Connected = (Arc<dyn Origin>, Result<(), Unfit>, Option<Arc<Regions>>);

async fn connect(config: &MountConfig, counted: &Arc<Metrics>) -> Result<Connected, Failure> {
    let explain = |error| preflight::explain(&error, &config.s3);
    let names = &config.session.names;
    let regions = assembly::regions(config.regions.clone(), counted);
    // The user's own keys are all there are.
    let proof = (ProofScope::Mount, names.permission_lifetime());
    let near = regions.as_deref().map(|regions| Near { regions, proof });
    let origin = assembly::origin(config.s3.clone(), counted, near).await;
    let (origin, _) = origin.map_err(explain)?;
    let looked = preflight::look(&*origin, &config.session.names.prefix).await;
    Ok((origin, looked, regions))
}

/// Begins to follow the feed, if there is one. That no server is there is no failure.
async fn follow(config: &MountConfig, engine: &Engine) -> Result<Option<Arc<Feed>>, Failure> {
    let Some(settings) = &config.feed else { return Ok(None) };
    let name = format!("mount {:032x}", rand::random::<u128>());
    assembly::feed(settings, &name, engine).await.map(Some)
}

async fn begin(
    config: &MountConfig,
    engine: Arc<Engine>,
    connected: Result<Connected, Failure>,
) -> Result<Arc<Session>, Failure> {
    let (origin, looked, regions) = connected?;
    let names = &config.session.names;
    let wanted = Wanted {
        engine: &engine,
        bucket: origin.bucket_id(),
        s3: &config.s3,
        names,
        policy: config.policy,
    };
    let start = wanted.start(std::future::ready(looked)).await?;
    if let Some(regions) = regions {
        regions.remember(engine.region_evictions.clone()).await;
    }
    // There is no other tenant.
    let session = Session::new(engine, origin.clone(), config.session.clone(), "").await;
    if let Start::Away(error) = start {
        tracing::warn!(%error, "the origin is away; beginning with what is cached");
        session.begin_away(preflight::answer(origin, names.prefix.clone()));
    }
    Ok(session)
}

fn report(ended: Result<std::io::Result<()>, tokio::task::JoinError>) {
    match ended {
        Ok(Ok(())) => tracing::info!("unmounted"),
        Ok(Err(error)) => tracing::error!(%error, "serving ended"),
        Err(error) => tracing::error!(%error, "serving ended"),
    }
}

async fn detach(
    mountpoint: &std::path::Path,
    joined: &mut tokio::task::JoinHandle<std::io::Result<()>>,
    patience: Duration,
) {
    tracing::info!("signal received; unmounting");
    if fuse_mount::unmount(mountpoint, false).is_err() {
        let _ = fuse_mount::unmount(mountpoint, true);
    }
    match tokio::time::timeout(patience, joined).await {
        Ok(ended) => report(ended),
        Err(_) => tracing::warn!("somebody still uses the mount; ending all the same"),
    }
}

/// Stores what is left, by `until`, and closes the cache.
async fn close(
    session: &Arc<Session>,
    cache: &Arc<NodeCache>,
    feed: Option<Arc<Feed>>,
    until: Instant,
) -> Result<(), Failure> {
    let stored = session.shut_down(until).await;
    if let Some(feed) = feed {
        feed.stop().await;
    }
    in_place(|may| cache.close(may));
    if stored {
        return Ok(());
    }
    Err(Failure::new(Kind::Other, "not everything that was written could be stored; see the log"))
}

fn status_of(
    may: &MayBlock,
    session: &Session,
    source: &str,
    mountpoint: &std::path::Path,
) -> NodeStatus {
    let engine = session.engine();
    let counted = &engine.metrics;
    let cache = engine.cache.stats(may);
    let lost = cache.disks.iter().map(|disk| folder::total(&disk.dir)).sum();
    NodeStatus {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        metrics: None,
        mounts: vec![MountStatus {
            source: source.to_owned(),
            mountpoint: mountpoint.to_owned(),
            session: session.status(),
        }],
        cache,
        lost,
        regions: Vec::new(),
        feed: None,
        counters: Counters {
            cache_hits: counted.cache_hits.get(),
            cache_misses: counted.cache_misses.get(),
            saved_bytes: counted.saved_bytes.get(),
            fetched_bytes: counted.fetched_bytes.get(),
            origin_bytes: counted.origin_fetched_bytes.get(),
            region_bytes: counted.region_fetched_bytes.get(),
            stored_bytes: counted.stored_bytes.get(),
            uploads_in_flight: counted.uploads.get(),
            memory_used: engine.memory_used(),
            memory_target: engine.memory_total(),
        },
    }
}
