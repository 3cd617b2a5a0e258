//! `weir standby`: lets kubelet take volumes away from pods while the node plugin is not there,
//! as when its image cannot be pulled. It is nobody, beside the registrar, and answers at the
//! plugin's socket only while nobody else does and something is mounted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::signal::unix::{SignalKind, signal};
use weir_csi::backend::{NodeInfo, VolumeStats};
use weir_csi::request::{Publish, StatsOf, Unpublish};
use weir_csi::server::Services;
use weir_csi::{Error, NodeBackend, socket};
use weir_fuse::blocking::aside;

use crate::cli::node::StandbyArgs;
use crate::exit::{Failure, Kind};
use crate::mounter::client::Mounter;
use crate::node::registered::Registered;
use crate::readiness::Readiness;
use crate::{assembly, csi, logging, metrics, probes};

/// How often it looks whether it is needed: each look is a connection to the node plugin.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it looks whether the node plugin is back, which waits for the socket.
const YIELD_EVERY: Duration = Duration::from_millis(200);
/// Looks in a row that find no node plugin before it steps in: one that restarts is not disturbed.
const LOOKS: u32 = 3;

/// Runs the command until a signal ends it.
///
/// # Errors
/// Why it cannot start.
pub fn run(args: &StandbyArgs) -> Result<(), Failure> {
    logging::start_plain(args.log.log_level, args.log.log_format);
    let runtime = assembly::runtime(0)?;
    let done = runtime.block_on(async {
        let counted = assembly::metrics()?;
        let registered = Registered::beside(&args.sockets.csi_socket, args.sockets.csi_group);
        if let Some(address) = args.log.metrics_listen {
            metrics::serve(address, counted.clone()).await?;
        }
        if let Some(address) = args.probes.health_listen {
            let registered = registered.clone();
            let is_current = Arc::new(move || registered.is_current());
            probes::serve(address, Readiness::default(), Some(is_current))?;
        }
        let failed = |e| Failure::new(Kind::Other, format!("signal handler: {e}"));
        let mut term = signal(SignalKind::terminate()).map_err(failed)?;
        let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
        let stand = async {
            loop {
                until_needed(&args.sockets.csi_socket, &args.sockets.mounter_socket).await;
                let backend = Backend {
                    mounter: args.sockets.mounter_socket.clone(),
                    registered: registered.clone(),
                };
                let services = Services { node: Some(Arc::new(backend)), controller: None };
                let over = until_over(&args.sockets.mounter_socket);
                let csi_socket = &args.sockets.csi_socket;
                // One that came a moment ago keeps it.
                if socket::is_served(csi_socket).await {
                    continue;
                }
                let listener = match socket::listen(csi_socket, args.sockets.csi_group) {
                    Ok(listener) => listener,
                    Err(error) => {
                        tracing::warn!(%error, "the plugin's socket cannot be taken");
                        continue;
                    }
                };
                tracing::warn!("no node plugin is there; pods can be deleted meanwhile");
                if let Err(error) =
                    csi::answer(listener, services, || false, counted.clone(), over).await
                {
                    tracing::warn!(%error, "serving ended");
                }
                tracing::info!("the node plugin is back");
            }
        };
        tokio::select! {
            () = stand => {}
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        Ok(())
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// Waits until nobody serves the socket, no engine is at the mounter, and something is mounted.
async fn until_needed(csi_socket: &Path, mounter: &Path) {
    let mut looks = 0;
    while looks < LOOKS {
        tokio::time::sleep(LOOK_EVERY).await;
        let is_served = socket::is_served(csi_socket).await;
        let asked = mounter.to_owned();
        let needed = aside(move |may| {
            let mounter = Mounter::visit(&asked);
            Ok::<_, std::io::Error>(!mounter.has_engine(may)? && mounter.is_showing(may)?)
        });
        let needed = !is_served && matches!(needed.await, Ok(true));
        looks = if needed { looks + 1 } else { 0 };
    }
}

/// Waits until an engine is at the mounter.
async fn until_over(mounter: &Path) {
    loop {
        let asked = mounter.to_owned();
        let is_back = aside(move |may| Mounter::visit(&asked).has_engine(may)).await;
        if matches!(is_back, Ok(true)) {
            return;
        }
        tokio::time::sleep(YIELD_EVERY).await;
    }
}

/// Takes away, and does nothing else.
struct Backend {
    mounter: PathBuf,
    registered: Registered,
}

fn absent<T>() -> Result<T, Error> {
    let text = "the node plugin (weir-node) is not running on this node: see its pod";
    Err(Error::Unavailable(text.into()))
}

#[async_trait]
impl NodeBackend for Backend {
    async fn publish(&self, _: Publish) -> Result<(), Error> {
        absent()
    }

    async fn unpublish(&self, unpublish: Unpublish) -> Result<(), Error> {
        let (mounter, target) = (self.mounter.clone(), unpublish.target.as_path().to_owned());
        let done = aside(move |may| Mounter::visit(&mounter).unbind(may, &target)).await;
        done.map_err(|error| Error::Internal(format!("removing {}: {error}", unpublish.target)))
    }

    async fn stats(&self, _: StatsOf) -> Result<VolumeStats, Error> {
        absent()
    }

    async fn info(&self) -> Result<NodeInfo, Error> {
        // kubelet asks when it restarts; another answer than before would cost the registration.
        self.registered.last().map_or_else(absent, Ok)
    }
}
