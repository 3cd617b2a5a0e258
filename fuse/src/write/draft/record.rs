//! The record of a file under change, beside its bytes: enough to go on, or to clean up, after
//! this process has died.
//!
//! It is a text of lines, each a JSON object that says what is new since the line before. A line
//! is one write(2): it survives the end of the process without fsync. Only the line that
//! announces an upload is synced, since an upload that nobody knows of costs money for ever.
//! Unknown fields are skipped and absent ones have a meaning, so that neighbouring releases read
//! each other's; a higher version number is for those who must not.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::PartState;
use crate::namespace::file::FileNode;
use crate::origin::{Condition, Part};

/// Version of the format.
const VERSION: u32 = 1;
/// What a record's file name has beyond that of the bytes.
const SUFFIX: &str = ".record";

/// Whose a file under change is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Endpoint and bucket.
    pub bucket: String,
    /// Whose credentials write it; not a secret.
    pub identity: String,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bucket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// What the origin must hold: a tag, empty for no object, absent where nothing is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<String>,
    /// A handle that the kernel has of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    handle: Option<u64>,
    /// An upload is about to be begun under this key, at this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    begins: Option<Begins>,
    /// Its id; empty once it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    upload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<SentPart>,
    /// Nonce of a request to store whose answer may be lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    sent: Option<String>,
    /// Whether the origin holds all that is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    clean: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unlinked: Option<bool>,
}

#[derive(Serialize, Deserialize)]
struct Begins {
    key: String,
    time_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct SentPart {
    number: u32,
    generation: u64,
    len: u64,
    etag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
}

/// The record of one file.
pub(super) struct Record {
    path: PathBuf,
    owner: Owner,
    begun: AtomicBool,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    file: Option<File>,
    handles: Vec<u64>,
    removed: bool,
}

impl Record {
    /// The record that belongs to the bytes at `staging`. Nothing is written before there is
    /// something to lose.
    pub(super) fn beside(staging: &Path, owner: Owner) -> Self {
        Self {
            path: path_of(staging),
            owner,
            begun: AtomicBool::new(false),
            open: Mutex::default(),
        }
    }

    /// Begins the record, unless that was done. Its failure is logged: the bytes are what counts.
    pub(super) fn begin(&self, node: &FileNode, seen: &Condition) {
        let mut open = self.open();
        if self.is_begun() || open.removed {
            return;
        }
        if let Err(error) = self.create(&mut open, node, seen) {
            tracing::warn!(path = %self.path.display(), %error, "no record of a file being written");
        }
        self.begun.store(true, Ordering::Release);
    }

    /// Whether it was begun. Cheap: every WRITE asks.
    pub(super) fn is_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    fn create(&self, open: &mut Open, node: &FileNode, seen: &Condition) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create_new(true).mode(0o600).open(&self.path)?;
        let head = Line {
            version: Some(VERSION),
            bucket: Some(self.owner.bucket.clone()),
            identity: Some(self.owner.identity.clone()),
            key: Some(node.key()),
            seen: seen_text(seen),
            clean: Some(false),
            ..Line::default()
        };
        append(&file, &head)?;
        for handle in &open.handles {
            append(&file, &Line { handle: Some(*handle), ..Line::default() })?;
        }
        open.file = Some(file);
        Ok(())
    }

    /// Notes a handle of the kernel's.
    pub(super) fn handle(&self, fh: u64) {
        let mut open = self.open();
        open.handles.push(fh);
        self.note(&open, &Line { handle: Some(fh), ..Line::default() });
    }

    pub(super) fn dirty(&self) {
        self.note(&self.open(), &Line { clean: Some(false), ..Line::default() });
    }

    pub(super) fn stored(&self, clean: bool, seen: &Condition) {
        let line = Line { clean: Some(clean), seen: seen_text(seen), ..Line::default() };
        self.note(&self.open(), &line);
    }

    pub(super) fn sent(&self, writer: &str) {
        self.note(&self.open(), &Line { sent: Some(writer.to_owned()), ..Line::default() });
    }

    pub(super) fn moved(&self, node: &FileNode, seen: &Condition) {
        let line = Line { key: Some(node.key()), seen: seen_text(seen), ..Line::default() };
        self.note(&self.open(), &line);
    }

    pub(super) fn unlinked(&self) {
        self.note(&self.open(), &Line { unlinked: Some(true), ..Line::default() });
    }

    /// Notes, durably, that an upload of `key` is about to be begun.
    pub(super) fn beginning_upload(&self, key: &str) -> io::Result<()> {
        let open = self.open();
        let Some(file) = &open.file else { return Ok(()) };
        let begins = Begins { key: key.to_owned(), time_ms: now_ms() };
        append(file, &Line { begins: Some(begins), ..Line::default() })?;
        file.sync_all()
    }

    pub(super) fn upload(&self, id: Option<&str>) {
        let id = id.unwrap_or_default().to_owned();
        self.note(&self.open(), &Line { upload: Some(id), ..Line::default() });
    }

    pub(super) fn part(&self, of: PartState, part: &Part) {
        let part = SentPart {
            number: part.number,
            generation: of.generation,
            len: of.len,
            etag: part.etag.clone(),
            checksum: part.checksum.clone(),
        };
        self.note(&self.open(), &Line { part: Some(part), ..Line::default() });
    }

    /// Removes the record: what it told of is done.
    pub(super) fn remove(&self) {
        let mut open = self.open();
        open.removed = true;
        if open.file.take().is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }

    fn note(&self, open: &Open, line: &Line) {
        let Some(file) = &open.file else { return };
        if let Err(error) = append(file, line) {
            tracing::warn!(path = %self.path.display(), %error, "a record lacks its last change");
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn path_of(staging: &Path) -> PathBuf {
    let mut path = staging.as_os_str().to_owned();
    path.push(SUFFIX);
    path.into()
}

fn append(mut file: &File, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
}

fn seen_text(seen: &Condition) -> Option<String> {
    match seen {
        Condition::Always => None,
        Condition::Absent => Some(String::new()),
        Condition::Matches(etag) => Some(etag.as_str().to_owned()),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What a process that has died left of a file that it was writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Where the bytes are.
    pub staging: PathBuf,
    /// Whose they are; `None` where the record does not tell.
    pub owner: Option<Owner>,
    /// The object's key; empty where it is not known.
    pub key: String,
    /// Handles that the kernel had of it.
    pub handles: Vec<u64>,
    /// Whether the origin holds all of it.
    pub clean: bool,
    /// Whether it had no name any more.
    pub unlinked: bool,
    /// The upload under way.
    pub upload: Option<PendingId>,
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
    fn read(staging: PathBuf) -> Self {
        let text = fs::read(path_of(&staging)).unwrap_or_default();
        let mut found = Self {
            staging,
            owner: None,
            key: String::new(),
            handles: Vec::new(),
            clean: false,
            unlinked: false,
            upload: None,
        };
        let lines = text.split(|byte| *byte == b'\n');
        // A line that was cut by the end of the process is none.
        let lines = lines.map_while(|line| serde_json::from_slice::<Line>(line).ok());
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
        self.handles.extend(line.handle);
        if let Some(Begins { key, time_ms }) = line.begins {
            let begun = UNIX_EPOCH + std::time::Duration::from_millis(time_ms);
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

    /// Removes the record, once all that it told of is worked off.
    pub fn forget_record(&self) {
        let _ = fs::remove_file(path_of(&self.staging));
    }
}

/// What processes that have died left, by the files in the staging folders; records whose bytes
/// are gone are among them, since they may still name an upload.
pub fn leftovers(files: Vec<PathBuf>) -> Vec<Leftover> {
    let bytes_of = |path: PathBuf| match path.to_str().and_then(|path| path.strip_suffix(SUFFIX)) {
        Some(bytes) => PathBuf::from(bytes),
        None => path,
    };
    let mut bytes: Vec<PathBuf> = files.into_iter().map(bytes_of).collect();
    bytes.sort();
    bytes.dedup();
    bytes.into_iter().map(Leftover::read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::key::DirPrefix;
    use crate::model::version::ObjectInfo;
    use crate::namespace::dir::Dir;

    fn owner() -> Owner {
        Owner { bucket: "s3\u{1f}b".into(), identity: "me".into() }
    }

    fn node() -> std::sync::Arc<FileNode> {
        let info =
            ObjectInfo { size: 0, etag: None, mtime: UNIX_EPOCH, version_id: None, writer: None };
        FileNode::new(5, Dir::root(DirPrefix::root()), "k", &info)
    }

    fn read(staging: &Path) -> Leftover {
        let mut all = leftovers(vec![path_of(staging), staging.to_owned()]);
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn what_was_noted_is_known_to_a_later_process() {
        let dir = tempfile::tempdir().unwrap();
        let staging = dir.path().join("1f");
        fs::write(&staging, "bytes").unwrap();
        let record = Record::beside(&staging, owner());
        record.handle(9);
        assert_eq!(read(&staging).owner, None, "nothing to lose, nothing noted");
        record.begin(&node(), &Condition::Absent);
        record.handle(11);
        let found = read(&staging);
        assert_eq!((found.owner, &*found.key, found.handles), (Some(owner()), "k", vec![9, 11]));
        assert!(!found.clean && !found.unlinked && found.upload.is_none());
        record.beginning_upload("k").unwrap();
        assert_eq!(read(&staging).upload.unwrap().id, None);
        record.upload(Some("u1"));
        record.stored(true, &Condition::Always);
        let found = read(&staging);
        assert_eq!(found.upload.unwrap().id.as_deref(), Some("u1"));
        assert!(found.clean);
        record.dirty();
        record.upload(None);
        record.unlinked();
        let found = read(&staging);
        assert!(!found.clean && found.unlinked && found.upload.is_none());
        record.remove();
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
