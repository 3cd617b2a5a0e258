//! What a process that has died left of the files that it was writing.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::record::{Begins, Line, Owner, VERSION, path_of};
use crate::blocking::MayBlock;
use crate::cache::dir::RECORD;
use crate::write::lines;

/// How many engines keep a record for handles of which they hear nothing.
const KEPT_MAX: u32 = 20;

/// A file that was being written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Where the bytes are.
    pub staging: PathBuf,
    /// Whose they are; `None` where the record does not tell.
    pub owner: Option<Owner>,
    /// The mount that it was written through; empty where no other engine serves that.
    pub mount: String,
    /// Who wrote it; empty where that is not known.
    pub tenant: String,
    /// The object's key; empty where it is not known.
    pub key: String,
    /// Handles that the kernel had of it, and that are not known to be closed.
    pub handles: Vec<u64>,
    /// Whether the origin holds all of it.
    pub clean: bool,
    /// Whether it had no name any more.
    pub unlinked: bool,
    /// The upload under way.
    pub upload: Option<PendingId>,
    /// How many engines have kept the record for the handles.
    kept: u32,
}

/// An upload of a process that has died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingId {
    /// The key that it was begun under.
    pub key: String,
    /// Its id; `None` where the process died before it learnt it.
    pub id: Option<String>,
    /// When it was begun, at the earliest.
    pub begun: SystemTime,
}

impl Leftover {
    /// What is beside the bytes at `staging`; a record that is not there, or cannot be read,
    /// leaves all unknown.
    fn read(may: &MayBlock, staging: PathBuf) -> Self {
        let lines = lines::read::<Line>(may, &path_of(&staging));
        let mut found = Self {
            staging,
            owner: None,
            mount: String::new(),
            tenant: String::new(),
            key: String::new(),
            handles: Vec::new(),
            clean: false,
            unlinked: false,
            upload: None,
            kept: 0,
        };
        for line in lines {
            if line.version.is_some_and(|version| version > VERSION) {
                break;
            }
            found.follow(line);
        }
        found
    }

    fn follow(&mut self, line: Line) {
        if let (Some(bucket), Some(identity)) = (line.bucket, line.identity) {
            self.owner = Some(Owner { bucket, identity });
        }
        if let Some(key) = line.key {
            self.key = key;
        }
        if let Some(mount) = line.mount {
            self.mount = mount;
        }
        if let Some(tenant) = line.tenant {
            self.tenant = tenant;
        }
        self.handles.extend(line.handle);
        self.handles.retain(|fh| Some(*fh) != line.closed);
        self.kept += u32::from(line.kept.unwrap_or(false));
        if let Some(Begins { key, time_ms }) = line.begins {
            let begun = UNIX_EPOCH + Duration::from_millis(time_ms);
            self.upload = Some(PendingId { key, id: None, begun });
        }
        match (line.upload, &mut self.upload) {
            (Some(id), _) if id.is_empty() => self.upload = None,
            (Some(id), Some(upload)) => upload.id = Some(id),
            _ => {}
        }
        self.clean = line.clean.unwrap_or(self.clean);
        self.unlinked |= line.unlinked.unwrap_or(false);
    }

    /// Whether nothing that was written through its handles is missing: their close is no error.
    pub(in crate::write) fn is_clean(&self) -> bool {
        self.clean || self.unlinked
    }

    /// Keeps the record for handles that an engine to come may be asked about: everything else is
    /// worked off. Says no where nobody has asked for long.
    pub(in crate::write) fn keep_record(&self, may: &MayBlock) -> bool {
        let gone = Some(String::new()).filter(|_| self.upload.is_some());
        let kept = Line { kept: Some(true), upload: gone, ..Line::default() };
        self.kept < KEPT_MAX && self.note(may, kept)
    }

    /// Notes that a handle is closed.
    pub(in crate::write) fn note_closed(&self, may: &MayBlock, fh: u64) {
        self.note(may, Line { closed: Some(fh), ..Line::default() });
    }

    fn note(&self, may: &MayBlock, line: Line) -> bool {
        let path = path_of(&self.staging);
        let noted = lines::append_to_left(may, &path, line);
        if let Err(error) = &noted {
            tracing::warn!(path = %path.display(), %error, "a record lacks its last change");
        }
        noted.is_ok()
    }

    /// Removes the record, once all that it told of is worked off.
    pub fn forget_record(&self, _: &MayBlock) {
        let _ = fs::remove_file(path_of(&self.staging));
    }
}

/// What processes that have died left, by the files in the staging folders; records whose bytes
/// are gone are among them, since they may still name an upload.
pub fn leftovers(may: &MayBlock, files: Vec<PathBuf>) -> Vec<Leftover> {
    let bytes_of = |path: PathBuf| match path.extension().is_some_and(|of| of == RECORD) {
        true => path.with_extension(""),
        false => path,
    };
    let mut bytes: Vec<PathBuf> = files.into_iter().map(bytes_of).collect();
    bytes.sort();
    bytes.dedup();
    bytes.into_iter().map(|path| Leftover::read(may, path)).collect()
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::blocking::MAY;
    use crate::model::key::DirPrefix;
    use crate::model::version::ObjectInfo;
    use crate::namespace::dir::Dir;
    use crate::namespace::file::FileNode;
    use crate::namespace::memory::NameMemory;
    use crate::origin::Condition;
    use crate::write::draft::record::{Author, Record};

    fn owner() -> Owner {
        Owner { bucket: "s3\u{1f}b".into(), identity: "me".into() }
    }

    fn author() -> Author {
        Author { owner: owner(), mount: "m".into(), tenant: "ns".into() }
    }

    fn node() -> Arc<FileNode> {
        let info =
            ObjectInfo { size: 0, etag: None, mtime: UNIX_EPOCH, version_id: None, writer: None };
        FileNode::new(5, Dir::root(DirPrefix::root(), NameMemory::new(0)), "k", &info)
    }

    fn read(staging: &Path) -> Leftover {
        let mut all = leftovers(MAY, vec![path_of(staging), staging.to_owned()]);
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn what_was_noted_is_known_to_a_later_process() {
        let dir = tempfile::tempdir().unwrap();
        let staging = dir.path().join("1f");
        fs::write(&staging, "bytes").unwrap();
        let record = Record::beside(&staging, author(), Arc::default());
        record.handle(9);
        assert_eq!(read(&staging).owner, None, "nothing to lose, nothing noted");
        record.begin(MAY, &node(), &Condition::Absent);
        record.handle(11);
        record.write(MAY);
        let found = read(&staging);
        assert_eq!((found.owner, &*found.key, found.handles), (Some(owner()), "k", vec![9, 11]));
        assert_eq!((&*found.mount, &*found.tenant), ("m", "ns"));
        assert!(!found.clean && !found.unlinked && found.upload.is_none());
        record.beginning_upload(MAY, "k").unwrap();
        assert_eq!(read(&staging).upload.unwrap().id, None);
        record.upload(Some("u1"));
        record.stored(true, &Condition::Always);
        record.write(MAY);
        let found = read(&staging);
        assert_eq!(found.upload.unwrap().id.as_deref(), Some("u1"));
        assert!(found.clean);
        record.dirty();
        record.upload(None);
        record.unlinked();
        record.write(MAY);
        let found = read(&staging);
        assert!(!found.clean && found.unlinked && found.upload.is_none());
        record.remove(MAY);
        assert_eq!(read(&staging).owner, None);
    }

    #[test]
    fn neighbouring_releases_read_each_others_records() {
        let dir = tempfile::tempdir().unwrap();
        let staging = dir.path().join("1f");
        let text = concat!(
            r#"{"version":1,"bucket":"b","identity":"i","key":"k","of_a_later_release":[1]}"#,
            "\n",
            r#"{"clean":true}"#,
            "\n",
            r#"{"clean":fal"#,
        );
        fs::write(path_of(&staging), text).unwrap();
        let found = read(&staging);
        assert!(found.owner.is_some() && found.clean, "a line that was cut counts for nothing");
        fs::write(path_of(&staging), r#"{"version":2,"bucket":"b","identity":"i"}"#).unwrap();
        assert_eq!(read(&staging).owner, None);
    }
}
