//! How a volume is to be used.

use crate::Error;
use crate::proto::volume_capability::access_mode::Mode;
use crate::proto::volume_capability::{AccessMode as ProtoMode, AccessType};
use crate::proto::{VolumeCapability, volume_capability};

/// Who may do what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    Write,
}

/// An access mode of the specification, all of which an S3 volume can serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AccessMode {
    /// What the mode allows.
    pub access: Access,
    /// Whether only one pod may publish it on a node (`SINGLE_NODE_SINGLE_WRITER`).
    pub single: bool,
}

impl AccessMode {
    fn parse(mode: Option<ProtoMode>) -> Result<Self, Error> {
        let mode = mode.ok_or_else(|| Error::Invalid("access_mode is missing".into()))?;
        let of = |access, single| Ok(Self { access, single });
        match Mode::try_from(mode.mode) {
            Ok(Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly) => of(Access::Read, false),
            Ok(Mode::SingleNodeSingleWriter) => of(Access::Write, true),
            Ok(
                Mode::SingleNodeWriter
                | Mode::SingleNodeMultiWriter
                | Mode::MultiNodeSingleWriter
                | Mode::MultiNodeMultiWriter,
            ) => of(Access::Write, false),
            Ok(Mode::Unknown) | Err(_) => {
                Err(Error::Invalid(format!("access_mode {} is unknown", mode.mode)))
            }
        }
    }
}

/// A capability that can be served: a mount, not a block device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capability {
    /// The access mode.
    pub mode: AccessMode,
    /// Mount options, as the volume's author wrote them.
    pub mount_flags: Vec<String>,
    /// Group that everything in the volume is to belong to.
    pub mount_group: Option<u32>,
}

impl Capability {
    /// Checks a capability.
    ///
    /// # Errors
    /// [`Error::Invalid`] when parts are missing, or when a block device is asked for.
    pub(crate) fn parse(capability: Option<VolumeCapability>) -> Result<Self, Error> {
        let missing = || Error::Invalid("volume_capability is missing".into());
        let VolumeCapability { access_type, access_mode } = capability.ok_or_else(missing)?;
        let mount = match access_type {
            Some(AccessType::Mount(mount)) => mount,
            Some(AccessType::Block(_)) => {
                let text = "a bucket cannot be a block device; use volumeMode: Filesystem";
                return Err(Error::Invalid(text.into()));
            }
            None => return Err(Error::Invalid("volume_capability has no access type".into())),
        };
        Ok(Self {
            mode: AccessMode::parse(access_mode)?,
            mount_group: group(&mount)?,
            mount_flags: mount.mount_flags,
        })
    }

    /// Checks a list of capabilities.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is empty, or one of them is wrong.
    pub(crate) fn parse_all(all: Vec<VolumeCapability>) -> Result<Vec<Self>, Error> {
        if all.is_empty() {
            return Err(Error::Invalid("volume_capabilities are missing".into()));
        }
        all.into_iter().map(|one| Self::parse(Some(one))).collect()
    }
}

fn group(mount: &volume_capability::MountVolume) -> Result<Option<u32>, Error> {
    match mount.volume_mount_group.as_str() {
        "" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| Error::Invalid(format!("volume_mount_group {text:?} is no group id"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capability(mode: Mode, access_type: Option<AccessType>) -> VolumeCapability {
        VolumeCapability { access_type, access_mode: Some(ProtoMode { mode: mode as i32 }) }
    }

    fn mount(group: &str) -> Option<AccessType> {
        Some(AccessType::Mount(volume_capability::MountVolume {
            volume_mount_group: group.into(),
            ..Default::default()
        }))
    }

    #[test]
    fn every_mode_that_says_something_is_served() {
        for (mode, access, single) in [
            (Mode::SingleNodeWriter, Access::Write, false),
            (Mode::SingleNodeReaderOnly, Access::Read, false),
            (Mode::MultiNodeReaderOnly, Access::Read, false),
            (Mode::MultiNodeSingleWriter, Access::Write, false),
            (Mode::MultiNodeMultiWriter, Access::Write, false),
            (Mode::SingleNodeSingleWriter, Access::Write, true),
            (Mode::SingleNodeMultiWriter, Access::Write, false),
        ] {
            let parsed = Capability::parse(Some(capability(mode, mount("7")))).unwrap();
            assert_eq!(parsed.mode, AccessMode { access, single });
            assert_eq!(parsed.mount_group, Some(7));
        }
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let block = Some(AccessType::Block(volume_capability::BlockVolume {}));
        for bad in [
            None,
            Some(VolumeCapability { access_type: mount(""), access_mode: None }),
            Some(capability(Mode::Unknown, mount(""))),
            Some(capability(Mode::SingleNodeWriter, None)),
            Some(capability(Mode::SingleNodeWriter, block)),
            Some(capability(Mode::SingleNodeWriter, mount("staff"))),
        ] {
            assert!(matches!(Capability::parse(bad), Err(Error::Invalid(_))));
        }
    }
}
