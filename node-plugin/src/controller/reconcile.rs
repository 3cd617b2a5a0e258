//! Makes the cluster follow what nodes tell: labels of a changed topology, the start-up taint of
//! nodes that are ready, and on each PersistentVolume where how much of it is cached.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, PersistentVolume, Taint};
use k8s_openapi::api::storage::v1::CSINode;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::csi::DRIVER;
use crate::kubernetes::weirnode::{NodeReport, human, resource};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(5);
/// A PersistentVolume is patched at most so often.
const PATCH_EVERY: Duration = Duration::from_secs(60);
/// Prefix of the keys that are ours.
const OUR_KEYS: &str = "topology.weir.dev/";
/// Taint of nodes on which nothing is to run before the driver is there. An operator sets it (as
/// kubelet's `--register-with-taints`); here it is only removed.
const STARTUP_TAINT: &str = "s3.csi.weir.dev/agent-not-ready";
/// Annotation of a PersistentVolume: where how much of it is cached.
const CACHED: &str = "weir.dev/cached";
/// Nodes that the annotation names, at most.
const NODES_MAX: usize = 50;

/// What nodes told, by name.
type Reports = BTreeMap<String, NodeReport>;

/// Looks for as long as the process lives.
pub(super) async fn run(client: Client) {
    let mut patched: HashMap<String, (String, Instant)> = HashMap::new();
    loop {
        if let Err(error) = once(&client, &mut patched).await {
            tracing::warn!(%error, "the cluster does not follow its nodes yet");
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn once(
    client: &Client,
    patched: &mut HashMap<String, (String, Instant)>,
) -> Result<(), kube::Error> {
    let reports = reports(client).await?;
    if reports.is_empty() {
        return Ok(());
    }
    let registered = registered(client).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    for node in nodes.list(&ListParams::default()).await? {
        let name = node.metadata.name.clone().unwrap_or_default();
        let Some(report) = reports.get(&name) else { continue };
        // One node that cannot be changed does not keep the others waiting.
        if let Err(error) = follow(&nodes, &node, report, registered.contains(&name)).await {
            tracing::warn!(node = name, %error, "Node not changed");
        }
    }
    annotate(client, &reports, patched).await;
    Ok(())
}

async fn reports(client: &Client) -> Result<Reports, kube::Error> {
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource());
    let mut reports = Reports::new();
    for object in all.list(&ListParams::default()).await? {
        let Some(name) = object.metadata.name else { continue };
        match serde_json::from_value(object.data["status"].clone()) {
            Ok(report) => drop(reports.insert(name, report)),
            Err(error) => tracing::warn!(node = name, %error, "WeirNode not understood"),
        }
    }
    Ok(reports)
}

/// Nodes on which kubelet knows the driver.
async fn registered(client: &Client) -> Result<Vec<String>, kube::Error> {
    let all: Api<CSINode> = Api::all(client.clone());
    let knows = |node: &CSINode| node.spec.drivers.iter().any(|driver| driver.name == DRIVER);
    let nodes = all.list(&ListParams::default()).await?;
    Ok(nodes.into_iter().filter(knows).filter_map(|node| node.metadata.name).collect())
}

async fn follow(
    nodes: &Api<Node>,
    node: &Node,
    report: &NodeReport,
    registered: bool,
) -> Result<(), kube::Error> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let changed = changed_labels(&labels, &report.segments);
    if !changed.is_empty() {
        tracing::info!(node = name, ?changed, "topology labels follow the node");
        let patch = json!({"metadata": {"labels": changed}});
        nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    let spec = node.spec.clone().unwrap_or_default();
    let taints = spec.taints.unwrap_or_default();
    if registered && report.ready && taints.iter().any(|taint| taint.key == STARTUP_TAINT) {
        tracing::info!(node = name, "ready: the start-up taint goes");
        let left: Vec<Taint> =
            taints.into_iter().filter(|taint| taint.key != STARTUP_TAINT).collect();
        // With the version that was read, so that nobody's taint is lost.
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": left},
        });
        nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(())
}

/// Labels that are there and say otherwise. Those that are not there are kubelet's to set, when
/// the driver registers.
fn changed_labels<'a>(
    labels: &BTreeMap<String, String>,
    segments: &'a BTreeMap<String, String>,
) -> BTreeMap<&'a str, &'a str> {
    let differs = |(key, value): &(&String, &String)| {
        key.starts_with(OUR_KEYS) && labels.get(*key).is_some_and(|label| label != *value)
    };
    let changed = segments.iter().filter(differs);
    changed.map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

async fn annotate(
    client: &Client,
    reports: &Reports,
    patched: &mut HashMap<String, (String, Instant)>,
) {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    for (volume, text) in cached(reports) {
        let known = patched.get(&volume);
        if known.is_some_and(|(known, at)| *known == text || at.elapsed() < PATCH_EVERY) {
            continue;
        }
        let patch = json!({"metadata": {"annotations": {CACHED: text}}});
        match volumes.patch(&volume, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => {}
            // Gone, while nodes still have some of it.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                tracing::warn!(volume, %error, "PersistentVolume not annotated");
                continue;
            }
        }
        patched.insert(volume, (text, Instant::now()));
    }
}

/// By volume: on which nodes how much of it is cached.
fn cached(reports: &Reports) -> BTreeMap<String, String> {
    let mut by_volume: BTreeMap<&str, Vec<(&str, u64)>> = BTreeMap::new();
    for (node, report) in reports {
        for volume in &report.volumes {
            let nodes = by_volume.entry(&volume.persistent_volume).or_default();
            nodes.push((node, volume.cached_bytes));
        }
    }
    let text = |nodes: &[(&str, u64)]| {
        let named = nodes.iter().take(NODES_MAX);
        let mut text: Vec<String> =
            named.map(|(node, bytes)| format!("{node}: {}", human(*bytes))).collect();
        if nodes.len() > NODES_MAX {
            text.push(format!("and {} more", nodes.len() - NODES_MAX));
        }
        text.join(", ")
    };
    by_volume.iter().map(|(volume, nodes)| ((*volume).to_owned(), text(nodes))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::weirnode::VolumeReport;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn only_our_own_labels_that_are_there_are_changed() {
        let labels = map(&[
            ("topology.weir.dev/gpu-product", "L40S"),
            ("topology.weir.dev/zone", "a"),
            ("nvidia.com/gpu.product", "L40S"),
        ]);
        let segments = map(&[
            ("topology.weir.dev/gpu-product", "H200"),
            ("topology.weir.dev/zone", "a"),
            ("topology.weir.dev/nvlink-domain", "none"),
            ("nvidia.com/gpu.product", "H200"),
        ]);
        let changed = changed_labels(&labels, &segments);
        assert_eq!(changed, BTreeMap::from([("topology.weir.dev/gpu-product", "H200")]));
    }

    #[test]
    fn a_volume_names_its_nodes() {
        let report = |bytes: u64| NodeReport {
            volumes: vec![VolumeReport {
                persistent_volume: "assets".into(),
                cached_bytes: bytes,
                ..VolumeReport::default()
            }],
            ..NodeReport::default()
        };
        let reports = Reports::from([("b".into(), report(3 << 20)), ("a".into(), report(0))]);
        assert_eq!(cached(&reports)["assets"], "a: 0 B, b: 3.0 MiB");
        let many: Reports = (0..60).map(|n| (format!("n{n:02}"), report(1))).collect();
        assert!(cached(&many)["assets"].ends_with("n49: 1 B, and 10 more"));
    }
}
