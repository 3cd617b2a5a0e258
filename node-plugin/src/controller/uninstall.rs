//! `weir uninstall-check`: whether pods still use volumes.

use kube::Api;
use kube::api::{DynamicObject, ListParams};
use serde::Deserialize;
use serde_json::Value;

use crate::exit::{Failure, Kind};
use crate::kubernetes;
use crate::kubernetes::weirnode::{NodeReport, resource};
use crate::{assembly, logging};

/// Runs the command.
///
/// # Errors
/// Which volumes are in use, and where.
pub(crate) fn check() -> Result<(), Failure> {
    logging::start_plain(tracing::Level::INFO, crate::cli::LogFormat::Text);
    let failed = |text: String| Failure::new(Kind::Other, text);
    assembly::runtime()?.block_on(async {
        let client = kubernetes::client().ok_or_else(|| failed("not in a cluster".into()))?;
        let all: Api<DynamicObject> = Api::all_with(client, &resource());
        let nodes = match all.list(&ListParams::default()).await {
            Ok(nodes) => nodes,
            // Without the resource nothing was ever reported.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) => return Err(failed(format!("WeirNodes: {error}"))),
        };
        let mut used = Vec::new();
        for node in nodes {
            used.extend(in_use(&node.metadata.name.unwrap_or_default(), &node.data["status"]));
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

/// What pods of a node use, for people.
fn in_use(node: &str, status: &Value) -> Vec<String> {
    if status.is_null() {
        // It has reported nothing yet.
        return Vec::new();
    }
    let report = match NodeReport::deserialize(status) {
        Ok(report) => report,
        // Of another release, perhaps: what is not known to be free is in use.
        Err(error) => return vec![format!("perhaps some on {node}, whose report says: {error}")],
    };
    let volumes = report.volumes.into_iter().filter(|volume| volume.pods > 0);
    let mut used: Vec<String> =
        volumes.map(|volume| format!("{} on {node}", volume.persistent_volume)).collect();
    if report.inline_volumes > 0 {
        used.push(format!("{} inline on {node}", report.inline_volumes));
    }
    used
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kubernetes::weirnode::VolumeReport;

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
}
