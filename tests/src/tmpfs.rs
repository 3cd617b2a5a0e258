//! A small disk.

use std::ffi::CString;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

/// A tmpfs of a given size; gone when dropped.
pub struct Tmpfs {
    dir: TempDir,
}

impl Tmpfs {
    /// Mounts one of `mib` MiB.
    pub fn new(mib: u32) -> Self {
        Self::with(&format!("size={mib}m"))
    }

    /// Mounts one of `mib` MiB that holds at most so many files and folders.
    pub fn with_inodes(mib: u32, inodes: u32) -> Self {
        Self::with(&format!("size={mib}m,nr_inodes={inodes}"))
    }

    fn with(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = CString::new(options).unwrap();
        let flags = MountFlags::empty();
        rustix::mount::mount(c"tmpfs", dir.path(), c"tmpfs", flags, options.as_c_str()).unwrap();
        Self { dir }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Bytes free on it.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.dir.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// How many files and folders more it holds.
    pub fn free_inodes(&self) -> u64 {
        rustix::fs::statvfs(self.dir.path()).unwrap().f_favail
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.dir.path(), UnmountFlags::DETACH);
    }
}
