//! On each PersistentVolume: where how much of it is cached.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::reconcile::Reports;
use crate::csi::DRIVER;
use crate::kubernetes::names::is_subdomain;
use crate::kubernetes::weirnode::human;

/// Annotation of a PersistentVolume: where how much of it is cached.
const CACHED: &str = "weir.dev/cached";
/// A PersistentVolume is patched at most so often.
const PATCH_EVERY: Duration = Duration::from_secs(60);
/// PersistentVolumes that are patched at once, at most: nodes say how many there are to patch.
const PATCHES_MAX: usize = 50;
/// Volumes of a node that count, at most.
const VOLUMES_MAX: usize = 512;
/// Nodes that the annotation names, at most.
const NODES_MAX: usize = 50;

/// What PersistentVolumes were told.
#[derive(Default)]
pub(super) struct Annotations {
    patched: HashMap<String, (String, Instant)>,
    /// The last one that had its turn.
    after: String,
}

impl Annotations {
    /// Patches volumes of which something else is cached than they say: some of them, the others
    /// have their turn next time.
    pub(super) async fn follow(&mut self, client: &Client, reports: &Reports) {
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let cached = cached(reports);
        self.patched.retain(|volume, _| cached.contains_key(volume));
        for (volume, text) in self.due(cached) {
            self.after.clone_from(&volume);
            // A node may name any volume. Of another driver than the one that is named here the
            // API server changes none, and nobody has to be allowed to read them.
            let patch = json!({
                "metadata": {"annotations": {CACHED: text}},
                "spec": {"csi": {"driver": DRIVER}},
            });
            match volumes.patch(&volume, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 422 => {
                    tracing::debug!(volume, "no PersistentVolume of this driver");
                }
                Err(error) => {
                    tracing::warn!(volume, %error, "PersistentVolume not annotated");
                    // Who was refused waits as long as who was not, and says nothing yet.
                    if matches!(error, kube::Error::Api(ref s) if (400..500).contains(&s.code)) {
                        self.patched.insert(volume, (String::new(), Instant::now()));
                    }
                    continue;
                }
            }
            self.patched.insert(volume, (text, Instant::now()));
        }
    }

    /// Whose turn it is, with what they are to say.
    fn due(&self, cached: BTreeMap<String, String>) -> Vec<(String, String)> {
        let is_due = |(volume, text): &(String, String)| {
            let known = self.patched.get(volume);
            !known.is_some_and(|(known, at)| known == text || at.elapsed() < PATCH_EVERY)
        };
        let mut due: Vec<_> = cached.into_iter().filter(is_due).collect();
        let next = due.partition_point(|(volume, _)| *volume <= self.after);
        due.rotate_left(next);
        due.truncate(PATCHES_MAX);
        due
    }
}

/// By volume: on which nodes how much of it is cached.
fn cached(reports: &Reports) -> BTreeMap<String, String> {
    let mut by_volume: BTreeMap<&str, Vec<(&str, u64)>> = BTreeMap::new();
    for (node, told) in reports {
        let volumes = told.report.volumes.iter().take(VOLUMES_MAX);
        for volume in volumes.filter(|volume| is_subdomain(&volume.persistent_volume)) {
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
    use hyper::StatusCode;

    use super::super::server::server;
    use super::*;
    use crate::controller::reconcile::Told;
    use crate::kubernetes::weirnode::{NodeReport, VolumeReport};

    /// A node that has so much of each of these volumes.
    fn told(volumes: impl IntoIterator<Item = String>, bytes: u64) -> Told {
        let volume = |name| VolumeReport {
            persistent_volume: name,
            cached_bytes: bytes,
            ..VolumeReport::default()
        };
        let volumes = volumes.into_iter().map(volume).collect();
        Told { report: NodeReport { volumes, ..NodeReport::default() }, ..Told::default() }
    }

    #[test]
    fn a_volume_names_its_nodes() {
        let assets = |bytes| told(["assets".to_owned()], bytes);
        let reports = Reports::from([("b".into(), assets(3 << 20)), ("a".into(), assets(0))]);
        assert_eq!(cached(&reports)["assets"], "a: 0 B, b: 3.0 MiB");
        let many: Reports = (0..60).map(|n| (format!("n{n:02}"), assets(1))).collect();
        assert!(cached(&many)["assets"].ends_with("n49: 1 B, and 10 more"));
    }

    #[tokio::test]
    async fn what_one_node_tells_costs_a_bounded_number_of_requests() {
        let (client, asked) = server(|_, _| (StatusCode::OK, json!({"metadata": {}})));
        let mut annotations = Annotations::default();
        let many = |n: usize| (0..n).map(|n| format!("many-{n:05}"));
        let honest = ("b".to_owned(), told(["zoo".to_owned()], 1));
        for round in 0..11 {
            let broken = ("a".to_owned(), told(many(20_000), round));
            annotations.follow(&client, &Reports::from([broken, honest.clone()])).await;
            assert_eq!(asked.take().len(), if round < 10 { 50 } else { 13 });
        }
        // Everybody had his turn, and what nobody names any more is forgotten.
        assert!(annotations.patched.len() == 513 && annotations.patched.contains_key("zoo"));
        annotations.follow(&client, &Reports::from([honest])).await;
        assert!(asked.take().is_empty() && annotations.patched.len() == 1);
    }

    #[tokio::test]
    async fn a_volume_of_another_driver_is_not_asked_for_again_and_again() {
        let (client, asked) =
            server(|_, _| (StatusCode::UNPROCESSABLE_ENTITY, json!({"code": 422})));
        let mut annotations = Annotations::default();
        for bytes in 0..3 {
            let node = ("a".to_owned(), told(["ebs".to_owned()], bytes));
            annotations.follow(&client, &Reports::from([node])).await;
        }
        let asked = asked.take();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].body["spec"]["csi"]["driver"], DRIVER);
    }

    #[tokio::test]
    async fn what_is_no_name_of_a_volume_is_in_no_request() {
        let (client, asked) = server(|_, _| (StatusCode::OK, json!({"metadata": {}})));
        let mut annotations = Annotations::default();
        let bad = [
            "",
            ".",
            "..",
            "../nodes/n",
            "a/status",
            "a?dryRun=All",
            "a#",
            "a%2fb",
            "A",
            "a b",
            "-a",
            "a-",
            "a..b",
            ".a",
            "ä",
            "a\n",
        ];
        let long = "a".repeat(254);
        let bad = bad.into_iter().chain([long.as_str()]).map(str::to_owned);
        let good = ["a", "pvc-0a1b", "assets.v2", &long[1..]].map(str::to_owned);
        let node = ("n".to_owned(), told(bad.chain(good.clone()), 1));
        annotations.follow(&client, &Reports::from([node])).await;
        let asked = asked.take().into_iter();
        let mut paths: Vec<_> = asked.map(|change| change.path).collect();
        paths.sort();
        let mut expected = good.map(|name| format!("/api/v1/persistentvolumes/{name}"));
        expected.sort();
        assert_eq!(paths, expected);
    }

    #[tokio::test]
    async fn who_is_refused_is_not_asked_again_at_once_and_who_failed_is() {
        for (code, times) in [(403, 1), (400, 1), (409, 1), (429, 1), (500, 3)] {
            let (client, asked) = server(move |_, _| {
                (StatusCode::from_u16(code).unwrap(), json!({"code": code, "message": "no"}))
            });
            let mut annotations = Annotations::default();
            for _ in 0..3 {
                let node = ("a".to_owned(), told(["assets".to_owned()], 1));
                annotations.follow(&client, &Reports::from([node])).await;
            }
            assert_eq!(asked.take().len(), times, "{code}");
        }
    }
}
