//! `weir controller`: makes and removes volumes for a cluster.

mod handle;
mod parameters;
mod provision;
mod reconcile;
pub(crate) mod uninstall;

use std::sync::Arc;
use std::time::Duration;

use weir_csi::server::Services;

use crate::cli::ControllerArgs;
use crate::exit::Failure;
use crate::readiness::{Flag, Readiness};
use crate::{assembly, csi, kubernetes, logging, metrics, probes};

/// Runs the command until a signal ends it.
///
/// # Errors
/// Why it cannot start.
pub fn run(args: &ControllerArgs) -> Result<(), Failure> {
    logging::start_plain(args.log.log_level, args.log.log_format);
    let runtime = assembly::runtime()?;
    runtime.block_on(async {
        let counted = assembly::metrics()?;
        if let Some(address) = args.log.metrics_listen {
            metrics::serve(address, counted.clone()).await?;
        }
        let serving = Flag::default();
        let readiness = Readiness::new(vec![(csi::NOT_SERVED, serving.clone())]);
        if let Some(address) = args.probes.health_listen {
            probes::serve(address, readiness.clone(), None)?;
        }
        if let Some(client) = kubernetes::client() {
            tokio::spawn(reconcile::run(client));
        }
        let provisioner = provision::Provisioner::new(args.s3.clone(), counted.clone());
        let services = Services { node: None, controller: Some(Arc::new(provisioner)) };
        let on_signal = csi::OnSignal { call: || {}, patience: Duration::from_secs(20) };
        let ready = csi::Ready { serving, readiness };
        csi::serve(&args.csi_socket, services, ready, counted, on_signal).await
    })
}
