//! The Controller service.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::backend::{ControllerBackend, Volume};
use crate::calls::Calls;
use crate::proto::controller_server::Controller;
use crate::proto::controller_service_capability::{self, Rpc, rpc};
use crate::proto::validate_volume_capabilities_response::Confirmed;
use crate::proto::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse,
    ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse,
    ControllerGetVolumeRequest, ControllerGetVolumeResponse, ControllerModifyVolumeRequest,
    ControllerModifyVolumeResponse, ControllerPublishVolumeRequest,
    ControllerPublishVolumeResponse, ControllerServiceCapability, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse, CreateSnapshotRequest, CreateSnapshotResponse,
    CreateVolumeRequest, CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse,
    DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse,
    GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest, ListSnapshotsResponse,
    ListVolumesRequest, ListVolumesResponse, Topology, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse, Volume as ProtoVolume,
};
use crate::request::{Capability, Create, Secrets, Validate, VolumeId};

/// The service over a backend.
pub(crate) struct ControllerService {
    pub(crate) backend: Arc<dyn ControllerBackend>,
    pub(crate) calls: Calls,
}

fn answer(volume: Volume) -> CreateVolumeResponse {
    let topology = |segments| Topology { segments };
    CreateVolumeResponse {
        volume: Some(ProtoVolume {
            capacity_bytes: i64::try_from(volume.capacity_bytes).unwrap_or(i64::MAX),
            volume_id: volume.id.as_str().to_owned(),
            volume_context: volume.context,
            content_source: None,
            accessible_topology: volume.segments.into_iter().map(topology).collect(),
        }),
    }
}

/// Methods that are not among the capabilities.
macro_rules! unsupported {
    ($($method:ident: $request:ident -> $response:ident),* $(,)?) => {$(
        fn $method<'life, 'future>(
            &'life self,
            _: Request<$request>,
        ) -> std::pin::Pin<
            Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'future>,
        >
        where
            'life: 'future,
            Self: 'future,
        {
            let text = concat!(stringify!($method), " is not among this plugin's capabilities");
            Box::pin(async move { Err(Status::unimplemented(text)) })
        }
    )*};
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let create = Create::parse(request.into_inner());
        let key = create.as_ref().map(|c| c.name.as_str().to_owned()).map_err(Clone::clone);
        self.calls
            .alone("CreateVolume", key, async { Ok(answer(self.backend.create(create?).await?)) })
            .await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let DeleteVolumeRequest { volume_id, secrets } = request.into_inner();
        let id = VolumeId::parse(volume_id);
        let key = id.as_ref().map(ToString::to_string).map_err(Clone::clone);
        self.calls
            .alone("DeleteVolume", key, async {
                self.backend.delete(id?, Secrets::parse(secrets)?).await?;
                Ok(DeleteVolumeResponse {})
            })
            .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        self.calls
            .run("ValidateVolumeCapabilities", async {
                let volume_capabilities = request.volume_capabilities.clone();
                let volume_context = request.volume_context.clone();
                let parameters = request.parameters.clone();
                let checked = Capability::parse_all(request.volume_capabilities.clone());
                if volume_capabilities.is_empty() {
                    checked.clone()?;
                }
                self.backend.validate(Validate::parse(request)?).await?;
                // Whatever can be parsed can be served; the rest is told, not failed.
                Ok(match checked {
                    Ok(_) => ValidateVolumeCapabilitiesResponse {
                        confirmed: Some(Confirmed {
                            volume_context,
                            volume_capabilities,
                            parameters,
                            ..Default::default()
                        }),
                        message: String::new(),
                    },
                    Err(error) => ValidateVolumeCapabilitiesResponse {
                        confirmed: None,
                        message: error.to_string(),
                    },
                })
            })
            .await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let capability = |kind: rpc::Type| ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(Rpc { r#type: kind as i32 })),
        };
        let capabilities = [rpc::Type::CreateDeleteVolume, rpc::Type::SingleNodeMultiWriter];
        Ok(Response::new(ControllerGetCapabilitiesResponse {
            capabilities: capabilities.map(capability).to_vec(),
        }))
    }

    unsupported! {
        controller_publish_volume:
            ControllerPublishVolumeRequest -> ControllerPublishVolumeResponse,
        controller_unpublish_volume:
            ControllerUnpublishVolumeRequest -> ControllerUnpublishVolumeResponse,
        list_volumes: ListVolumesRequest -> ListVolumesResponse,
        get_capacity: GetCapacityRequest -> GetCapacityResponse,
        create_snapshot: CreateSnapshotRequest -> CreateSnapshotResponse,
        delete_snapshot: DeleteSnapshotRequest -> DeleteSnapshotResponse,
        list_snapshots: ListSnapshotsRequest -> ListSnapshotsResponse,
        get_snapshot: GetSnapshotRequest -> GetSnapshotResponse,
        controller_expand_volume: ControllerExpandVolumeRequest -> ControllerExpandVolumeResponse,
        controller_get_volume: ControllerGetVolumeRequest -> ControllerGetVolumeResponse,
        controller_modify_volume: ControllerModifyVolumeRequest -> ControllerModifyVolumeResponse,
    }
}
