//! What a session asks of the kernel beside answering its requests.

use std::fs::File;
use std::io;

use crate::blocking::MayBlock;

/// The privileged side of a FUSE connection.
///
/// The real one speaks to /dev/fuse in [`crate::adapter`]; the one for tests counts.
pub trait KernelPort: Send + Sync {
    /// Registers a file for passthrough; returns its raw backing id.
    ///
    /// # Errors
    /// What the ioctl reports: EPERM without CAP_SYS_ADMIN, ELOOP on a stacked file system.
    fn open_backing(&self, may: &MayBlock, file: &File) -> io::Result<u32>;

    /// Gives a backing id back, soon, without waiting for it. Open passthrough files keep working.
    fn close_backing(&self, id: u32);

    /// Tells the kernel, soon, that a name of this directory is to be looked up at its next use; waits
    /// for nothing.
    fn expire(&self, _parent: u64, _name: &str) {}

    /// Waits a moment for ids to be gone that were given back: their files take room until then.
    fn settle(&self) {}
}
