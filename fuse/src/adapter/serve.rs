//! Mounting a session and serving it until it is unmounted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::filesystem::FuseSession;
use super::mount::{self, MountError, MountOptions};
use super::passthrough::DevFusePort;
use crate::engine::Session;

/// Threads that read requests. Reads of the cache's disk happen in them.
const THREADS: usize = 8;
/// Kernel read-ahead on the mount, in KiB.
const READ_AHEAD_KIB: u32 = 1024;
/// `OVERLAYFS_SUPER_MAGIC` (include/uapi/linux/magic.h).
const OVERLAYFS_MAGIC: u64 = 0x794c_7630;

/// A mount that is being served.
pub struct Mounted {
    mountpoint: PathBuf,
    thread: JoinHandle<io::Result<()>>,
    /// Whether the kernel reads complete files by itself.
    pub passthrough: bool,
}

/// Mounts `session` and serves it in threads of its own.
///
/// # Errors
/// [`MountError`].
pub fn mount(session: &Arc<Session>, options: &MountOptions) -> Result<Mounted, MountError> {
    let failed = |e| MountError::Failed(options.mountpoint.clone(), e);
    let device = mount::mount_device(options)?;
    let begun = serve(session, device);
    let (thread, passthrough) = begun.map_err(|error| {
        let _ = mount::unmount(&options.mountpoint, true);
        failed(error)
    })?;
    if let Some(device) = mount::device_of(&options.mountpoint) {
        session.set_device(&device);
        mount::set_read_ahead(&device, READ_AHEAD_KIB);
    }
    Ok(Mounted { mountpoint: options.mountpoint.clone(), thread, passthrough })
}

fn serve(
    session: &Arc<Session>,
    device: std::os::fd::OwnedFd,
) -> io::Result<(JoinHandle<io::Result<()>>, bool)> {
    let port = Arc::new(DevFusePort::new(device.try_clone()?));
    let agreed = Arc::new(AtomicBool::new(false));
    let seen = agreed.clone();
    let on_init = move |passthrough| seen.store(passthrough, Ordering::Relaxed);
    let depth = stack_depth(&session.engine().cache.stats().dir);
    let filesystem = FuseSession::new(session.clone(), depth, on_init);
    let mut config = fuser::Config::default();
    config.n_threads = Some(THREADS);
    config.acl = fuser::SessionACL::All;
    let fuse = fuser::Session::from_fd(filesystem, device, fuser::SessionACL::All, config)?;
    let passthrough = agreed.load(Ordering::Relaxed) && session.settings().passthrough;
    if passthrough {
        session.connect_kernel(port);
    }
    let thread = std::thread::Builder::new().name("weir-fuse".into()).spawn(move || fuse.run())?;
    Ok((thread, passthrough))
}

/// 1 lets pods put overlayfs on the mount; a cache on overlayfs needs 2.
fn stack_depth(cache: &Path) -> u32 {
    let stacked = rustix::fs::statfs(cache).is_ok_and(|s| s.f_type as u64 == OVERLAYFS_MAGIC);
    if stacked { 2 } else { 1 }
}

impl Mounted {
    /// Where.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

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
