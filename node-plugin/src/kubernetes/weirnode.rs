//! WeirNode: one object a node, written by that node alone, read by people and the controller.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::core::{ApiResource, GroupVersionKind};
use serde::{Deserialize, Serialize};

use crate::topology::model::Topology;

/// Group of the resource.
pub(crate) const GROUP: &str = "weir.dev";
/// Version of the resource.
pub(crate) const VERSION: &str = "v1alpha1";
/// Kind of the resource.
pub(crate) const KIND: &str = "WeirNode";

/// A report that did not change is written again after so long.
pub(crate) const REPORT_AGAIN_AFTER: Duration = Duration::from_secs(300);
/// A node that was not heard of for so long counts as one whose plugin is not there: three reports
/// were lost.
pub(crate) const SILENT_AFTER: Duration = REPORT_AGAIN_AFTER.saturating_mul(3);

/// How the API server names it.
pub(crate) fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, VERSION, KIND))
}

/// What a node tells.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeReport {
    /// Version of Weir.
    pub(crate) version: String,
    /// Whether pods can be served, as kubelet's probe is told.
    pub(crate) ready: bool,
    /// Why they cannot; empty if they can. Always written, so that what the reconciler says of a
    /// silent node does not outlast its silence.
    pub(crate) problem: String,
    /// When this was told, by the node's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_report_time: Option<Time>,
    /// Topology segments that the node should have.
    pub(crate) segments: BTreeMap<String, String>,
    /// In short, for tables.
    pub(crate) summary: Summary,
    /// The cache.
    pub(crate) cache: CacheReport,
    /// Volumes that were used on this node since its start.
    pub(crate) volumes: Vec<VolumeReport>,
    /// Volumes without a PersistentVolume that pods use now.
    pub(crate) inline_volumes: u32,
    /// GPUs, drives, networks.
    pub(crate) topology: Topology,
}

impl NodeReport {
    /// How old it is, by two clocks: what is said to be of the future is of now. `None` if it does
    /// not say.
    pub(crate) fn age(&self, now: Timestamp) -> Option<Duration> {
        let told = self.last_report_time.as_ref()?.0;
        Some(Duration::try_from(now.duration_since(told)).unwrap_or_default())
    }
}

/// What tables show.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Summary {
    /// Product of the GPUs, as its segment says it.
    pub(crate) gpu: String,
    /// How many GPUs there are.
    pub(crate) gpus: u32,
    /// Bytes in the cache, for people.
    pub(crate) cached: String,
    /// Volumes that pods use now.
    pub(crate) volumes: u32,
}

/// A node's cache.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct CacheReport {
    /// Bytes held.
    pub(crate) used_bytes: u64,
    /// Disk by disk.
    pub(crate) disks: Vec<DiskReport>,
}

/// A disk of a cache.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DiskReport {
    /// The cache's directory on it.
    pub(crate) dir: String,
    /// Bytes held there.
    pub(crate) used_bytes: u64,
    /// Bytes free on its file system.
    pub(crate) free_bytes: u64,
    /// Its NUMA node, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) numa_node: Option<u32>,
    /// Whether it is kubelet's, too, or seems to be since its own is not mounted.
    pub(crate) on_kubelet_disk: bool,
    /// Why it is not used, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
}

/// A volume on a node.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct VolumeReport {
    /// Name of the PersistentVolume.
    pub(crate) persistent_volume: String,
    /// What is mounted, as `s3://bucket/prefix`.
    pub(crate) source: String,
    /// Bytes of it in the node's cache.
    pub(crate) cached_bytes: u64,
    /// Pods that use it now.
    pub(crate) pods: u32,
    /// What is wrong with it, if anything is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
}

/// Bytes for people: `1.5 GiB`.
pub(crate) fn human(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0);
    format!("{value:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_the_future_is_of_now() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let told = |second: i64| {
            let at = Timestamp::from_second(second).unwrap();
            NodeReport { last_report_time: Some(Time(at)), ..NodeReport::default() }
        };
        assert_eq!(told(999_000).age(now), Some(Duration::from_secs(1000)));
        assert_eq!(told(2_000_000).age(now), Some(Duration::ZERO));
        assert_eq!(NodeReport::default().age(now), None);
    }

    #[test]
    fn a_report_takes_back_what_was_said_of_its_silence() {
        let told = serde_json::to_value(NodeReport::default()).unwrap();
        assert!(told["problem"] == "" && told["ready"] == false);
    }

    #[test]
    fn bytes_are_written_for_people() {
        let all = [0, 1023, 1024, 3 << 19, 5 << 40].map(human);
        assert_eq!(all, ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "5.0 TiB"]);
    }

    #[test]
    fn a_report_of_a_newer_node_can_be_read() {
        let text = r#"{"ready": true, "segments": {"a": "b"}, "somethingNew": 1}"#;
        let report: NodeReport = serde_json::from_str(text).unwrap();
        assert!(report.ready && report.segments["a"] == "b" && report.volumes.is_empty());
    }
}
