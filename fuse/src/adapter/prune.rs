//! Asks the kernel to forget nodes that it does not use: `FUSE_NOTIFY_PRUNE` (Linux 6.18, FUSE 7.45,
//! include/uapi/linux/fuse.h). It takes no lock that a request of the mount could hold (nodes in use
//! are passed over), so that it waits for nobody who waits for us.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::engine::{Engine, Session};
use crate::namespace::inode::KernelNodes;

/// The notification's number.
const NOTIFY_PRUNE: i32 = 9;
/// `fuse_out_header` and `fuse_notify_prune_out`, in bytes.
const HEADERS: usize = 16 + 16;
/// Most nodes of one notification.
const NODES_MAX: usize = 4096;

/// A descriptor of a connection. It is there as long as the connection is served.
pub(super) struct Pruner {
    device: Arc<OwnedFd>,
    engine: Arc<Engine>,
    /// Whether the kernel knows this notification, as far as it has said.
    is_known: Arc<AtomicBool>,
}

impl Pruner {
    /// `device` is a descriptor of the connection of `session`.
    pub(super) fn new(device: OwnedFd, session: &Arc<Session>) -> Self {
        Self {
            device: Arc::new(device),
            engine: session.engine().clone(),
            is_known: Arc::new(AtomicBool::new(true)),
        }
    }
}

impl KernelNodes for Pruner {
    fn prune(&self, inodes: Vec<u64>) -> bool {
        if !self.is_known.load(Ordering::Relaxed) {
            return false;
        }
        let (device, is_known) = (self.device.clone(), self.is_known.clone());
        let engine = &self.engine;
        // What the kernel forgets is freed while it is told.
        engine.waiting.begin(&engine.runtime, move |_| {
            for some in inodes.chunks(NODES_MAX) {
                match rustix::io::write(&device, &message(some)) {
                    Ok(_) => {}
                    Err(Errno::INVAL) => return is_known.store(false, Ordering::Relaxed),
                    // The connection has ended.
                    Err(error) => return tracing::debug!(%error, "no nodes are pruned"),
                }
            }
        });
        true
    }
}

fn message(inodes: &[u64]) -> Vec<u8> {
    let length = HEADERS + inodes.len() * 8;
    let mut message = Vec::with_capacity(length);
    // Length, notification, and a unique of 0; then the count, padding and what is spare.
    message.extend((length as u32).to_ne_bytes());
    message.extend(NOTIFY_PRUNE.to_ne_bytes());
    message.extend(0u64.to_ne_bytes());
    message.extend((inodes.len() as u32).to_ne_bytes());
    message.extend([0; 12]);
    message.extend(inodes.iter().flat_map(|ino| ino.to_ne_bytes()));
    message
}
