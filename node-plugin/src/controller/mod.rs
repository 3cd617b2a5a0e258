//! `weir controller`: makes and removes volumes for a cluster.

mod handle;
mod parameters;
mod provision;

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use weir_csi::server::{self, Services};
use weir_csi::{Calls, Plugin};

use crate::cli::ControllerArgs;
use crate::exit::{Failure, Kind};
use crate::node::DRIVER;
use crate::{assembly, logging, metrics};

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
        let failed = |e: std::io::Error| {
            Failure::new(Kind::Other, format!("CSI socket {}: {e}", args.csi_socket.display()))
        };
        let mut term = signal(SignalKind::terminate()).map_err(failed)?;
        let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
        let listener = server::listen(&args.csi_socket).await.map_err(failed)?;
        let plugin = Plugin {
            name: DRIVER.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: Arc::new(|| true),
        };
        let provisioner = provision::Provisioner::new(args.s3.clone(), counted.clone());
        let services = Services { node: None, controller: Some(Arc::new(provisioner)) };
        let calls = Calls::new(move |method, code, took| {
            counted.csi(method, &format!("{code:?}"), took);
        });
        tracing::info!(socket = %args.csi_socket.display(), "controller ready");
        let ended = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        server::serve(listener, plugin, services, calls, ended).await.map_err(failed)
    })
}
