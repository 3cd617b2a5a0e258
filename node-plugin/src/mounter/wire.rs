//! Messages over a SOCK_SEQPACKET socket, with at most one descriptor each.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message, in bytes: custody of a full node with its records.
const MESSAGE_MAX: usize = 1 << 20;

/// A socket at `path` for this user alone, that gets its name once it listens.
///
/// # Errors
/// What the system reports.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let unnamed = path.with_extension("new");
    let _ = std::fs::remove_file(&unnamed);
    let socket = socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&unnamed)?)?;
    rustix::net::listen(&socket, 64)?;
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unnamed, path)?;
    Ok(socket)
}

/// A connection to the socket at `path`.
///
/// # Errors
/// What the system reports: ENOENT or ECONNREFUSED while nobody listens.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn socket() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Beyond the usual limit where this process may; else as far as the limit lets it.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, 2 * MESSAGE_MAX)
        .or_else(|_| rustix::net::sockopt::set_socket_send_buffer_size(&socket, 2 * MESSAGE_MAX));
    Ok(socket)
}

/// Sends one message.
///
/// # Errors
/// What the system reports: EPIPE when the other side is gone.
pub fn send<T: Serialize>(
    socket: &OwnedFd,
    message: &T,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let text = serde_json::to_vec(message).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
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
) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    // Zeroed once, not for each message.
    buffer.resize(MESSAGE_MAX, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(buffer)];
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptors.next();
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    // The text of the error would repeat the message, which may hold credentials.
    let message = serde_json::from_slice(&buffer[..got.bytes])
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{:?}", e.classify())))?;
    Ok(Some((message, descriptor)))
}
