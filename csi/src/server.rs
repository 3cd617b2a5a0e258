//! Serving over a unix socket.

use std::io;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::backend::{ControllerBackend, NodeBackend};
use crate::calls::Calls;
use crate::controller::ControllerService;
use crate::identity::Plugin;
use crate::node::NodeService;
use crate::proto::controller_server::ControllerServer;
use crate::proto::identity_server::IdentityServer;
use crate::proto::node_server::NodeServer;
use crate::{accept, caller};

/// The services of one socket, besides Identity.
#[derive(Clone, Default)]
pub struct Services {
    /// The Node service.
    pub node: Option<Arc<dyn NodeBackend>>,
    /// The Controller service.
    pub controller: Option<Arc<dyn ControllerBackend>>,
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
    // What the plugin is, whoever reaches the socket may ask.
    let node = services.node.map(|backend| {
        let service = NodeService { backend, calls: calls.clone() };
        NodeServer::with_interceptor(service, caller::check)
    });
    let controller = services.controller.map(|backend| {
        let service = ControllerService { backend, calls: calls.clone() };
        ControllerServer::with_interceptor(service, caller::check)
    });
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
