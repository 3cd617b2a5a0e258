//! The Node service.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::backend::{NodeBackend, Usage};
use crate::calls::Calls;
use crate::proto::node_server::Node;
use crate::proto::node_service_capability::{self, Rpc, rpc};
use crate::proto::volume_usage::Unit;
use crate::proto::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, Topology, VolumeCondition, VolumeUsage,
};
use crate::request::{Publish, StatsOf, Unpublish};

/// The service over a backend.
pub(crate) struct NodeService {
    pub(crate) backend: Arc<dyn NodeBackend>,
    pub(crate) calls: Calls,
}

fn usage(usage: Usage, unit: Unit) -> VolumeUsage {
    let Usage { total, used, available } = usage;
    VolumeUsage { total, used, available, unit: unit as i32 }
}

fn unsupported<T>(what: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!("{what} is not among this plugin's capabilities")))
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let publish = Publish::parse(request.into_inner());
        let key = publish.as_ref().map(|p| p.target.to_string()).map_err(Clone::clone);
        self.calls
            .alone("NodePublishVolume", key, async {
                self.backend.publish(publish?).await?;
                Ok(NodePublishVolumeResponse {})
            })
            .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let unpublish = Unpublish::parse(request.into_inner());
        let key = unpublish.as_ref().map(|u| u.target.to_string()).map_err(Clone::clone);
        self.calls
            .alone("NodeUnpublishVolume", key, async {
                self.backend.unpublish(unpublish?).await?;
                Ok(NodeUnpublishVolumeResponse {})
            })
            .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let of = StatsOf::parse(request.into_inner());
        self.calls
            .run("NodeGetVolumeStats", async {
                let stats = self.backend.stats(of?).await?;
                let condition = VolumeCondition {
                    abnormal: stats.abnormal.is_some(),
                    message: stats.abnormal.unwrap_or_else(|| "the volume is served".into()),
                };
                Ok(NodeGetVolumeStatsResponse {
                    usage: vec![usage(stats.bytes, Unit::Bytes), usage(stats.inodes, Unit::Inodes)],
                    volume_condition: Some(condition),
                })
            })
            .await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |kind: rpc::Type| NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(Rpc { r#type: kind as i32 })),
        };
        // No STAGE_UNSTAGE_VOLUME: a stage call gets neither the pod nor its token, and the
        // group of whichever pod came first.
        let capabilities = [
            rpc::Type::GetVolumeStats,
            rpc::Type::VolumeCondition,
            rpc::Type::VolumeMountGroup,
            rpc::Type::SingleNodeMultiWriter,
        ];
        Ok(Response::new(NodeGetCapabilitiesResponse {
            capabilities: capabilities.map(capability).to_vec(),
        }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        self.calls
            .run("NodeGetInfo", async {
                let info = self.backend.info().await?;
                Ok(NodeGetInfoResponse {
                    node_id: info.node_id,
                    max_volumes_per_node: info.max_volumes,
                    accessible_topology: Some(Topology { segments: info.segments }),
                })
            })
            .await
    }

    async fn node_stage_volume(
        &self,
        _: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        unsupported("NodeStageVolume")
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        unsupported("NodeUnstageVolume")
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        unsupported("NodeExpandVolume")
    }
}
