//! Makes the cluster follow what nodes tell: labels of a changed topology, the start-up taint of
//! nodes that are ready, reports of nodes that say nothing any more, and what volumes say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::api::storage::v1::CSINode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::annotations::Annotations;
use super::heard::Heard;
use crate::csi::DRIVER;
use crate::kubernetes::weirnode::{GROUP, KIND, NodeReport, VERSION, resource};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(5);
/// Prefix of the keys that are ours.
const OUR_KEYS: &str = "topology.weir.dev/";
/// Taint of nodes on which nothing is to run before the driver is there. An operator sets it (as
/// kubelet's `--register-with-taints`); here it is only removed.
const STARTUP_TAINT: &str = "s3.csi.weir.dev/agent-not-ready";

/// What a node told, and in which object.
#[derive(Clone, Default)]
pub(super) struct Told {
    pub(super) report: NodeReport,
    /// Of the Node that it is about.
    pub(super) node_uid: Option<String>,
    pub(super) resource_version: Option<String>,
}

/// What nodes told, by name.
pub(super) type Reports = BTreeMap<String, Told>;

/// Looks for as long as the process lives.
pub(super) async fn run(client: Client) {
    let mut reconciler = Reconciler::new(client);
    loop {
        if let Err(error) = reconciler.once().await {
            tracing::warn!(%error, "the cluster does not follow its nodes yet");
        }
        tokio::time::sleep(EVERY).await;
    }
}

struct Reconciler {
    client: Client,
    heard: Heard,
    annotations: Annotations,
}

impl Reconciler {
    fn new(client: Client) -> Self {
        Self { client, heard: Heard::default(), annotations: Annotations::default() }
    }

    async fn once(&mut self) -> Result<(), kube::Error> {
        let mut reports = reports(&self.client).await?;
        if reports.is_empty() {
            return Ok(());
        }
        let registered = registered(&self.client).await?;
        let nodes: Api<Node> = Api::all(self.client.clone());
        let all = nodes.list(&ListParams::default()).await?.items;
        keep_those_of(&mut reports, &all);
        self.heard.retain(|node| reports.contains_key(node));
        let now = (Timestamp::now(), Instant::now());
        for node in &all {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let Some(told) = reports.get(name) else { continue };
            let is_silent = self.heard.is_silent(name, &told.report, now);
            let serves = registered.iter().any(|node| node == name) && !is_silent;
            // One node that cannot be changed does not keep the others waiting.
            if let Err(error) = follow(&nodes, node, &told.report, serves).await {
                tracing::warn!(node = name, %error, "Node not changed");
            }
            if is_silent && let Err(error) = mark_silent(&self.client, name, told).await {
                tracing::warn!(node = name, %error, "WeirNode not changed");
            }
        }
        self.annotations.follow(&self.client, &reports).await;
        Ok(())
    }
}

/// Drops what was told of a Node that is not there: one that was made anew has its name, and has
/// told nothing yet.
fn keep_those_of(reports: &mut Reports, nodes: &[Node]) {
    let uids: BTreeMap<_, _> =
        nodes.iter().map(|node| (node.metadata.name.as_deref(), &node.metadata.uid)).collect();
    reports.retain(|name, told| {
        told.node_uid.is_some() && uids.get(&Some(name.as_str())) == Some(&&told.node_uid)
    });
}

async fn reports(client: &Client) -> Result<Reports, kube::Error> {
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource());
    let mut reports = Reports::new();
    for object in all.list(&ListParams::default()).await? {
        let Some(name) = object.metadata.name else { continue };
        let mut owners = object.metadata.owner_references.unwrap_or_default().into_iter();
        let node = owners.find(|owner| owner.kind == "Node" && owner.name == name);
        match serde_json::from_value(object.data["status"].clone()) {
            Ok(report) => drop(reports.insert(
                name,
                Told {
                    report,
                    node_uid: node.map(|node| node.uid),
                    resource_version: object.metadata.resource_version,
                },
            )),
            Err(error) => tracing::warn!(node = name, %error, "WeirNode not understood"),
        }
    }
    Ok(reports)
}

/// Says in the node's place that it does not serve. Its next report takes that back.
async fn mark_silent(client: &Client, name: &str, told: &Told) -> Result<(), kube::Error> {
    let Some(Time(last)) = told.report.last_report_time.as_ref().filter(|_| told.report.ready)
    else {
        return Ok(());
    };
    tracing::warn!(node = name, %last, "nothing is heard of the node plugin");
    let problem = format!(
        "NoReport: nothing was heard of the node plugin since {last}; it does not run there, or \
         cannot reach the API server"
    );
    let patch = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": KIND,
        // With the version that was read, so that a report that comes meanwhile stays.
        "metadata": {"name": name, "resourceVersion": told.resource_version},
        "status": {"ready": false, "problem": problem},
    });
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource());
    let params = PatchParams::apply("weir-reconciler").force();
    all.patch(name, &params, &Patch::Apply(&patch)).await.map(|_| ())
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
    serves: bool,
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
    if serves && report.ready && taints.iter().any(|taint| taint.key == STARTUP_TAINT) {
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

#[cfg(test)]
mod tests {
    use hyper::{Method, StatusCode};

    use super::super::server::{Asked, server};
    use super::*;

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

    /// A cluster of one node `n` that has the start-up taint and is ready, by a report of so many
    /// seconds ago about the node with this uid.
    fn cluster(seconds: i64, uid: &'static str) -> (Client, Asked) {
        let told = Timestamp::from_second(Timestamp::now().as_second() - seconds).unwrap();
        server(move |method, path| {
            let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": uid}]);
            let one = match path {
                _ if method == Method::PATCH => json!({"metadata": {"name": "n"}}),
                "/apis/weir.dev/v1alpha1/weirnodes" => json!({
                    "metadata": {"name": "n", "resourceVersion": "7", "ownerReferences": owner},
                    "status": {
                        "ready": true, "lastReportTime": told.to_string(),
                        "volumes": [{"persistentVolume": "assets", "cachedBytes": 1}],
                    },
                }),
                "/apis/storage.k8s.io/v1/csinodes" => json!({
                    "metadata": {"name": "n"},
                    "spec": {"drivers": [{"name": DRIVER, "nodeID": "n"}]},
                }),
                _ => json!({
                    "metadata": {"name": "n", "uid": "u", "resourceVersion": "3"},
                    "spec": {"taints": [
                        {"key": STARTUP_TAINT, "effect": "NoExecute"},
                        {"key": "example.com/other", "effect": "NoSchedule"},
                    ]},
                }),
            };
            match method == Method::PATCH {
                true => (StatusCode::OK, one),
                false => (StatusCode::OK, json!({"metadata": {}, "items": [one]})),
            }
        })
    }

    const NODE: &str = "/api/v1/nodes/n";
    const REPORT: &str = "/apis/weir.dev/v1alpha1/weirnodes/n";
    const VOLUME: &str = "/api/v1/persistentvolumes/assets";

    #[tokio::test]
    async fn a_node_that_tells_that_it_is_ready_loses_our_taint_alone() {
        let (client, asked) = cluster(60, "u");
        Reconciler::new(client).once().await.unwrap();
        let asked = asked.take();
        let paths: Vec<_> = asked.iter().map(|change| &*change.path).collect();
        assert_eq!(paths, [NODE, VOLUME]);
        let taints = asked[0].body["spec"]["taints"].as_array().unwrap();
        assert!(taints.len() == 1 && taints[0]["key"] == "example.com/other");
    }

    #[tokio::test]
    async fn a_report_of_an_hour_ago_removes_no_taint_and_is_said_to_be_old() {
        let (client, asked) = cluster(3600, "u");
        Reconciler::new(client).once().await.unwrap();
        let asked = asked.take();
        let paths: Vec<_> = asked.iter().map(|change| &*change.path).collect();
        assert_eq!(paths, [REPORT, VOLUME]);
        let said = &asked[0].body;
        assert_eq!(
            (&said["status"]["ready"], &said["metadata"]["resourceVersion"]),
            (&json!(false), &json!("7"))
        );
        assert!(said["status"]["problem"].as_str().unwrap().starts_with("NoReport: nothing"));
    }

    #[tokio::test]
    async fn what_was_told_of_the_node_before_is_nothing_of_the_one_that_has_its_name() {
        let (client, asked) = cluster(0, "another");
        Reconciler::new(client).once().await.unwrap();
        assert!(asked.take().is_empty());
    }
}
