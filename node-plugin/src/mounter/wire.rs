//! Messages over a SOCK_SEQPACKET socket, with a few descriptors each.

use std::fs::Permissions;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message, in bytes. It passes whatever the system's buffers are set to
/// (`net.core.wmem_default` is 208 KiB).
pub(super) const MESSAGE_MAX: usize = 64 << 10;
/// Descriptors that come with a message.
const DESCRIPTORS_MAX: usize = 3;

/// A socket at `path` for this user alone, or for a group, too, in place of what is there.
///
/// # Errors
/// What the system reports.
pub fn listen(path: &Path, group: Option<u32>) -> io::Result<OwnedFd> {
    weir_csi::socket::make(path, |unnamed| {
        let socket = socket()?;
        // The name gets the mode of the socket: it is nobody else's at any time (unix(7)).
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(unnamed)?)?;
        rustix::net::listen(&socket, 64)?;
        if let Some(group) = group {
            // Nobody else writes in this folder.
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            share(folder.unwrap_or(Path::new(".")), group, 0o750)?;
            share(unnamed, group, 0o660)?;
        }
        Ok(socket)
    })
}

fn share(path: &Path, group: u32, mode: u32) -> io::Result<()> {
    std::os::unix::fs::chown(path, None, Some(group))?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// A connection to the socket at `path`, on which nothing takes longer than `deadline`.
///
/// # Errors
/// What the system reports: ENOENT or ECONNREFUSED while nobody listens, EAGAIN where who listens
/// takes no connection (unix(7), SO_SNDTIMEO).
pub fn connect(path: &Path, deadline: Duration) -> io::Result<OwnedFd> {
    let socket = socket()?;
    set_deadline(&socket, Some(deadline))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// How long sending and receiving wait from now on, EAGAIN after that; `None`: for ever.
///
/// # Errors
/// What the system reports.
pub fn set_deadline(socket: &OwnedFd, deadline: Option<Duration>) -> io::Result<()> {
    sockopt::set_socket_timeout(socket, Timeout::Send, deadline)?;
    Ok(sockopt::set_socket_timeout(socket, Timeout::Recv, deadline)?)
}

fn socket() -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message.
///
/// # Errors
/// What the system reports: EPIPE when the other side is gone. `InvalidInput` for one that is too
/// long.
pub fn send<T: Serialize>(
    socket: &OwnedFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(message).map_err(io::Error::other)?;
    if text.len() > MESSAGE_MAX || descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message is too long"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message; `None` when the other side is gone.
///
/// # Errors
/// What the system reports; `InvalidData` for what is no message.
pub fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    // Zeroed once, not for each message.
    buffer.resize(MESSAGE_MAX, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(buffer)];
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            descriptors.extend(came);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    // Descriptors are lost where this process has no room for them, too.
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    // The text of the error would repeat the message, which may hold credentials.
    let message = serde_json::from_slice(&buffer[..got.bytes])
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{:?}", e.classify())))?;
    Ok(Some((message, descriptors)))
}
