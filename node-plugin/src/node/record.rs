//! What is kept in custody about a session, so that another run of the node can serve it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weir_csi::Error;
use weir_csi::request::{
    Access, AccessMode, Capability, Context, Publish, Secrets, TargetPath, VolumeId,
};

use crate::kubernetes::events::Subject;

/// A publish request as it came, with its secrets: only ever in the mounter's memory.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    volume_id: String,
    target: String,
    context: BTreeMap<String, String>,
    secrets: BTreeMap<String, String>,
    mount_flags: Vec<String>,
    mount_group: Option<u32>,
    read_only: bool,
}

/// A target that shows a session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Published {
    /// The volume's handle.
    pub(super) volume_id: String,
    /// Whether the pod may only read.
    pub(super) read_only: bool,
    /// [`super::volume::Volume::shape`] of its publish.
    pub(super) shape: String,
    /// Whom it is shown to.
    pub(super) subject: Subject,
}

/// All of a session.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// The request that made it, or refreshed its credentials last.
    pub(super) request: Request,
    /// Device number of its mount, as `major:minor`.
    pub(super) device: String,
    /// A name that no other mount has or had; empty for one of a release before.
    #[serde(default)]
    pub(super) mount: String,
    /// Where it is shown.
    pub(super) targets: BTreeMap<PathBuf, Published>,
}

impl Request {
    pub(super) fn of(publish: &Publish) -> Self {
        Self {
            volume_id: publish.volume_id.as_str().to_owned(),
            target: publish.target.to_string(),
            context: publish.context.as_map().clone(),
            secrets: publish.secrets.as_map().clone(),
            mount_flags: publish.capability.mount_flags.clone(),
            mount_group: publish.capability.mount_group,
            read_only: publish.read_only,
        }
    }

    pub(super) fn publish(self) -> Result<Publish, Error> {
        Ok(Publish {
            volume_id: VolumeId::parse(self.volume_id)?,
            target: TargetPath::parse(&self.target, "target_path")?,
            capability: Capability {
                mode: AccessMode { access: Access::Write, single: false },
                mount_flags: self.mount_flags,
                mount_group: self.mount_group,
            },
            read_only: self.read_only,
            context: Context::parse(self.context, "volume_context")?,
            secrets: Secrets::parse(self.secrets)?,
        })
    }
}
