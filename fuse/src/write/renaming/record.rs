//! The record of a rename under way: enough to undo it, or to go on with it, after this process has
//! died.
//!
//! What is to be moved is there before the first copy, and the point of no return before the
//! request that makes it. Of a directory that line is synced: a crash of the machine must not leave
//! half of the objects removed and nothing that tells why.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::blocking::MayBlock;
use crate::cache::StagingDisk;
use crate::model::version::{Version, VersionKey};
use crate::origin::{Condition, Stored};
use crate::write::draft::Owner;
use crate::write::lines;

/// Version of the format.
pub(super) const VERSION: u32 = 1;

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
pub(super) struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bucket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) identity: Option<String>,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) time_ms: Option<u64>,
    /// One more object that is to be moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) object: Option<Planned>,
    /// A copy is about to be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) copy: Option<Copying>,
    /// It is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) copied: Option<Copied>,
    /// Whether the point of no return is passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) forward: Option<bool>,
    /// Somebody could not end it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tried: Option<bool>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Planned {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) etag: String,
    pub(super) size: u64,
    /// The tag of what is replaced; empty for nothing, absent where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) over: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Copying {
    /// Which, in the order of their lines, from 0.
    pub(super) object: usize,
    pub(super) etag: String,
    pub(super) size: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Copied {
    pub(super) object: usize,
    pub(super) etag: String,
}

/// The record of one rename. Dropping it leaves the file, as the end of the process does.
pub(in crate::write) struct RenameRecord {
    path: PathBuf,
    disk: StagingDisk,
    /// `None`: there is no record, which was logged.
    file: Mutex<Option<File>>,
    /// Whether something is left to do for a later process.
    unsettled: AtomicBool,
}

impl RenameRecord {
    /// Begins the record on this disk: what is moved, where to, and what it replaces there. Its
    /// failure is logged, since a full disk must keep nobody from renaming.
    pub(in crate::write) async fn begin<'a>(
        disk: StagingDisk,
        owner: Owner,
        objects: impl Iterator<Item = (&'a VersionKey, &'a str, &'a Condition)>,
    ) -> Self {
        let head = Line {
            version: Some(VERSION),
            bucket: Some(owner.bucket),
            identity: Some(owner.identity),
            time_ms: Some(lines::now_ms()),
            ..Line::default()
        };
        let objects = objects.map(|(from, to, over)| {
            let planned = Planned {
                from: from.key.to_string(),
                to: to.to_owned(),
                etag: from.version.etag.as_str().to_owned(),
                size: from.version.size,
                over: over.to_tag(),
            };
            Line { object: Some(planned), ..Line::default() }
        });
        let path = disk.new_record_path();
        let create = |may: &_| {
            let file = lines::create(may, &path)?;
            lines::append(may, &file, std::iter::once(head).chain(objects))?;
            Ok(file)
        };
        let created =
            |may: &_| create(may).inspect_err(|error: &io::Error| gone(may, &path, error)).ok();
        let file = disk.calls().in_place(created).await;
        Self { path, disk, file: Mutex::new(file), unsettled: AtomicBool::new(false) }
    }

    /// Notes that a copy of this version is about to be made.
    pub(in crate::write) async fn copying(&self, object: usize, of: &Version) {
        let etag = of.etag.as_str().to_owned();
        let copy = Copying { object, etag, size: of.size };
        self.note(Line { copy: Some(copy), ..Line::default() }).await;
    }

    /// Notes that it was made.
    pub(in crate::write) async fn copied(&self, object: usize, copy: &Stored) {
        let Some(etag) = &copy.etag else { return };
        let copied = Copied { object, etag: etag.as_str().to_owned() };
        self.note(Line { copied: Some(copied), ..Line::default() }).await;
    }

    /// Notes that from the next request on it is not undone any more.
    pub(in crate::write) async fn pass_point(&self, durably: bool) {
        let pass = |may: &_| {
            self.write(may, Line { forward: Some(true), ..Line::default() });
            let file = self.file();
            let synced = file.as_ref().filter(|_| durably).map(File::sync_data);
            if let Some(Err(error)) = synced {
                tracing::warn!(path = %self.path.display(), %error, "record of a rename not synced");
            }
        };
        self.disk.calls().in_place(pass).await;
    }

    /// Notes that the request at the point of no return had no effect: it is undone.
    pub(in crate::write) async fn turn_back(&self) {
        self.note(Line { forward: Some(false), ..Line::default() }).await;
    }

    /// Leaves something to do for a later process.
    pub(in crate::write) fn leave(&self) {
        self.unsettled.store(true, Ordering::Relaxed);
    }

    /// Ends the record: it goes, unless something was left to do.
    pub(in crate::write) async fn end(self) {
        let end = |may: &_| {
            if self.unsettled.load(Ordering::Relaxed) {
                self.write(may, Line { tried: Some(true), ..Line::default() });
            } else if self.file().is_some() {
                let _ = fs::remove_file(&self.path);
            }
        };
        self.disk.calls().in_place(end).await;
    }

    async fn note(&self, line: Line) {
        self.disk.calls().in_place(|may| self.write(may, line)).await;
    }

    fn write(&self, may: &MayBlock, line: Line) {
        let mut open = self.file();
        let Some(file) = &*open else { return };
        if let Err(error) = lines::append(may, file, [line]) {
            // A record that lacks something would tell a lie.
            gone(may, &self.path, &error);
            *open = None;
        }
    }

    fn file(&self) -> MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a record that cannot be kept.
fn gone(_: &MayBlock, path: &Path, error: &io::Error) {
    tracing::warn!(path = %path.display(), %error, "no record of a rename: a crash may leave half of it");
    let _ = fs::remove_file(path);
}
