//! Files of records that are over, used for records to come. To make and remove one for each small
//! file would cost the file system more than to write it: ext4 looks past every inode that was
//! removed in the last seconds (fs/ext4/ialloc.c, recently_deleted).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::blocking::{MayBlock, in_place};
use crate::write::lines;

/// Most files kept.
const SPARES_MAX: usize = 64;

/// Empty files with the names of records that are over: a later process removes them.
#[derive(Default)]
pub(in crate::write) struct Spares {
    files: Mutex<Vec<(PathBuf, File)>>,
}

impl Spares {
    /// An empty file for the record at `path`.
    pub(super) fn create(&self, may: &MayBlock, path: &Path) -> io::Result<File> {
        let spare = {
            let mut files = self.files();
            let at = files.iter().position(|(spare, _)| spare.parent() == path.parent());
            at.map(|at| files.swap_remove(at))
        };
        if let Some((spare, file)) = spare {
            match fs::rename(&spare, path) {
                Ok(()) => return Ok(file),
                Err(_) => drop(fs::remove_file(spare)),
            }
        }
        lines::create(may, path)
    }

    /// Takes the file of a record that is over.
    pub(super) fn put(&self, _: &MayBlock, path: &Path, file: File) {
        if file.set_len(0).is_ok() {
            let mut files = self.files();
            if files.len() < SPARES_MAX {
                files.push((path.to_owned(), file));
                return;
            }
        }
        let _ = fs::remove_file(path);
    }

    fn files(&self) -> MutexGuard<'_, Vec<(PathBuf, File)>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        let files = std::mem::take(&mut *self.files());
        let remove = |_: &MayBlock| {
            for (path, _) in files {
                let _ = fs::remove_file(path);
            }
        };
        // Who drops the last of a mount may run tasks.
        in_place(remove);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocking::MAY;

    #[test]
    fn a_file_is_used_again_in_its_folder_and_none_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&other).unwrap();
        let spares = Spares::default();
        let file = spares.create(MAY, &one.join("1.record")).unwrap();
        lines::append(MAY, &file, ["text"]).unwrap();
        spares.put(MAY, &one.join("1.record"), file);
        spares.create(MAY, &other.join("2.record")).unwrap();
        assert!(one.join("1.record").exists());
        let file = spares.create(MAY, &one.join("3.record")).unwrap();
        assert!(!one.join("1.record").exists());
        lines::append(MAY, &file, ["new"]).unwrap();
        assert_eq!(fs::read_to_string(one.join("3.record")).unwrap(), "\"new\"\n");
        spares.put(MAY, &one.join("3.record"), file);
        for n in 0..2 * SPARES_MAX {
            let path = one.join(format!("{n}.of-many"));
            spares.put(MAY, &path, lines::create(MAY, &path).unwrap());
        }
        assert_eq!(fs::read_dir(&one).unwrap().count(), SPARES_MAX);
        drop(spares);
        assert_eq!(fs::read_dir(&one).unwrap().count(), 0);
    }
}
