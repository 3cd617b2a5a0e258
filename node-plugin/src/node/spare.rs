//! A node none of whose cache disks works: it serves through memory, until one does.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use weir_fuse::blocking::beside;
use weir_fuse::cache::NodeCache;
use weir_fuse::engine::Engine;

use crate::assembly;
use crate::config::cache::CacheConfig;
use crate::kubernetes::events::{Announcer, Note, Severity, Subject};
use crate::readiness::Flag;

/// How often the disks are tried.
const TRIED_EVERY: Duration = Duration::from_secs(15);
/// How often is asked whether one that is used works.
const FOLLOWED_EVERY: Duration = Duration::from_secs(1);

/// Says for as long as the process lives whether a disk of the cache works, or the spare one.
pub(super) async fn follow(cache: Arc<NodeCache>, working: Flag) {
    loop {
        working.set(cache.works());
        tokio::time::sleep(FOLLOWED_EVERY).await;
    }
}

/// Tells that the disks do not work, and ends this process in order once one does: the next run serves
/// from it, and goes on with every session.
pub(super) async fn watch(engine: Arc<Engine>, config: CacheConfig, announcer: Announcer) {
    if !engine.cache.is_spare() {
        return;
    }
    let problem = engine.cache.problem().unwrap_or_default();
    tracing::error!(problem, "no disk of the cache works; serving through memory");
    announcer.say(Note {
        severity: Severity::Warning,
        reason: "CacheUnusable",
        text: format!("{problem}; volumes are served through memory until a disk works"),
        about: Subject::node(),
        tell_pod: false,
        once: true,
    });
    loop {
        tokio::time::sleep(TRIED_EVERY).await;
        // What is being written lies in memory: the next run would not find it.
        let stats = engine.cache.stats_in_turn().await;
        if stats.disks.iter().any(|disk| disk.staging_bytes > 0) {
            continue;
        }
        let (config, counted) = (config.clone(), engine.metrics.clone());
        let tried = beside(move |may| assembly::can_open(may, &config, counted));
        if tried.await.unwrap_or(false) {
            tracing::info!("a disk of the cache works again; ending, for the next run to use it");
            // Handled as from anybody else: all is stored and handed over.
            if let Err(error) = kill_process(getpid(), Signal::TERM) {
                tracing::error!(%error, "not ended");
            }
            return;
        }
    }
}
