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
use crate::blocking::MayBlock;
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
    /// For whom; empty where there is one tenant only.
    pub tenant: String,
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
    pub(super) tenant: Option<String>,
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
    /// Whether lines wait.
    waits: AtomicBool,
    notes: Mutex<Notes>,
    /// Held while the disk is written to. Taken before `notes`.
    place: Mutex<Place>,
}

/// What is to be told, in memory: it is noted under the lock of the file under change, and nobody is to
/// wait for the disk there.
#[derive(Default)]
struct Notes {
    begun: bool,
    lines: Vec<Line>,
    handles: Vec<u64>,
    removed: bool,
}

/// Where it is told.
#[derive(Default)]
enum Place {
    #[default]
    NotMade,
    File(File),
    /// It could not be made, which was logged, or its time is over.
    Nowhere,
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
            waits: AtomicBool::new(false),
            notes: Mutex::default(),
            place: Mutex::default(),
        }
    }

    /// Begins the record, unless that was done. Its failure is logged: the bytes are what counts.
    pub(super) fn begin(&self, may: &MayBlock, node: &FileNode, seen: &Condition) {
        {
            let mut notes = self.notes();
            if notes.removed {
                return;
            }
            if !notes.begun {
                notes.begun = true;
                let head = Line {
                    mount: Some(self.author.mount.clone()).filter(|mount| !mount.is_empty()),
                    tenant: Some(self.author.tenant.clone()).filter(|tenant| !tenant.is_empty()),
                    key: Some(node.key()),
                    seen: seen.to_tag(),
                    clean: Some(false),
                    ..Line::head(&self.author.owner)
                };
                let handles = notes.handles.iter();
                let handles = handles.map(|fh| Line { handle: Some(*fh), ..Line::default() });
                notes.lines = std::iter::once(head).chain(handles).collect();
            }
        }
        // Also where another write was first: nothing is written before the record is there.
        self.write(may);
        self.begun.store(true, Ordering::Release);
    }

    /// Whether it was begun. Cheap: every WRITE asks.
    pub(super) fn is_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Whether something was noted that is not on the disk yet. Cheap: every WRITE asks.
    pub(super) fn waits(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// Writes what was noted. Its failure is logged.
    pub(super) fn write(&self, may: &MayBlock) {
        let mut place = self.place();
        if let Err(error) = self.write_to(may, &mut place) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "a record of a file being written lacks its last changes");
        }
    }

    fn write_to(&self, may: &MayBlock, place: &mut Place) -> io::Result<()> {
        let lines = std::mem::take(&mut self.notes().lines);
        let written = self.append(may, place, lines);
        // Not before: who sees that nothing waits relies on what the disk has.
        let notes = self.notes();
        self.waits.store(!notes.lines.is_empty(), Ordering::Release);
        written
    }

    fn append(&self, may: &MayBlock, place: &mut Place, lines: Vec<Line>) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        if matches!(place, Place::NotMade) {
            *place = Place::Nowhere;
            *place = Place::File(self.spares.create(may, &self.path)?);
        }
        match place {
            Place::File(file) => lines::append(may, file, lines),
            Place::NotMade | Place::Nowhere => Ok(()),
        }
    }

    /// Notes a handle of the kernel's.
    pub(super) fn handle(&self, fh: u64) {
        self.notes().handles.push(fh);
        self.note(Line { handle: Some(fh), ..Line::default() });
    }

    pub(super) fn dirty(&self) {
        self.note(Line { clean: Some(false), ..Line::default() });
    }

    pub(super) fn stored(&self, clean: bool, seen: &Condition) {
        let line = Line { clean: Some(clean), seen: seen.to_tag(), ..Line::default() };
        self.note(line);
    }

    pub(super) fn sent(&self, writer: &str) {
        self.note(Line { sent: Some(writer.to_owned()), ..Line::default() });
    }

    pub(super) fn moved(&self, node: &FileNode, seen: &Condition) {
        let line = Line { key: Some(node.key()), seen: seen.to_tag(), ..Line::default() };
        self.note(line);
    }

    pub(super) fn unlinked(&self) {
        self.note(Line { unlinked: Some(true), ..Line::default() });
    }

    /// Notes, durably, that an upload of `key` is about to be begun.
    pub(super) fn beginning_upload(&self, may: &MayBlock, key: &str) -> io::Result<()> {
        let begins = Begins { key: key.to_owned(), time_ms: lines::now_ms() };
        self.note(Line { begins: Some(begins), ..Line::default() });
        let mut place = self.place();
        self.write_to(may, &mut place)?;
        match &*place {
            Place::File(file) => file.sync_all(),
            Place::NotMade | Place::Nowhere => Ok(()),
        }
    }

    pub(super) fn upload(&self, id: Option<&str>) {
        let id = id.unwrap_or_default().to_owned();
        self.note(Line { upload: Some(id), ..Line::default() });
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
        self.note(Line { part: Some(part), ..Line::default() });
    }

    /// Removes the record: what it told of is done.
    pub(super) fn remove(&self, may: &MayBlock) {
        {
            let mut notes = self.notes();
            notes.removed = true;
            notes.lines.clear();
            self.waits.store(false, Ordering::Release);
        }
        let place = std::mem::replace(&mut *self.place(), Place::Nowhere);
        if let Place::File(file) = place {
            self.spares.put(may, &self.path, file);
        }
    }

    fn note(&self, line: Line) {
        let mut notes = self.notes();
        if notes.begun && !notes.removed {
            notes.lines.push(line);
            self.waits.store(true, Ordering::Release);
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn path_of(staging: &Path) -> PathBuf {
    staging.with_extension(RECORD)
}
