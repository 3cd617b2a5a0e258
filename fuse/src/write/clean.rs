//! Handles of earlier engines through which nothing was written that the origin does not hold:
//! their close and fsync are no error, although this engine does not know them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::draft::Leftover;

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

    /// Forgets one: it is closed, or a write through it was refused.
    pub(super) fn forget(&self, mount: &str, fh: u64) {
        self.files().retain_mut(|file| {
            if file.leftover.mount != mount || !file.handles.contains(&fh) {
                return true;
            }
            file.handles.retain(|handle| *handle != fh);
            file.leftover.note_closed(fh);
            if file.handles.is_empty() && file.worked_off {
                file.leftover.forget_record();
            }
            !file.handles.is_empty()
        });
    }

    /// Forgets all of a mount that is gone.
    pub(super) fn forget_mount(&self, mount: &str) {
        self.files().retain(|file| {
            let is_its = file.leftover.mount == mount;
            if is_its && file.worked_off {
                file.leftover.forget_record();
            }
            !is_its
        });
    }

    /// Notes that all else that a record told of is worked off. Says whether it is still needed.
    pub(super) fn worked_off(&self, leftover: &Leftover) -> bool {
        let mut files = self.files();
        let file = files.iter_mut().find(|file| file.leftover.staging == leftover.staging);
        let Some(file) = file else { return false };
        file.worked_off = true;
        leftover.keep_record()
    }

    fn files(&self) -> MutexGuard<'_, Vec<CleanFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
