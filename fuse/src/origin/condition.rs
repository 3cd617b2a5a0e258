//! Conditions, and the requests that may carry them.

use serde::{Deserialize, Serialize};

use crate::model::version::{ETag, ObjectInfo};

/// On what condition an object may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// On none.
    Always,
    /// Only where there is no object (If-None-Match: *).
    Absent,
    /// Only over this version (If-Match).
    Matches(ETag),
}

impl Condition {
    /// With the tag in its form without quotes.
    pub(super) fn bare(&self) -> Self {
        match self {
            Self::Matches(etag) => Self::Matches(etag.bare()),
            other => other.clone(),
        }
    }

    /// As text, for a record: a tag, empty for no object, `None` for [`Condition::Always`].
    pub(crate) fn to_tag(&self) -> Option<String> {
        match self {
            Self::Always => None,
            Self::Absent => Some(String::new()),
            Self::Matches(etag) => Some(etag.as_str().to_owned()),
        }
    }

    /// What [`Condition::to_tag`] made a text of.
    pub(crate) fn of_tag(text: Option<&str>) -> Self {
        match text {
            None => Self::Always,
            Some(text) => ETag::new(text).map_or(Self::Absent, Self::Matches),
        }
    }

    /// Whether it holds for what is there. An object is there also where the endpoint tells no tag of it.
    pub fn holds_for(&self, present: Option<&ObjectInfo>) -> bool {
        match (self, present) {
            (Self::Always, _) | (Self::Absent, None) => true,
            (Self::Absent, Some(_)) | (Self::Matches(_), None) => false,
            (Self::Matches(etag), Some(present)) => present.etag.as_ref() == Some(etag),
        }
    }
}

/// A request together with the header that makes it conditional: endpoints obey some of these
/// and not others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConditionKind {
    /// PUT with If-None-Match.
    PutAbsent,
    /// PUT with If-Match.
    PutMatches,
    /// CompleteMultipartUpload with If-None-Match.
    CompleteAbsent,
    /// CompleteMultipartUpload with If-Match.
    CompleteMatches,
    /// CopyObject with If-None-Match.
    CopyAbsent,
    /// CopyObject with If-Match.
    CopyMatches,
    /// DELETE with If-Match.
    DeleteMatches,
    /// CopyObject with x-amz-copy-source-if-match.
    CopySource,
    /// UploadPartCopy with x-amz-copy-source-if-match.
    CopyPartSource,
}

impl ConditionKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::PutAbsent,
        Self::PutMatches,
        Self::CompleteAbsent,
        Self::CompleteMatches,
        Self::CopyAbsent,
        Self::CopyMatches,
        Self::DeleteMatches,
        Self::CopySource,
        Self::CopyPartSource,
    ];

    /// That of a PUT with this condition.
    pub fn of_put(condition: &Condition) -> Option<Self> {
        Self::choose(condition, Self::PutAbsent, Self::PutMatches)
    }

    /// That of the completion of an upload with this condition.
    pub fn of_complete(condition: &Condition) -> Option<Self> {
        Self::choose(condition, Self::CompleteAbsent, Self::CompleteMatches)
    }

    /// That of a copy with this condition on its target.
    pub fn of_copy(condition: &Condition) -> Option<Self> {
        Self::choose(condition, Self::CopyAbsent, Self::CopyMatches)
    }

    fn choose(condition: &Condition, absent: Self, matches: Self) -> Option<Self> {
        match condition {
            Condition::Always => None,
            Condition::Absent => Some(absent),
            Condition::Matches(_) => Some(matches),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn an_object_without_a_tag_is_there_and_no_version() {
        let of = |etag| ObjectInfo {
            size: 1,
            etag,
            mtime: SystemTime::now(),
            version_id: None,
            writer: None,
        };
        let (tagged, untagged) = (of(ETag::new("a")), of(ETag::new("")));
        let is_a = Condition::Matches(ETag::new("a").unwrap());
        for (condition, present, holds) in [
            (&Condition::Absent, None, true),
            (&Condition::Absent, Some(&tagged), false),
            (&Condition::Absent, Some(&untagged), false),
            (&is_a, None, false),
            (&is_a, Some(&tagged), true),
            (&is_a, Some(&untagged), false),
            (&Condition::Always, Some(&untagged), true),
        ] {
            assert_eq!(condition.holds_for(present), holds, "{condition:?} {present:?}");
        }
    }
}
