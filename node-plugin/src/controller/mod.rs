//! What a cluster has once: `weir controller` makes and removes volumes, `weir reconciler` makes
//! the cluster follow what its nodes tell.

mod annotations;
mod feed;
mod handle;
mod heard;
mod parameters;
mod provision;
mod reconcile;
pub(crate) mod uninstall;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod server;

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use weir_csi::server::Services;

use crate::cli::{ControllerArgs, ReconcilerArgs};
use crate::config::feed::feed_settings;
use crate::config::feed_from::feed_from;
use crate::exit::{Failure, Kind};
use crate::readiness::{Flag, Readiness};
use feed::Relaying;

use crate::{assembly, csi, kubernetes, logging, metrics, probes};

/// Runs the command until a signal ends it.
///
/// # Errors
/// Why it cannot start.
pub fn run(args: &ControllerArgs) -> Result<(), Failure> {
    let feed = feed_settings(&args.feed)?;
    let feed_from = feed_from(&args.feed_from, feed.is_some())?;
    logging::start_plain(args.log.log_level, args.log.log_format);
    let runtime = assembly::runtime(0)?;
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
        let relaying = match (&feed_from, feed) {
            (Some(from), Some(to)) => {
                let counted = counted.clone();
                Some(Relaying::start(from.clone(), to, &args.s3, counted).await?)
            }
            _ => None,
        };
        let provisioner = provision::Provisioner::new(args.s3.clone(), counted.clone());
        let services = Services { node: None, controller: Some(Arc::new(provisioner)) };
        let on_signal = csi::OnSignal { call: || {}, patience: Duration::from_secs(20) };
        let ready = csi::Ready { serving, readiness };
        let socket = csi::Socket { path: &args.csi_socket, group: None };
        let served = csi::serve(socket, services, ready, counted, on_signal).await;
        if let Some(relaying) = relaying {
            relaying.end().await;
        }
        served
    })
}

/// Runs `weir reconciler` until a signal ends it.
///
/// # Errors
/// Why it cannot start: outside of a cluster there is nothing to do.
pub fn run_reconciler(args: &ReconcilerArgs) -> Result<(), Failure> {
    logging::start_plain(args.log.log_level, args.log.log_format);
    let runtime = assembly::runtime(0)?;
    runtime.block_on(async {
        let failed = |text: String| Failure::new(Kind::Other, text);
        let client = kubernetes::client().ok_or_else(|| failed("not in a cluster".into()))?;
        if let Some(address) = args.log.metrics_listen {
            metrics::serve(address, assembly::metrics()?).await?;
        }
        if let Some(address) = args.probes.health_listen {
            probes::serve(address, Readiness::default(), None)?;
        }
        let broken = |e: std::io::Error| failed(format!("signal handler: {e}"));
        let mut term = signal(SignalKind::terminate()).map_err(broken)?;
        let mut int = signal(SignalKind::interrupt()).map_err(broken)?;
        tokio::select! {
            () = reconcile::run(client) => {}
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        Ok(())
    })
}
