//! Tells the cluster about this node: its WeirNode.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use weir_fuse::blocking::beside;
use weir_fuse::cache::CacheStats;
use weir_fuse::cache::dir::on_one_file_system;
use weir_fuse::engine::Engine;

use super::registrar::Registrar;
use super::sessions::Sessions;
use crate::kubernetes::nodes::OwnObjects;
use crate::kubernetes::weirnode::{
    CacheReport, DiskReport, NodeReport, REPORT_AGAIN_AFTER, Summary, VolumeReport, human,
};
use crate::readiness::Readiness;
use crate::topology::labels::GPU_PRODUCT;
use crate::topology::sysfs::Sysfs;

/// What is cached of each volume is counted again after this many times as long as it took.
const COUNTING_SHARE: u32 = 100;
/// A change of what is mounted is reported after so long, with what else changes then.
const SOON: Duration = Duration::from_secs(1);
/// Volumes that are not used any more and still reported, at most.
const FORMER_MAX: usize = 256;

/// What reports are made of.
pub(super) struct Reporter {
    pub(super) engine: Arc<Engine>,
    /// A folder on kubelet's file system.
    pub(super) kubelet: PathBuf,
    pub(super) sessions: Arc<Sessions>,
    pub(super) readiness: Readiness,
    pub(super) registrar: Arc<Registrar>,
    pub(super) objects: Option<Arc<dyn OwnObjects>>,
    /// How often the node is looked at.
    pub(super) every: Duration,
}

/// What is counted less often than reported.
#[derive(Default)]
struct Counted {
    /// By volume: source, and bytes held.
    volumes: BTreeMap<String, (String, u64)>,
    next: Option<Instant>,
}

impl Reporter {
    /// Looks and reports for as long as the process lives.
    pub(super) async fn run(self) {
        let mut counted = Counted::default();
        let mut last: Option<(NodeReport, Instant)> = None;
        loop {
            let place = self.registrar.place.clone();
            // A driver that hangs keeps a thread of its own, not this one.
            let _ = beside(move |_| place.look()).await;
            match self.registrar.refresh().await {
                Ok(segments) => self.write(segments, &mut counted, &mut last).await,
                Err(error) => tracing::warn!(error, "labels of this node are not known"),
            }
            tokio::select! {
                () = tokio::time::sleep(self.every) => {}
                () = self.sessions.changed() => tokio::time::sleep(SOON).await,
                () = self.readier_or_less() => {}
            }
        }
    }

    /// Waits until the node can serve and could not, or the other way round.
    async fn readier_or_less(&self) {
        let before = self.readiness.lack();
        while self.readiness.lack() == before {
            tokio::time::sleep(SOON).await;
        }
    }

    async fn write(
        &self,
        segments: BTreeMap<String, String>,
        counted: &mut Counted,
        last: &mut Option<(NodeReport, Instant)>,
    ) {
        let Some(objects) = &self.objects else { return };
        self.count(counted).await;
        let report = self.report(segments, counted).await;
        let is_known = |(known, at): &(NodeReport, Instant)| {
            *known == report && at.elapsed() < REPORT_AGAIN_AFTER
        };
        if last.as_ref().is_some_and(is_known) {
            return;
        }
        let now = Some(Time(Timestamp::now()));
        match objects.report(&NodeReport { last_report_time: now, ..report.clone() }).await {
            Ok(()) => *last = Some((report, Instant::now())),
            Err(error) => tracing::warn!(error, "WeirNode not written"),
        }
    }

    /// Counts what is cached of each volume: a walk over the index, so not all the time.
    async fn count(&self, counted: &mut Counted) {
        if counted.next.is_some_and(|next| Instant::now() < next) {
            return;
        }
        let start = Instant::now();
        let mut names = Vec::new();
        let mut of = Vec::new();
        for served in self.sessions.all() {
            for volume in served.subjects().into_iter().filter_map(|subject| subject.volume) {
                names.push((volume, served.source().to_owned()));
                of.push(served.holds());
            }
        }
        let held = self.engine.cache.held_of(&of).await;
        for ((name, source), held) in names.into_iter().zip(held) {
            counted.volumes.insert(name, (source, held));
        }
        while counted.volumes.len() > FORMER_MAX + of.len() {
            counted.volumes.pop_first();
        }
        counted.next = Some(Instant::now() + start.elapsed() * COUNTING_SHARE);
    }

    async fn report(&self, segments: BTreeMap<String, String>, counted: &Counted) -> NodeReport {
        let stats = self.engine.cache.stats_in_turn().await;
        let topology = self.registrar.place.topology().map(|t| (*t).clone()).unwrap_or_default();
        let mut pods: HashMap<String, (u32, Option<String>)> = HashMap::new();
        let mut inline_volumes = 0;
        for served in self.sessions.all() {
            for subject in served.subjects() {
                let Some(volume) = subject.volume else {
                    inline_volumes += 1;
                    continue;
                };
                let entry = pods.entry(volume).or_default();
                entry.0 += 1;
                entry.1 = entry.1.take().or_else(|| served.problem());
            }
        }
        let volumes: Vec<VolumeReport> = counted
            .volumes
            .iter()
            .map(|(name, (source, held))| {
                let (pods, problem) = pods.remove(name).unwrap_or_default();
                VolumeReport {
                    persistent_volume: name.clone(),
                    source: source.clone(),
                    cached_bytes: *held,
                    pods,
                    problem,
                }
            })
            .collect();
        let cache = self.cache_report(stats);
        let problem = self.readiness.lack();
        NodeReport {
            last_report_time: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: problem.is_none(),
            problem: problem.unwrap_or_default().to_owned(),
            summary: Summary {
                gpu: segments.get(GPU_PRODUCT).cloned().unwrap_or_default(),
                gpus: u32::try_from(topology.gpu.gpus.len()).unwrap_or(u32::MAX),
                cached: human(cache.used_bytes),
                volumes: volumes.iter().filter(|volume| volume.pods > 0).count() as u32,
            },
            segments,
            cache,
            volumes,
            inline_volumes,
            topology,
        }
    }

    fn cache_report(&self, stats: CacheStats) -> CacheReport {
        let sysfs = Sysfs::default();
        let disks = stats.disks.iter().map(|disk| DiskReport {
            dir: disk.dir.display().to_string(),
            used_bytes: disk.used_bytes,
            // Rounded, so that a report does not differ with every byte that others write.
            free_bytes: disk.free_bytes >> 30 << 30,
            numa_node: sysfs.disk_of(&disk.dir).numa_node,
            on_kubelet_disk: on_one_file_system(&disk.dir, &self.kubelet),
            problem: disk.problem.clone(),
        });
        CacheReport { used_bytes: stats.used_bytes, disks: disks.collect() }
    }
}
