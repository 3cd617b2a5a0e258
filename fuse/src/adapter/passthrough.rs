//! What a session asks of the kernel, over /dev/fuse itself: backing files for passthrough, and names
//! that expired.
#![allow(unsafe_code)] // One ioctl that takes a pointer to an integer, and its declaration.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

use super::expired::ExpiredNames;
use crate::blocking::MayBlock;
use crate::engine::kernel::KernelPort;

/// `FUSE_DEV_IOC_BACKING_CLOSE` (include/uapi/linux/fuse.h).
const BACKING_CLOSE: Opcode = opcode::write::<u32>(229, 2);

/// The connection's descriptor.
pub struct DevFusePort {
    device: Arc<OwnedFd>,
    expired: Arc<ExpiredNames>,
}

impl DevFusePort {
    /// `device` is a descriptor of the mount's connection.
    pub fn new(device: impl Into<Arc<OwnedFd>>) -> Self {
        let device = device.into();
        Self { expired: ExpiredNames::new(device.clone()), device }
    }
}

impl KernelPort for DevFusePort {
    fn open_backing(&self, _: &MayBlock, file: &File) -> io::Result<u32> {
        fuser::BackingId::create_raw(&*self.device, file)
    }

    fn close_backing(&self, id: u32) {
        // SAFETY: BACKING_CLOSE reads one u32 and changes no memory of ours.
        let closed = unsafe {
            let request = Setter::<BACKING_CLOSE, u32>::new(id);
            ioctl(&*self.device, request)
        };
        if let Err(error) = closed {
            // After an unmount there is nothing left to close.
            tracing::debug!(%error, id, "backing id not closed");
        }
    }

    fn expire(&self, parent: u64, name: &str) {
        self.expired.add(parent, name);
    }
}

/// Answers an open with a raw backing id, leaving the id with its pool.
pub(super) fn reply_passthrough(
    reply: fuser::ReplyOpen,
    fh: u64,
    flags: fuser::FopenFlags,
    id: u32,
) {
    // SAFETY: the id belongs to this connection, and its pool keeps it open for longer than
    // this call; into_raw gives up the wrapper's claim to close it.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(fuser::FileHandle(fh), flags, &backing);
    backing.into_raw();
}
