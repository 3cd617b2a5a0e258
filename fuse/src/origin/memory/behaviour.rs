//! In what an origin in memory is to be unlike S3, as real endpoints are.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::model::version::ObjectInfo;
use crate::origin::condition::ConditionKind;

/// What becomes of a condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Obedience {
    /// It is obeyed.
    #[default]
    Obeyed,
    /// It is obeyed where the tag comes without its quotes; with them it never matches.
    ObeyedBare,
    /// It is taken and means nothing.
    Ignored,
    /// The request is answered by 501 NotImplemented.
    Refused501,
    /// The request is answered by 409 Conflict.
    Refused409,
    /// The request is answered by 412 Precondition Failed, also where the condition holds.
    Refused412,
}

/// How an origin in memory behaves; by default as S3 does.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// What becomes of conditions; those that are not named are obeyed.
    pub conditions: BTreeMap<ConditionKind, Obedience>,
    /// Whether a body whose CRC32C is wrong is refused.
    pub checksums_obeyed: bool,
    /// Whether the completion of an upload must name every part that was stored.
    pub every_part_named: bool,
    /// Whether a multipart object that was copied has another tag in listings than by HEAD.
    pub copies_listed_otherwise: bool,
    /// Whether an object of several parts is never what the source of a copy is to be, whatever its tag.
    pub multipart_sources_refused: bool,
    /// Whether HEAD tells no tag.
    pub tags_untold: bool,
    /// Whether times of modification are whole seconds.
    pub times_in_seconds: bool,
    /// The smallest part but the last, in bytes.
    pub part_min: u64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            conditions: BTreeMap::new(),
            checksums_obeyed: true,
            every_part_named: false,
            copies_listed_otherwise: false,
            multipart_sources_refused: false,
            tags_untold: false,
            times_in_seconds: false,
            // Amazon S3 user guide, "Multipart upload limits".
            part_min: 5 << 20,
        }
    }
}

impl Behaviour {
    /// With this obedience to conditions of these kinds.
    #[must_use]
    pub fn with(
        mut self,
        kinds: impl IntoIterator<Item = ConditionKind>,
        obedience: Obedience,
    ) -> Self {
        self.conditions.extend(kinds.into_iter().map(|kind| (kind, obedience)));
        self
    }

    /// With parts as small as this, in bytes.
    #[must_use]
    pub fn with_part_min(mut self, part_min: u64) -> Self {
        self.part_min = part_min;
        self
    }

    /// What is told of an object.
    pub(super) fn told(&self, info: ObjectInfo) -> ObjectInfo {
        let since = info.mtime.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match self.times_in_seconds {
            true => {
                let mtime = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs());
                ObjectInfo { mtime, ..info }
            }
            false => info,
        }
    }

    pub(super) fn obedience(&self, kind: ConditionKind) -> Obedience {
        self.conditions.get(&kind).copied().unwrap_or_default()
    }
}
