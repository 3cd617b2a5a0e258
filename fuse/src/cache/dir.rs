//! The directory itself: its parts, its owner, its free space.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::error::CacheError;

/// The least room, beyond what is to stay free, with which a cache is worth having.
const LEAST_BYTES: u64 = 16 * 1024 * 1024;

/// An owned cache directory. Ownership ends when this is dropped or the process dies.
pub struct CacheDir {
    root: PathBuf,
    handle: File,
    _lock: File,
}

impl CacheDir {
    /// Makes the directory where needed and takes ownership.
    ///
    /// # Errors
    /// [`CacheError::Unusable`], [`CacheError::InUse`] or [`CacheError::Full`].
    pub fn own(root: &Path, min_free: u64) -> Result<Self, CacheError> {
        let unusable = |error| CacheError::Unusable { dir: root.to_owned(), error };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for sub in ["", "objects", "staging", "lost"] {
            builder.create(root.join(sub)).map_err(unusable)?;
        }
        let lock = lock(root)?;
        let handle = File::open(root).map_err(unusable)?;
        let dir = Self { root: root.to_owned(), handle, _lock: lock };
        let free = dir.free_bytes().map_err(unusable)?;
        // What the cache already holds is room that it can make for itself.
        let empty = dir.index_path().metadata().map_or(true, |m| m.len() == 0);
        if empty && free < min_free.saturating_add(LEAST_BYTES) {
            let dir = root.to_owned();
            return Err(CacheError::Full { dir, free, min_free, least: LEAST_BYTES });
        }
        Ok(dir)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the index is.
    pub fn index_path(&self) -> PathBuf {
        self.root.join("index.redb")
    }

    /// The file of the version with this id.
    pub fn object_path(&self, id: u64) -> PathBuf {
        self.root.join(format!("objects/{:02x}/{id:016x}", id & 0xff))
    }

    /// The staging file with this id.
    pub fn staging_path(&self, id: u64) -> PathBuf {
        self.root.join(format!("staging/{id:016x}"))
    }

    /// Where bytes go that could not be stored at the origin after the last close.
    pub fn lost_path(&self, id: u64) -> PathBuf {
        self.root.join(format!("lost/{id:016x}"))
    }

    /// Bytes that an unprivileged process may still write.
    ///
    /// # Errors
    /// What statvfs reports.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.handle)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Puts everything written so far onto the medium, in one call for the whole batch.
    ///
    /// # Errors
    /// What syncfs reports: an error since the last call, too (Linux 5.8 and later).
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.handle)?)
    }

    /// Removes what an earlier owner was writing when it died.
    pub fn clear_staging(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("staging")) else { return };
        for entry in entries.flatten() {
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "left-over staging file stays");
            }
        }
    }

    /// Removes object files for which `known` says false, up to and without id `below`.
    pub fn clear_orphans(&self, below: u64, mut known: impl FnMut(u64) -> bool) -> u64 {
        let mut removed = 0;
        let Ok(folders) = fs::read_dir(self.root.join("objects")) else { return 0 };
        for folder in folders.flatten() {
            let Ok(files) = fs::read_dir(folder.path()) else { continue };
            for file in files.flatten() {
                let name = file.file_name();
                let id = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
                if id.is_some_and(|id| id < below && !known(id)) {
                    removed += u64::from(fs::remove_file(file.path()).is_ok());
                }
            }
        }
        removed
    }

    /// Puts a damaged or foreign index out of the way.
    ///
    /// # Errors
    /// What rename reports.
    pub fn set_index_aside(&self) -> io::Result<PathBuf> {
        let aside = self.root.join("index.redb.damaged");
        fs::rename(self.index_path(), &aside)?;
        Ok(aside)
    }
}

/// Size in bytes of the file system on which `path` is or, if it is not there yet, its nearest
/// parent; 0 when that cannot be told.
pub fn file_system_bytes(path: &Path) -> u64 {
    let there = path.ancestors().find(|part| part.exists()).unwrap_or(Path::new("/"));
    rustix::fs::statvfs(there).map_or(0, |stat| stat.f_blocks.saturating_mul(stat.f_frsize))
}

fn lock(root: &Path) -> Result<File, CacheError> {
    let unusable = |error| CacheError::Unusable { dir: root.to_owned(), error };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(root.join("lock"))
        .map_err(unusable)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            let write = |file: &mut File| {
                file.set_len(0)?;
                file.rewind()?;
                write!(file, "{}", std::process::id())
            };
            write(&mut file).map_err(unusable)?;
            Ok(file)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            let owner = if owner.is_empty() { "unknown".into() } else { owner };
            Err(CacheError::InUse { dir: root.to_owned(), owner })
        }
        Err(error) => Err(unusable(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let first = CacheDir::own(dir.path(), 0).unwrap();
        match CacheDir::own(dir.path(), 0) {
            Err(CacheError::InUse { owner, .. }) => {
                assert_eq!(owner, std::process::id().to_string());
            }
            other => panic!("{:?}", other.map(|_| ())),
        }
        drop(first);
        assert!(CacheDir::own(dir.path(), 0).is_ok());
    }

    #[test]
    fn a_disk_without_room_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = CacheDir::own(dir.path(), u64::MAX / 2).map(|_| ()).unwrap_err();
        assert!(matches!(error, CacheError::Full { .. }), "{error}");
    }

    #[test]
    fn only_unknown_files_below_the_mark_are_orphans() {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::own(temp.path(), 0).unwrap();
        for id in [1_u64, 2, 3] {
            let path = dir.object_path(id);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        assert_eq!(dir.clear_orphans(3, |id| id == 1), 1);
        assert!(dir.object_path(1).exists() && dir.object_path(3).exists());
        assert!(!dir.object_path(2).exists());
    }
}
