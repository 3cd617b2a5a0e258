//! A rename that was under way when its process died.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::record::{Copied, Copying, Line, Planned, VERSION};
use crate::blocking::MayBlock;
use crate::cache::dir::RENAME;
use crate::model::version::{ETag, ObjectInfo, Version};
use crate::origin::Condition;
use crate::write::draft::Owner;
use crate::write::lines;

/// By how much the origin's clock may be behind this one's.
const CLOCKS: Duration = Duration::from_secs(5);

/// A rename that a process left.
pub(in crate::write) struct RenameLeftover {
    path: PathBuf,
    /// Whose it is.
    pub(in crate::write) owner: Owner,
    pub(super) objects: Vec<Moved>,
    /// When it began.
    pub(super) began: SystemTime,
    /// Whether its point of no return was passed.
    pub(super) forward: bool,
    /// How many could not end it.
    pub(super) tries: u32,
}

/// An object of it.
pub(super) struct Moved {
    pub(super) from: String,
    pub(super) to: String,
    /// The version that is moved.
    pub(super) version: Version,
    /// What may be at `to` before the copy; `Always` where that is not known.
    pub(super) over: Condition,
    /// Whether a copy was asked for.
    pub(super) begun: bool,
    /// The tag of the copy, where the process lived to learn it.
    pub(super) copied: Option<ETag>,
    /// The tag of a copy of what its source was before.
    outdated: Option<ETag>,
}

/// Whether a file of the staging folder is a rename's record.
pub(in crate::write) fn is_record(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == RENAME)
}

impl RenameLeftover {
    /// Where its record is.
    pub(in crate::write) fn path(&self) -> &Path {
        &self.path
    }

    /// What a record tells. `None`: nothing that is to be done here.
    pub(in crate::write) fn read(may: &MayBlock, path: PathBuf) -> Option<Self> {
        let mut lines = lines::read::<Line>(may, &path).into_iter();
        let Some(Line { version: Some(version), bucket: Some(bucket), identity, time_ms, .. }) =
            lines.next()
        else {
            // Cut at its head: nothing was begun.
            let _ = fs::remove_file(&path);
            return None;
        };
        if version > VERSION {
            tracing::warn!(path = %path.display(), "a rename of a newer release is left alone");
            return None;
        }
        let mut found = Self {
            path,
            owner: Owner { bucket, identity: identity.unwrap_or_default() },
            objects: Vec::new(),
            began: UNIX_EPOCH + Duration::from_millis(time_ms.unwrap_or_default()),
            forward: false,
            tries: 0,
        };
        lines.for_each(|line| found.follow(line));
        Some(found)
    }

    fn follow(&mut self, line: Line) {
        if let Some(Planned { from, to, etag, size, over }) = line.object
            && let Some(etag) = ETag::new(&etag)
        {
            let (version, over) = (Version { etag, size }, Condition::of_tag(over.as_deref()));
            let (copied, outdated) = (None, None);
            self.objects.push(Moved { from, to, version, over, begun: false, copied, outdated });
        }
        if let Some(Copying { object, etag, size }) = line.copy
            && let (Some(moved), Some(etag)) = (self.objects.get_mut(object), ETag::new(&etag))
        {
            moved.version = Version { etag, size };
            moved.begun = true;
            moved.outdated = moved.copied.take().or(moved.outdated.take());
        }
        if let Some(Copied { object, etag }) = line.copied
            && let Some(moved) = self.objects.get_mut(object)
        {
            moved.copied = ETag::new(&etag);
        }
        self.forward = line.forward.unwrap_or(self.forward);
        self.tries += u32::from(line.tried.unwrap_or(false));
    }

    /// All keys that it is about.
    pub(in crate::write) fn keys(&self) -> impl Iterator<Item = &str> {
        self.objects.iter().flat_map(|moved| [&*moved.from, &*moved.to])
    }

    /// Notes that it could not be ended this time.
    pub(super) fn note_try(&self, may: &MayBlock) {
        let line = Line { tried: Some(true), ..Line::default() };
        if let Err(error) = lines::append_to_left(may, &self.path, line) {
            tracing::warn!(path = %self.path.display(), %error, "a rename's record lacks its last try");
        }
    }

    /// Removes the record.
    pub(super) fn forget(&self, _: &MayBlock) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Moved {
    /// Whether an object is the version that is moved.
    pub(super) fn is_source(&self, info: &ObjectInfo) -> bool {
        self.version.etag.is_same(info.etag.as_ref()) && self.version.size == info.size
    }

    /// On what condition what is at the target may be replaced by a copy; `None`: it may not.
    pub(super) fn may_replace(&self, present: Option<&ObjectInfo>) -> Option<Condition> {
        let tag = present.and_then(|info| info.etag.as_ref());
        match &self.over {
            // It is not known what was meant.
            Condition::Always => None,
            over if over.holds_for(present) => Some(over.clone()),
            _ if tag.is_some() && tag == self.outdated.as_ref() => {
                self.outdated.clone().map(Condition::Matches)
            }
            _ => None,
        }
    }

    /// Whether an object is the copy that the rename made, which began at `began`, of `source`. A
    /// copy has its source's nonce.
    pub(super) fn is_copy(
        &self,
        info: &ObjectInfo,
        source: &ObjectInfo,
        began: SystemTime,
    ) -> bool {
        if info.size != source.size || info.writer != source.writer {
            return false;
        }
        match &self.copied {
            Some(copied) => info.etag.as_ref() == Some(copied),
            None if source.writer.is_some() => true,
            // Nobody's nonce is there: the same bytes, and not from before.
            None => info.etag == source.etag && info.mtime + CLOCKS >= began,
        }
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
