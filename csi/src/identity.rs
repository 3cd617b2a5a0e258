//! The Identity service.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::proto::identity_server::Identity;
use crate::proto::plugin_capability::{self, Service, service};
use crate::proto::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
};

/// What the plugin is.
#[derive(Clone)]
pub struct Plugin {
    /// Its name, as in the CSIDriver object.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Whether it can serve now.
    pub ready: Arc<dyn Fn() -> bool + Send + Sync>,
}

#[tonic::async_trait]
impl Identity for Plugin {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.name.clone(),
            vendor_version: self.version.clone(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let capability = |kind: service::Type| PluginCapability {
            r#type: Some(plugin_capability::Type::Service(Service { r#type: kind as i32 })),
        };
        // Of the plugin as a whole: node and controller answer alike.
        let capabilities = vec![
            capability(service::Type::ControllerService),
            capability(service::Type::VolumeAccessibilityConstraints),
        ];
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some((self.ready)()) }))
    }
}
