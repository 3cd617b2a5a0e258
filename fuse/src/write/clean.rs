//! Handles of earlier engines through which nothing was written that the origin does not hold:
//! their close and fsync are no error, although this engine does not know them.

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
        self.files().iter().any(|file| file.leftover.mount == mount && file.handles.contains(&fh))
    }

    /// Whether there are any of a mount.
    pub(super) fn knows(&self, mount: &str) -> bool {
        self.files().iter().any(|file| file.leftover.mount == mount)
    }

    /// Forgets one: it is closed, or a write through it was refused.
    pub(super) fn forget(&self, may: &MayBlock, mount: &str, fh: u64) {
        let mut closed = Vec::new();
        self.files().retain_mut(|file| {
            if file.leftover.mount != mount || !file.handles.contains(&fh) {
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

    /// Forgets all of a mount that is gone.
    pub(super) fn forget_mount(&self, may: &MayBlock, mount: &str) {
        let its: Vec<CleanFile> =
            self.files().extract_if(.., |file| file.leftover.mount == mount).collect();
        for file in its.iter().filter(|file| file.worked_off) {
            file.leftover.forget_record(may);
        }
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
