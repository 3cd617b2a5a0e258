//! Handles of earlier engines through which nothing was written that the origin does not hold:
//! their close and fsync are no error, although this engine does not know them.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::draft::Leftover;
use crate::blocking::MayBlock;

/// Such handles. They are known until they are closed, by later engines, too.
#[derive(Default)]
pub(super) struct CleanHandles(Mutex<Vec<CleanFile>>);

struct CleanFile {
    leftover: Leftover,
    handles: Vec<u64>,
    /// Whether the record is needed for nothing but its handles.
    worked_off: bool,
}

impl CleanFile {
    fn is_of(&self, mount: &str, fh: u64) -> bool {
        self.leftover.mount == mount && self.handles.contains(&fh)
    }
}

impl CleanHandles {
    /// Those of the files that were left.
    pub(super) fn of(files: &[Leftover]) -> Self {
        let clean = files
            .iter()
            .filter(|left| left.is_clean() && !left.mount.is_empty() && !left.handles.is_empty());
        let clean = clean.map(|left| CleanFile {
            leftover: left.clone(),
            handles: left.handles.clone(),
            worked_off: false,
        });
        Self(Mutex::new(clean.collect()))
    }

    /// Whether it is one of them.
    pub(super) fn has(&self, mount: &str, fh: u64) -> bool {
        self.files().iter().any(|file| file.is_of(mount, fh))
    }

    /// Forgets one: it is closed, or a write through it was refused.
    pub(super) fn forget(&self, may: &MayBlock, mount: &str, fh: u64) {
        let mut closed = Vec::new();
        self.files().retain_mut(|file| {
            if !file.is_of(mount, fh) {
                return true;
            }
            file.handles.retain(|handle| *handle != fh);
            let is_over = file.handles.is_empty();
            closed.push((file.leftover.clone(), is_over && file.worked_off));
            !is_over
        });
        // Without the lock: others ask.
        for (leftover, is_over) in closed {
            leftover.note_closed(may, fh);
            if is_over {
                leftover.forget_record(may);
            }
        }
    }

    /// The file that one of them is of.
    pub(super) fn file_of(&self, mount: &str, fh: u64) -> Option<PathBuf> {
        let files = self.files();
        let is_its = |file: &&CleanFile| file.is_of(mount, fh);
        files.iter().find(is_its).map(|file| file.leftover.staging.clone())
    }

    /// Takes all of a mount that is gone: what is left of them is records that nobody needs.
    pub(super) fn take_mount(&self, mount: &str) -> Vec<Leftover> {
        let mut files = self.files();
        let its = files.extract_if(.., |file| file.leftover.mount == mount);
        its.filter(|file| file.worked_off).map(|file| file.leftover).collect()
    }

    /// Notes that all else that a record told of is worked off. Says whether it is still needed.
    pub(super) fn worked_off(&self, may: &MayBlock, leftover: &Leftover) -> bool {
        {
            let mut files = self.files();
            let file = files.iter_mut().find(|file| file.leftover.staging == leftover.staging);
            let Some(file) = file else { return false };
            file.worked_off = true;
        }
        leftover.keep_record(may)
    }

    fn files(&self) -> MutexGuard<'_, Vec<CleanFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
