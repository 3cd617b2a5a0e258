//! The INIT handshake of a FUSE connection, seen and kept, so that an engine can go on where
//! another one ended.
#![allow(unsafe_code)] // Replaces a descriptor that fuser owns.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

/// More than any INIT message, and what the kernel wants of a buffer before INIT
/// (`FUSE_MIN_READ_BUFFER`).
const MESSAGE_MAX: usize = 64 << 10;
/// Size of `fuse_out_header`; the reply's body comes after it (include/uapi/linux/fuse.h).
const OUT_HEADER: usize = 16;
/// Offset of `flags2` in `fuse_init_out`.
const FLAGS2: usize = 32;
/// `FUSE_PASSTHROUGH`, as it stands in `flags2`.
const PASSTHROUGH: u32 = 1 << (37 - 32);
/// Offset of `flags2` in a whole INIT request: after `fuse_in_header` and four numbers.
const REQUEST_FLAGS2: usize = 40 + 16;
/// `FUSE_HAS_EXPIRE_ONLY`, as it stands in `flags2`: the kernel says so, and wants no answer.
const HAS_EXPIRE_ONLY: u32 = 1 << (35 - 32);
/// `FUSE_HAS_RESEND`, as it stands in `flags2`.
const HAS_RESEND: u32 = 1 << (39 - 32);
/// `FUSE_NOTIFY_RESEND`.
const NOTIFY_RESEND: i32 = 7;

/// What kernel and engine agreed on when the connection began. It holds as long as the mount.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Handshake {
    /// The kernel's INIT request.
    pub request: Vec<u8>,
    /// The engine's answer.
    pub reply: Vec<u8>,
}

impl Handshake {
    /// Whether the kernel may read files by itself.
    pub fn allows_passthrough(&self) -> bool {
        has_flag(&self.reply, OUT_HEADER + FLAGS2, PASSTHROUGH)
    }

    /// Whether the kernel can send requests again that an engine has left unanswered.
    pub fn allows_resend(&self) -> bool {
        has_flag(&self.request, REQUEST_FLAGS2, HAS_RESEND)
    }

    /// Whether the kernel can be told that a name expired.
    pub fn allows_expiry(&self) -> bool {
        has_flag(&self.request, REQUEST_FLAGS2, HAS_EXPIRE_ONLY)
    }
}

fn has_flag(message: &[u8], at: usize, flag: u32) -> bool {
    let flags = message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    flags.is_some_and(|bytes| u32::from_ne_bytes(bytes) & flag != 0)
}

/// Makes a session of fuser's on `device`. With `before` the kernel has had its handshake, with
/// an earlier engine: the session is shown that request again, and the kernel hears nothing.
///
/// # Errors
/// What the device or fuser report.
pub(super) fn session<F: fuser::Filesystem>(
    filesystem: F,
    device: &OwnedFd,
    config: fuser::Config,
    before: Option<Handshake>,
) -> io::Result<(fuser::Session<F>, Handshake)> {
    let (kernel_side, session_side) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    std::thread::scope(|scope| {
        let relay = scope.spawn(|| relay(device, &kernel_side, before));
        let made = fuser::Session::from_fd(filesystem, session_side, config.acl, config);
        // Where fuser failed, its end is closed, and the relay ends.
        let relayed = relay.join().map_err(|_| io::Error::other("the handshake panicked"))?;
        let session = made?;
        let handshake = relayed?;
        replace(session.as_fd(), device)?;
        Ok((session, handshake))
    })
}

fn relay(device: &OwnedFd, session: &OwnedFd, before: Option<Handshake>) -> io::Result<Handshake> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let request = match &before {
        Some(before) => before.request.clone(),
        None => {
            let read = rustix::io::retry_on_intr(|| rustix::io::read(device, &mut buffer[..]))?;
            buffer[..read].to_vec()
        }
    };
    rustix::net::send(session, &request, SendFlags::NOSIGNAL)?;
    let (read, _) = rustix::net::recv(session, &mut buffer[..], RecvFlags::empty())?;
    if read == 0 {
        return Err(io::Error::other("the session refused the kernel's INIT"));
    }
    let reply = buffer[..read].to_vec();
    if let Some(before) = before {
        if before.reply != reply {
            tracing::info!("this mount keeps what an earlier version of Weir agreed on");
        }
        return Ok(before);
    }
    rustix::io::write(device, &reply)?;
    Ok(Handshake { request, reply })
}

/// Makes the session's descriptor one of the device.
fn replace(session: BorrowedFd<'_>, device: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is fuser's and stays so: the guard below is never dropped as an
    // owner, and dup2 keeps its number valid throughout.
    let mut owned =
        std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(session.as_raw_fd()) });
    rustix::io::dup3(device, &mut owned, rustix::io::DupFlags::CLOEXEC)?;
    Ok(())
}

/// Asks the kernel to send again what it sent to an engine that is gone (Linux 6.9).
///
/// # Errors
/// EINVAL from a kernel that cannot.
pub(super) fn resend(device: &OwnedFd) -> io::Result<()> {
    // fuse_out_header: length, notification code, and a unique of 0 that marks a notification.
    let mut message = [0; OUT_HEADER];
    message[..4].copy_from_slice(&(OUT_HEADER as u32).to_ne_bytes());
    message[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    rustix::io::write(device, &message)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passthrough_is_read_from_the_reply() {
        let mut reply = vec![0; 80];
        let handshake = |reply: &[u8]| Handshake { request: Vec::new(), reply: reply.to_vec() };
        assert!(!handshake(&reply).allows_passthrough());
        assert!(!handshake(&reply[..20]).allows_passthrough());
        reply[OUT_HEADER + FLAGS2..][..4].copy_from_slice(&PASSTHROUGH.to_ne_bytes());
        assert!(handshake(&reply).allows_passthrough());
    }

    #[test]
    fn what_the_kernel_can_is_read_from_the_request() {
        let handshake = |request: Vec<u8>| Handshake { request, reply: Vec::new() };
        type Allows = fn(&Handshake) -> bool;
        let features: [(u32, Allows); 2] =
            [(HAS_RESEND, Handshake::allows_resend), (HAS_EXPIRE_ONLY, Handshake::allows_expiry)];
        for (flag, allows) in features {
            // Before Linux 5.17 the request ends before flags2.
            assert!(!allows(&handshake(vec![0xff; REQUEST_FLAGS2])));
            let mut request = vec![0; 104];
            assert!(!allows(&handshake(request.clone())));
            request[REQUEST_FLAGS2..][..4].copy_from_slice(&(!flag).to_ne_bytes());
            assert!(!allows(&handshake(request.clone())));
            request[REQUEST_FLAGS2..][..4].copy_from_slice(&flag.to_ne_bytes());
            assert!(allows(&handshake(request)));
        }
    }
}
