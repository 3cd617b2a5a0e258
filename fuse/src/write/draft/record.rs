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
pub(super) const VERSION: u32 = 1;
/// What a record's file name has beyond that of the bytes.
pub(super) const SUFFIX: &str = ".record";

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
pub(super) struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bucket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) identity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// What the origin must hold: a tag, empty for no object, absent where nothing is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seen: Option<String>,
    /// A handle that the kernel has of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) handle: Option<u64>,
    /// An upload is about to be begun under this key, at this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) begins: Option<Begins>,
    /// Its id; empty once it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) upload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) part: Option<SentPart>,
    /// Nonce of a request to store whose answer may be lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sent: Option<String>,
    /// Whether the origin holds all that is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clean: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unlinked: Option<bool>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Begins {
    pub(super) key: String,
    pub(super) time_ms: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct SentPart {
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

pub(super) fn path_of(staging: &Path) -> PathBuf {
    let mut path = staging.as_os_str().to_owned();
    path.push(SUFFIX);
    path.into()
}

pub(super) fn append(mut file: &File, line: &Line) -> io::Result<()> {
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

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
