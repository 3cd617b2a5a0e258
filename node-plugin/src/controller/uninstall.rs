//! `weir uninstall-check`: whether pods still use volumes.

use kube::Api;
use kube::api::{DynamicObject, ListParams};

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
            let report: NodeReport =
                serde_json::from_value(node.data["status"].clone()).unwrap_or_default();
            used.extend(in_use(&node.metadata.name.unwrap_or_default(), report));
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
fn in_use(node: &str, report: NodeReport) -> Vec<String> {
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
        assert_eq!(in_use("n", report), ["a on n", "2 inline on n"]);
        assert!(in_use("n", NodeReport::default()).is_empty());
    }
}
