//! Mounting a session and serving it until it is unmounted.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::door::Door;
use super::filesystem::FuseSession;
use super::handshake::{self, Handshake};
use super::mount::{self, MountError, MountOptions};
use super::passthrough::DevFusePort;
use super::prune::Pruner;
use super::resent::Witness;
use crate::engine::Session;
use crate::engine::kernel::KernelPort;
use crate::namespace::inode::KernelNodes;

/// Threads that read requests: what waits is done by others ([`super::service`]). With one, a process
/// that writes little by little may wake a sleeping processor for each request (docs/performance.md).
const THREADS: usize = 2;

/// A mount that is being served.
pub struct Mounted {
    mountpoint: PathBuf,
    serving: Serving,
}

/// A connection that is being served.
pub struct Serving {
    thread: JoinHandle<io::Result<()>>,
    /// Whether the kernel reads complete files by itself.
    pub passthrough: bool,
    /// What was agreed on when the connection began.
    pub handshake: Handshake,
    /// How its requests come in, to be closed where another process will serve it on.
    pub door: Arc<Door>,
}

/// Mounts `session` and serves it in threads of its own.
///
/// # Errors
/// [`MountError`].
pub fn mount(session: &Arc<Session>, options: &MountOptions) -> Result<Mounted, MountError> {
    let failed = |e| MountError::Failed(options.mountpoint.clone(), e);
    let folder = mount::open_mountpoint(&options.mountpoint)?;
    let device = mount::mount_device(options, folder.as_fd())?;
    let begun = device
        .try_clone()
        .and_then(|port| serve(session, device, None, Arc::new(DevFusePort::new(port)), None));
    let serving = begun.map_err(|error| {
        let _ = mount::unmount(&options.mountpoint, true);
        failed(error)
    })?;
    if let Some(device) = mount::device_of(&options.mountpoint) {
        session.set_device(&device);
        mount::set_read_ahead(&device);
    }
    Ok(Mounted { mountpoint: options.mountpoint.clone(), serving })
}

/// Serves a connection that is mounted already, in threads of its own. `before` is what an
/// earlier engine agreed on with the kernel; requests that it left unanswered come again, and a
/// witness is told while they are under way.
///
/// # Errors
/// What the device reports.
pub fn serve(
    session: &Arc<Session>,
    device: OwnedFd,
    before: Option<Handshake>,
    port: Arc<dyn KernelPort>,
    witness: Option<Arc<dyn Witness>>,
) -> io::Result<Serving> {
    // 1 lets pods put overlayfs on the mount; a cache on overlayfs needs 2.
    let depth = if session.engine().cache.is_on_overlayfs() { 2 } else { 1 };
    let door = Arc::new(Door::default());
    if let Some(witness) = witness {
        door.tell(witness);
    }
    let filesystem = FuseSession::new(session.clone(), depth, door.clone());
    let mut config = fuser::Config::default();
    config.n_threads = Some(THREADS);
    config.acl = fuser::SessionACL::All;
    let adopted = before.is_some();
    let (fuse, handshake) = handshake::session(filesystem, &device, config, before)?;
    door.set_sends_again(handshake.allows_resend());
    let passthrough = handshake.allows_passthrough() && session.settings().passthrough;
    if handshake.allows_expiry() {
        session.connect_names(port.clone());
    }
    if passthrough {
        session.connect_kernel(port);
    }
    if adopted && let Err(error) = handshake::resend(&device) {
        tracing::warn!(%error, "requests under way when the last engine ended are lost");
    }
    let nodes: Arc<dyn KernelNodes> = Arc::new(Pruner::new(device, session));
    session.connect_nodes(&nodes);
    let run = move || {
        let _nodes = nodes;
        fuse.run()
    };
    let thread = std::thread::Builder::new().name("weir-fuse".into()).spawn(run)?;
    Ok(Serving { thread, passthrough, handshake, door })
}

impl Mounted {
    /// Where.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Whether the kernel reads complete files by itself.
    pub fn passthrough(&self) -> bool {
        self.serving.passthrough
    }

    /// As [`Serving::join`].
    ///
    /// # Errors
    /// As [`Serving::join`].
    pub fn join(self) -> io::Result<()> {
        self.serving.join()
    }
}

impl Serving {
    /// Waits until the mount is gone, by `umount` or by [`mount::unmount`].
    ///
    /// # Errors
    /// What ended the serving, if not an unmount.
    pub fn join(self) -> io::Result<()> {
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("a FUSE thread panicked")),
        }
    }
}
