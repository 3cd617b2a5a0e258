//! What a session asks of the kernel beside answering its requests.

use std::fs::File;
use std::io;

/// The privileged side of a FUSE connection.
///
/// The real one speaks to /dev/fuse in [`crate::adapter`]; the one for tests counts.
pub trait KernelPort: Send + Sync {
    /// Registers a file for passthrough; returns its raw backing id.
    ///
    /// # Errors
    /// What the ioctl reports: EPERM without CAP_SYS_ADMIN, ELOOP on a stacked file system.
    fn open_backing(&self, file: &File) -> io::Result<u32>;

    /// Gives a backing id back. Open passthrough files keep working.
    fn close_backing(&self, id: u32);
}
