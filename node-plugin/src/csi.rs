//! What node and controller have in common: a CSI socket, served until a signal comes.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use weir_csi::server::{self, Services};
use weir_csi::{Calls, Error, Plugin, socket};
use weir_fuse::metrics::Metrics;

use crate::exit::{Failure, Kind};
use crate::readiness::{Flag, Readiness};

/// Name of the CSI driver.
pub const DRIVER: &str = "s3.csi.weir.dev";
/// How long a socket that another process serves is waited for, before it is taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it means that the socket is not served.
pub(crate) const NOT_SERVED: &str = "the CSI socket is not served";

/// Whether the plugin can serve.
pub(crate) struct Ready {
    /// Is told whether the socket is served.
    pub(crate) serving: Flag,
    /// What CSI's Probe answers.
    pub(crate) readiness: Readiness,
}

/// What happens when a signal ends the serving.
pub(crate) struct OnSignal<F> {
    /// Is called at once.
    pub(crate) call: F,
    /// How long calls under way may take then.
    pub(crate) patience: Duration,
}

/// Where kubelet or a sidecar calls.
#[derive(Clone, Copy)]
pub(crate) struct Socket<'a> {
    pub(crate) path: &'a Path,
    /// Who else may call, and answer in this process's place while it is not there.
    pub(crate) group: Option<u32>,
}

/// A failure in the terms of CSI.
pub(crate) fn failed(failure: Failure) -> Error {
    let text = failure.text.replace("--", "");
    match failure.kind {
        Kind::Usage => Error::Invalid(text),
        Kind::Credentials => Error::Denied(text),
        Kind::Bucket => Error::NotFound(text),
        Kind::Endpoint => Error::Unavailable(text),
        Kind::Other | Kind::Mountpoint | Kind::Cache | Kind::Kernel => Error::Internal(text),
    }
}

/// Serves these services at `socket` until SIGTERM or SIGINT, and until the calls under way have
/// ended or are late.
///
/// # Errors
/// What the socket reports.
pub(crate) async fn serve(
    socket: Socket<'_>,
    services: Services,
    ready: Ready,
    counted: Arc<Metrics>,
    on_signal: OnSignal<impl FnOnce()>,
) -> Result<(), Failure> {
    let failed = |e: io::Error| {
        Failure::new(Kind::Other, format!("CSI socket {}: {e}", socket.path.display()))
    };
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let OnSignal { call, patience } = on_signal;
    let (told, heard) = oneshot::channel();
    let Ready { serving, readiness } = ready;
    let served = serving.clone();
    let ended = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("signal received");
        served.set(false);
        call();
        let _ = told.send(());
    };
    let late = async move {
        match heard.await {
            Ok(()) => tokio::time::sleep(patience).await,
            // Ended without a signal.
            Err(_) => std::future::pending().await,
        }
    };
    let listener = listen(socket).await.map_err(failed)?;
    serving.set(true);
    let ready = move || readiness.lack().is_none();
    tokio::select! {
        done = answer(listener, services, ready, counted, ended) => done.map_err(failed),
        () = late => {
            tracing::warn!("calls under way are given up; they come again");
            Ok(())
        }
    }
}

/// Lets a group answer at a socket in this folder, too. Without it only pods that are deleted while
/// this process is away wait for it.
pub(crate) fn share_folder(socket: &Path, group: u32) {
    let Some(folder) = socket.parent() else { return };
    let shared = std::fs::create_dir_all(folder)
        .and_then(|()| std::os::unix::fs::chown(folder, None, Some(group)))
        .and_then(|()| std::fs::set_permissions(folder, Permissions::from_mode(0o770)));
    if let Err(error) = shared {
        tracing::warn!(%error, group, folder = %folder.display(), "no standby can answer there");
    }
}

/// The standby gives the socket up when it hears of an engine, and a node plugin when it ends. From who
/// does not it is taken: he keeps pods from their volumes.
async fn listen(socket: Socket<'_>) -> io::Result<UnixListener> {
    let until = Instant::now() + PATIENCE;
    while socket::is_served(socket.path).await {
        if Instant::now() >= until {
            let path = socket.path.display();
            tracing::warn!(%path, "another process listens there and does not end; it is replaced");
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    socket::listen(socket.path, socket.group)
}

/// Answers calls at a listening socket until `ended`, and until the calls under way have ended.
///
/// # Errors
/// What the transport reports.
pub(crate) async fn answer(
    listener: UnixListener,
    services: Services,
    ready: impl Fn() -> bool + Send + Sync + 'static,
    counted: Arc<Metrics>,
    ended: impl Future<Output = ()>,
) -> io::Result<()> {
    let plugin = Plugin {
        name: DRIVER.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: Arc::new(ready),
    };
    let calls = Calls::new(move |method, code, took| {
        counted.csi(method, &format!("{code:?}"), took);
    });
    tracing::info!("serving CSI calls");
    server::serve(listener, plugin, services, calls, ended).await
}
