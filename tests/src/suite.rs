//! Stands between the CSI project's conformance suite and a node plugin: the suite has volumes shown
//! at `target`, and kubelet's name, which alone is served, is `mount`.

use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};
use weir_csi::proto::identity_client::IdentityClient;
use weir_csi::proto::identity_server::{Identity, IdentityServer};
use weir_csi::proto::node_client::NodeClient;
use weir_csi::proto::node_server::{Node, NodeServer};
use weir_csi::proto::*;

use crate::csi_node::channel;
use crate::runtime;

/// What the suite calls the folder of a volume, and what kubelet does.
const SUITES: &str = "/target";
const KUBELETS: &str = "/mount";

#[derive(Clone)]
struct Between(Channel);

/// The same path in kubelet's words.
fn renamed(path: &str) -> String {
    path.strip_suffix(SUITES).map_or(path.to_owned(), |folder| format!("{folder}{KUBELETS}"))
}

/// Serves at `socket` what the node plugin at `node` answers.
pub fn serve(socket: &Path, node: PathBuf) {
    let between = Between(runtime().block_on(channel(node)));
    let listener = runtime().block_on(async { UnixListener::bind(socket).unwrap() });
    let connections = futures_util::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let served = Server::builder()
        .add_service(IdentityServer::new(between.clone()))
        .add_service(NodeServer::new(between))
        .serve_with_incoming(connections);
    runtime().spawn(served);
}

/// Calls that are passed on as they are, or with a path in kubelet's words.
macro_rules! pass_on {
    ($service:ident, $client:ident: $($call:ident($asked:ident $(, $path:ident)?) -> $answer:ident;)+) => {
        #[tonic::async_trait]
        impl $service for Between {
            $(
                #[allow(unused_mut, reason = "not every call names a path")]
                async fn $call(
                    &self,
                    request: Request<$asked>,
                ) -> Result<Response<$answer>, Status> {
                    let mut asked = request.into_inner();
                    $(asked.$path = renamed(&asked.$path);)?
                    $client::new(self.0.clone()).$call(asked).await
                }
            )+
        }
    };
}

pass_on! { Identity, IdentityClient:
    get_plugin_info(GetPluginInfoRequest) -> GetPluginInfoResponse;
    get_plugin_capabilities(GetPluginCapabilitiesRequest) -> GetPluginCapabilitiesResponse;
    probe(ProbeRequest) -> ProbeResponse;
}

pass_on! { Node, NodeClient:
    node_stage_volume(NodeStageVolumeRequest) -> NodeStageVolumeResponse;
    node_unstage_volume(NodeUnstageVolumeRequest) -> NodeUnstageVolumeResponse;
    node_publish_volume(NodePublishVolumeRequest, target_path) -> NodePublishVolumeResponse;
    node_unpublish_volume(NodeUnpublishVolumeRequest, target_path) -> NodeUnpublishVolumeResponse;
    node_get_volume_stats(NodeGetVolumeStatsRequest, volume_path) -> NodeGetVolumeStatsResponse;
    node_expand_volume(NodeExpandVolumeRequest, volume_path) -> NodeExpandVolumeResponse;
    node_get_capabilities(NodeGetCapabilitiesRequest) -> NodeGetCapabilitiesResponse;
    node_get_info(NodeGetInfoRequest) -> NodeGetInfoResponse;
}
