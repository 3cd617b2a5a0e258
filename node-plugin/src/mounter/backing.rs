//! Which files the kernel may read by itself. It opens a backing file again with the flags of the
//! reader and the rights of whoever registered it (fs/fuse/backing.c), so what may be registered is
//! looked at here.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};

/// Files that are registered for one session at once: each is kernel memory that nobody accounts
/// for.
pub(super) const BACKINGS_MAX: usize = 1 << 16;

/// The folders of the node's cache.
pub(super) struct Backing {
    folders: Vec<PathBuf>,
}

impl Backing {
    pub(super) fn new(folders: &[PathBuf]) -> Self {
        Self { folders: folders.to_vec() }
    }

    /// Whether a file may be registered: a regular file of our user, open for reading only, on the
    /// file system of a cache folder.
    ///
    /// # Errors
    /// `PermissionDenied` that says what is wrong with it.
    pub(super) fn check(&self, file: &OwnedFd) -> io::Result<()> {
        let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        let flags = rustix::fs::fcntl_getfl(file)?;
        if flags.contains(OFlags::PATH) || flags & OFlags::ACCMODE != OFlags::RDONLY {
            return refuse("a backing file must be open for reading only");
        }
        let stat = rustix::fs::fstat(file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return refuse("a backing file must be a regular file");
        }
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return refuse("a backing file must be the mounter's user's");
        }
        // Looked up each time: a disk may be mounted there later.
        let device = |folder: &PathBuf| rustix::fs::stat(folder).ok().map(|stat| stat.st_dev);
        if !self.folders.iter().any(|folder| device(folder) == Some(stat.st_dev)) {
            let folders: Vec<_> = self.folders.iter().map(|folder| folder.display()).collect();
            let text = format!("a backing file must be on the disk of a cache folder: {folders:?}");
            return refuse(&text);
        }
        Ok(())
    }

    /// Says which of the folders are not there.
    pub(super) fn missing(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().map(PathBuf::as_path).filter(|folder| !folder.is_dir())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_files_of_the_cache_that_nobody_can_write_are_registered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "bytes").unwrap();
        let backing = Backing::new(&[dir.path().to_owned()]);
        let open = |flags| rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        backing.check(&open(OFlags::RDONLY)).unwrap();
        for flags in [OFlags::RDWR, OFlags::WRONLY, OFlags::PATH] {
            assert!(backing.check(&open(flags)).is_err(), "{flags:?}");
        }
        assert!(backing.check(&File::open(dir.path()).unwrap().into()).is_err());
        // On another file system.
        assert!(backing.check(&File::open("/proc/version").unwrap().into()).is_err());
        assert!(Backing::new(&[]).check(&open(OFlags::RDONLY)).is_err());
        let theirs = dir.path().join("theirs");
        std::fs::write(&theirs, "bytes").unwrap();
        if std::os::unix::fs::chown(&theirs, Some(1000), None).is_ok() {
            assert!(backing.check(&File::open(&theirs).unwrap().into()).is_err());
        }
    }
}
