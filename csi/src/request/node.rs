//! Requests of the node service.

use super::{Access, Capability, Context, Secrets, TargetPath, VolumeId};
use crate::Error;
use crate::proto::{
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest,
};

/// Show a volume to a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish {
    /// Which volume.
    pub volume_id: VolumeId,
    /// Where.
    pub target: TargetPath,
    /// How it is used.
    pub capability: Capability,
    /// Whether the pod may only read.
    pub read_only: bool,
    /// The volume's attributes, and what kubelet adds about the pod.
    pub context: Context,
    /// Secrets for this publish.
    pub secrets: Secrets,
}

impl Publish {
    pub(crate) fn parse(request: NodePublishVolumeRequest) -> Result<Self, Error> {
        let capability = Capability::parse(request.volume_capability)?;
        Ok(Self {
            volume_id: VolumeId::parse(request.volume_id)?,
            target: TargetPath::parse(&request.target_path, "target_path")?,
            read_only: request.readonly || capability.mode.access == Access::Read,
            capability,
            context: Context::parse(request.volume_context, "volume_context")?,
            secrets: Secrets::parse(request.secrets)?,
        })
    }
}

/// Take a volume away from a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unpublish {
    /// Which volume.
    pub volume_id: VolumeId,
    /// Where it is shown.
    pub target: TargetPath,
}

impl Unpublish {
    pub(crate) fn parse(request: NodeUnpublishVolumeRequest) -> Result<Self, Error> {
        Ok(Self {
            volume_id: VolumeId::parse(request.volume_id)?,
            target: TargetPath::parse(&request.target_path, "target_path")?,
        })
    }
}

/// Ask how a published volume is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatsOf {
    /// Which volume.
    pub volume_id: VolumeId,
    /// Where it is shown.
    pub path: TargetPath,
}

impl StatsOf {
    pub(crate) fn parse(request: NodeGetVolumeStatsRequest) -> Result<Self, Error> {
        let volume_id = VolumeId::parse(request.volume_id)?;
        let path = request.volume_path;
        match TargetPath::parse(&path, "volume_path") {
            Ok(path) => Ok(Self { volume_id, path }),
            Err(error) if path.is_empty() => Err(error),
            // Nothing can be published there.
            Err(error) => Err(Error::NotFound(error.to_string())),
        }
    }
}
