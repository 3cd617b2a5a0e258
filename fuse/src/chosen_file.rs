//! Reading a file that somebody else may have chosen, or put there.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Reads a regular file, which is neither waited for nor read without end; with
/// [`OFlags::NOFOLLOW`] as `flags` not through a symlink either.
///
/// # Errors
/// `InvalidInput` for what is no regular file, `FileTooLarge` for one of more than `most` bytes;
/// what open and read report.
pub fn read(path: &Path, flags: OFlags, most: u64) -> io::Result<Vec<u8>> {
    // A FIFO without a writer would be waited for.
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()).is_ok_and(|length| length <= most) {
        true => Ok(bytes),
        false => Err(io::ErrorKind::FileTooLarge.into()),
    }
}
