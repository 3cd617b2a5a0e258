//! Serving over a unix socket.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::accept;
use crate::backend::{ControllerBackend, NodeBackend};
use crate::calls::Calls;
use crate::controller::ControllerService;
use crate::identity::Plugin;
use crate::node::NodeService;
use crate::proto::controller_server::ControllerServer;
use crate::proto::identity_server::IdentityServer;
use crate::proto::node_server::NodeServer;

/// The services of one socket, besides Identity.
#[derive(Clone, Default)]
pub struct Services {
    /// The Node service.
    pub node: Option<Arc<dyn NodeBackend>>,
    /// The Controller service.
    pub controller: Option<Arc<dyn ControllerBackend>>,
}

/// Makes a listening socket at `path`, for this user alone (mode 0600), or for a group, too (0660). A
/// socket that a dead process left is replaced.
///
/// # Errors
/// `AddrInUse` when somebody listens there; else what the system reports.
pub async fn listen(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        let text = format!("{} is served by another process", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // It gets its name once it listens and is private.
    let unnamed = path.with_extension("new");
    let _ = std::fs::remove_file(&unnamed);
    let listener = UnixListener::bind(&unnamed)?;
    restrict(&unnamed, group)?;
    std::fs::rename(&unnamed, path)?;
    Ok(listener)
}

/// Gives a socket that was made just now its mode. Who else may write in its folder cannot have
/// something else changed by putting it there.
fn restrict(path: &Path, group: Option<u32>) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&socket)?;
    let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
    if !is_socket || stat.st_uid != rustix::process::geteuid().as_raw() {
        let text = format!("{}: somebody else makes files there", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    if let Some(group) = group {
        let group = Some(Gid::from_raw(group));
        rustix::fs::chownat(&socket, "", None, group, AtFlags::EMPTY_PATH)?;
    }
    let mode = Mode::from_raw_mode(if group.is_some() { 0o660 } else { 0o600 });
    let opened = format!("/proc/self/fd/{}", socket.as_raw_fd());
    Ok(rustix::fs::chmodat(CWD, opened, mode, AtFlags::empty())?)
}

/// Serves until `until` is over and the calls under way have ended.
///
/// # Errors
/// What the transport reports.
pub async fn serve(
    listener: UnixListener,
    plugin: Plugin,
    services: Services,
    calls: Calls,
    until: impl Future<Output = ()>,
) -> io::Result<()> {
    let node =
        services.node.map(|backend| NodeServer::new(NodeService { backend, calls: calls.clone() }));
    let controller = services
        .controller
        .map(|backend| ControllerServer::new(ControllerService { backend, calls: calls.clone() }));
    // The transport tries again at once, as often as it can.
    let connections = UnixListenerStream::new(listener).then(async |accepted| {
        if let Err(error) = &accepted {
            accept::failed(error).await;
        }
        accepted
    });
    Server::builder()
        .add_service(IdentityServer::new(plugin))
        .add_optional_service(node)
        .add_optional_service(controller)
        .serve_with_incoming_shutdown(connections, until)
        .await
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn a_socket_is_for_whom_it_says_and_nothing_put_in_its_place_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, file, link) =
            (dir.path().join("socket"), dir.path().join("file"), dir.path().join("link"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let group = rustix::process::getegid().as_raw();
        for (group, mode) in [(None, 0o600), (Some(group), 0o660)] {
            restrict(&socket, group).unwrap();
            assert_eq!(socket.metadata().unwrap().mode() & 0o777, mode);
        }
        std::fs::write(&file, "precious").unwrap();
        let before = file.metadata().unwrap().mode();
        symlink(&socket, &link).unwrap();
        for other in [&file, &link] {
            let refused = restrict(other, None).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{other:?}");
        }
        assert_eq!(file.metadata().unwrap().mode(), before);
        assert_eq!(socket.metadata().unwrap().mode() & 0o777, 0o660);
    }
}
