//! `weir uninstall-check`: whether pods still use volumes.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DynamicObject, ListParams};
use serde::Deserialize;
use serde_json::Value;

use crate::exit::{Failure, Kind};
use crate::kubernetes;
use crate::kubernetes::weirnode::{NodeReport, SILENT_AFTER, resource};
use crate::{assembly, logging};

/// Runs the command.
///
/// # Errors
/// Which volumes are in use, and where.
pub(crate) fn check() -> Result<(), Failure> {
    logging::start_plain(tracing::Level::INFO, crate::cli::LogFormat::Text);
    let failed = |text: String| Failure::new(Kind::Other, text);
    assembly::runtime(0)?.block_on(async {
        let client = kubernetes::client().ok_or_else(|| failed("not in a cluster".into()))?;
        let all: Api<DynamicObject> = Api::all_with(client, &resource());
        let nodes = match all.list(&ListParams::default()).await {
            Ok(nodes) => nodes,
            // Without the resource nothing was ever reported.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) => return Err(failed(format!("WeirNodes: {error}"))),
        };
        let now = Timestamp::now();
        let mut used = Vec::new();
        for node in nodes {
            let name = node.metadata.name.unwrap_or_default();
            used.extend(in_use(&name, &node.data["status"], now));
        }
        match used.is_empty() {
            true => Ok(()),
            false => Err(failed(format!(
                "pods still use volumes: {}; delete those pods first, or their mounts die with \
                 the driver",
                used.join(", ")
            ))),
        }
    })
}

/// What pods of a node use, for people. The mounts of a node that is not heard of any more may be
/// there still.
fn in_use(node: &str, status: &Value, now: Timestamp) -> Vec<String> {
    if status.is_null() {
        // It has reported nothing yet.
        return Vec::new();
    }
    let report = match NodeReport::deserialize(status) {
        Ok(report) => report,
        // Of another release, perhaps: what is not known to be free is in use.
        Err(error) => return vec![format!("perhaps some on {node}, whose report says: {error}")],
    };
    let node = match report.age(now).filter(|age| *age > SILENT_AFTER) {
        Some(age) => format!("{node} (last heard of {} ago)", roughly(age)),
        None => node.to_owned(),
    };
    let volumes = report.volumes.into_iter().filter(|volume| volume.pods > 0);
    let mut used: Vec<String> =
        volumes.map(|volume| format!("{} on {node}", volume.persistent_volume)).collect();
    if report.inline_volumes > 0 {
        used.push(format!("{} inline on {node}", report.inline_volumes));
    }
    used
}

/// A time for people: `40 minutes`, `7 hours`, `12 days`.
fn roughly(time: Duration) -> String {
    match time.as_secs() / 60 {
        minutes @ ..120 => format!("{minutes} minutes"),
        minutes @ ..2880 => format!("{} hours", minutes / 60),
        minutes => format!("{} days", minutes / 1440),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kubernetes::weirnode::VolumeReport;

    fn in_use(node: &str, status: &Value) -> Vec<String> {
        super::in_use(node, status, Timestamp::now())
    }

    #[test]
    fn inline_volumes_are_in_use_too() {
        let volume = |name: &str, pods| VolumeReport {
            persistent_volume: name.into(),
            pods,
            ..VolumeReport::default()
        };
        let report = NodeReport {
            volumes: vec![volume("a", 1), volume("b", 0)],
            inline_volumes: 2,
            ..NodeReport::default()
        };
        let status = |report| serde_json::to_value::<NodeReport>(report).unwrap();
        assert_eq!(in_use("n", &status(report)), ["a on n", "2 inline on n"]);
        assert!(in_use("n", &status(NodeReport::default())).is_empty());
        assert!(in_use("n", &Value::Null).is_empty());
    }

    #[test]
    fn a_report_that_is_not_understood_counts_as_in_use() {
        for status in [json!({"volumes": "many"}), json!("x"), json!({"inlineVolumes": -1})] {
            let used = in_use("n", &status);
            assert!(used.len() == 1 && used[0].contains("on n"), "{status}: {used:?}");
        }
    }

    #[test]
    fn what_a_silent_node_used_counts_and_it_is_told_since_when() {
        let used = |ago: i64| {
            let at = Timestamp::from_second(Timestamp::now().as_second() - ago).unwrap();
            in_use("n", &json!({"lastReportTime": at.to_string(), "inlineVolumes": 1}))
        };
        assert_eq!(used(60), ["1 inline on n"]);
        assert_eq!(used(3000), ["1 inline on n (last heard of 50 minutes ago)"]);
        assert_eq!(used(3 * 3600), ["1 inline on n (last heard of 3 hours ago)"]);
        assert_eq!(used(9 * 86400), ["1 inline on n (last heard of 9 days ago)"]);
    }
}
