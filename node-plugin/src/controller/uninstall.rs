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
            let name = node.metadata.name.unwrap_or_default();
            let volumes = report.volumes.into_iter().filter(|volume| volume.pods > 0);
            used.extend(volumes.map(|volume| format!("{} on {name}", volume.persistent_volume)));
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
