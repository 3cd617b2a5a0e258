//! Requests of the controller service.

use std::collections::BTreeMap;

use super::{Capability, Context, Secrets, VolumeId, VolumeName};
use crate::Error;
use crate::proto::{CreateVolumeRequest, TopologyRequirement, ValidateVolumeCapabilitiesRequest};

/// Where a volume may be used: sets of segments, of which one is enough.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Topologies {
    /// It must be usable from one of these.
    pub requisite: Vec<BTreeMap<String, String>>,
    /// Better from an earlier one of these.
    pub preferred: Vec<BTreeMap<String, String>>,
}

impl From<TopologyRequirement> for Topologies {
    fn from(requirement: TopologyRequirement) -> Self {
        let segments = |all: Vec<crate::proto::Topology>| all.into_iter().map(|t| t.segments);
        Self {
            requisite: segments(requirement.requisite).collect(),
            preferred: segments(requirement.preferred).collect(),
        }
    }
}

/// Make a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Create {
    /// Its name.
    pub name: VolumeName,
    /// Bytes asked for, and the most allowed; 0 where nothing was said.
    pub required_bytes: u64,
    /// The most bytes; `None` for any.
    pub limit_bytes: Option<u64>,
    /// How it will be used.
    pub capabilities: Vec<Capability>,
    /// Parameters of its class.
    pub parameters: Context,
    /// Secrets for making it.
    pub secrets: Secrets,
    /// Where it will be used, if that was said.
    pub topologies: Option<Topologies>,
}

impl Create {
    pub(crate) fn parse(request: CreateVolumeRequest) -> Result<Self, Error> {
        if request.volume_content_source.is_some() {
            return Err(Error::Invalid("volumes cannot be made from snapshots or clones".into()));
        }
        let range = request.capacity_range.unwrap_or_default();
        let bytes = |value: i64, what: &str| {
            u64::try_from(value).map_err(|_| Error::Invalid(format!("{what} is negative")))
        };
        let required_bytes = bytes(range.required_bytes, "required_bytes")?;
        let limit_bytes = Some(bytes(range.limit_bytes, "limit_bytes")?).filter(|l| *l > 0);
        if limit_bytes.is_some_and(|limit| limit < required_bytes) {
            return Err(Error::Invalid("limit_bytes is less than required_bytes".into()));
        }
        Ok(Self {
            name: VolumeName::parse(request.name)?,
            required_bytes,
            limit_bytes,
            capabilities: Capability::parse_all(request.volume_capabilities)?,
            parameters: Context::parse(request.parameters, "parameters")?,
            secrets: Secrets::parse(request.secrets)?,
            topologies: request.accessibility_requirements.map(Topologies::from),
        })
    }
}

/// Ask whether a volume can be used in some ways.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Validate {
    /// Which volume.
    pub volume_id: VolumeId,
    /// The volume's attributes.
    pub context: Context,
    /// Secrets for looking.
    pub secrets: Secrets,
}

impl Validate {
    pub(crate) fn parse(request: ValidateVolumeCapabilitiesRequest) -> Result<Self, Error> {
        Ok(Self {
            volume_id: VolumeId::parse(request.volume_id)?,
            context: Context::parse(request.volume_context, "volume_context")?,
            secrets: Secrets::parse(request.secrets)?,
        })
    }
}
