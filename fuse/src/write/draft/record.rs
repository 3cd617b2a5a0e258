//! The record of a file under change, beside its bytes: enough to go on, or to clean up, after
//! this process has died.
//!
//! It consists of lines ([`lines`]). Only the one that announces an upload is synced, since an
//! upload that nobody knows of costs money for ever.
//! Unknown fields are skipped and absent ones have a meaning, so that neighbouring releases read
//! each other's; a higher version number is for those who must not.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{PartState, Spares};
use crate::cache::dir::RECORD;
use crate::namespace::file::FileNode;
use crate::origin::{Condition, Part};
use crate::write::lines;

/// Version of the format.
pub(super) const VERSION: u32 = 1;

/// Whose a file under change is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Endpoint and bucket.
    pub bucket: String,
    /// Whose credentials write it; not a secret.
    pub identity: String,
}

/// Who writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// With whose credentials.
    pub owner: Owner,
    /// Through which mount, by the name that it has for all engines that serve it; empty where no
    /// other one will.
    pub mount: String,
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
    pub(super) mount: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// What the origin must hold: a tag, empty for no object, absent where nothing is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seen: Option<String>,
    /// A handle that the kernel has of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) handle: Option<u64>,
    /// One of them that is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) closed: Option<u64>,
    /// A later engine keeps it, for the handles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kept: Option<bool>,
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

impl Line {
    /// What the first line of a record says.
    pub(super) fn head(owner: &Owner) -> Self {
        Self {
            version: Some(VERSION),
            bucket: Some(owner.bucket.clone()),
            identity: Some(owner.identity.clone()),
            ..Self::default()
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct Begins {
    pub(super) key: String,
    pub(super) time_ms: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct SentPart {
    number: u32,
    start: u64,
    len: u64,
    generation: u64,
    etag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
}

/// The record of one file.
pub(super) struct Record {
    path: PathBuf,
    author: Author,
    spares: Arc<Spares>,
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
    pub(super) fn beside(staging: &Path, author: Author, spares: Arc<Spares>) -> Self {
        Self {
            path: path_of(staging),
            author,
            spares,
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
        let file = self.spares.create(&self.path)?;
        let head = Line {
            mount: Some(self.author.mount.clone()).filter(|mount| !mount.is_empty()),
            key: Some(node.key()),
            seen: seen.to_tag(),
            clean: Some(false),
            ..Line::head(&self.author.owner)
        };
        let handles = open.handles.iter().map(|fh| Line { handle: Some(*fh), ..Line::default() });
        lines::append(&file, std::iter::once(head).chain(handles))?;
        open.file = Some(file);
        Ok(())
    }

    /// Notes a handle of the kernel's.
    pub(super) fn handle(&self, fh: u64) {
        let mut open = self.open();
        open.handles.push(fh);
        self.note(&open, Line { handle: Some(fh), ..Line::default() });
    }

    pub(super) fn dirty(&self) {
        self.note(&self.open(), Line { clean: Some(false), ..Line::default() });
    }

    pub(super) fn stored(&self, clean: bool, seen: &Condition) {
        let line = Line { clean: Some(clean), seen: seen.to_tag(), ..Line::default() };
        self.note(&self.open(), line);
    }

    pub(super) fn sent(&self, writer: &str) {
        self.note(&self.open(), Line { sent: Some(writer.to_owned()), ..Line::default() });
    }

    pub(super) fn moved(&self, node: &FileNode, seen: &Condition) {
        let line = Line { key: Some(node.key()), seen: seen.to_tag(), ..Line::default() };
        self.note(&self.open(), line);
    }

    pub(super) fn unlinked(&self) {
        self.note(&self.open(), Line { unlinked: Some(true), ..Line::default() });
    }

    /// Notes, durably, that an upload of `key` is about to be begun.
    pub(super) fn beginning_upload(&self, key: &str) -> io::Result<()> {
        let open = self.open();
        let Some(file) = &open.file else { return Ok(()) };
        let begins = Begins { key: key.to_owned(), time_ms: lines::now_ms() };
        lines::append(file, [Line { begins: Some(begins), ..Line::default() }])?;
        file.sync_all()
    }

    pub(super) fn upload(&self, id: Option<&str>) {
        let id = id.unwrap_or_default().to_owned();
        self.note(&self.open(), Line { upload: Some(id), ..Line::default() });
    }

    pub(super) fn part(&self, of: PartState, part: &Part) {
        let part = SentPart {
            number: part.number,
            start: of.start,
            len: of.len,
            generation: of.generation,
            etag: part.etag.clone(),
            checksum: part.checksum.clone(),
        };
        self.note(&self.open(), Line { part: Some(part), ..Line::default() });
    }

    /// Removes the record: what it told of is done.
    pub(super) fn remove(&self) {
        let mut open = self.open();
        open.removed = true;
        if let Some(file) = open.file.take() {
            self.spares.put(&self.path, file);
        }
    }

    fn note(&self, open: &Open, line: Line) {
        let Some(file) = &open.file else { return };
        if let Err(error) = lines::append(file, [line]) {
            tracing::warn!(path = %self.path.display(), %error, "a record lacks its last change");
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn path_of(staging: &Path) -> PathBuf {
    staging.with_extension(RECORD)
}
