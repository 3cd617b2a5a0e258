//! Bytes in a file of memory that nobody can change any more: they go from process to process as a
//! descriptor, whatever their size. Facts: memfd_create(2), fcntl(2).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};

/// What must be sealed: then what was measured is what is read.
const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK);

/// Puts bytes into memory, sealed. Gone with the last descriptor.
///
/// # Errors
/// What the system reports.
pub fn write(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create(name, flags)?);
    file.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(&file, SEALS | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Checks that a descriptor is such a file, of `max` bytes at most.
///
/// # Errors
/// `InvalidData` when it is not.
pub fn check(file: impl AsFd, max: u64) -> io::Result<u64> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    // EINVAL for anything that is no file of memory.
    let seals = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
    if !seals.contains(SEALS) {
        return Err(invalid("what came along is no sealed memory".into()));
    }
    let size = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(u64::MAX);
    match size <= max {
        true => Ok(size),
        false => Err(invalid(format!("{size} bytes came along; {max} are allowed"))),
    }
}

/// Reads all of such a file.
///
/// # Errors
/// As [`check`].
pub fn read(file: OwnedFd, max: u64) -> io::Result<Vec<u8>> {
    let size = check(&file, max)?;
    // It is no more than `max`, which is far below what a usize holds.
    let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
    File::from(file).read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sealed_memory_of_a_bounded_size_is_taken() {
        let sealed = write("record", b"bytes").unwrap();
        assert!(File::from(sealed.try_clone().unwrap()).write_at(b"x", 0).is_err());
        assert!(check(&sealed, 4).is_err());
        // From its beginning, wherever the descriptor stands.
        assert_eq!(read(sealed.try_clone().unwrap(), 5).unwrap(), b"bytes");
        assert_eq!(read(sealed, 5).unwrap(), b"bytes");
        let open = rustix::fs::memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(check(&open, 5).is_err());
        assert!(check(File::open("/dev/null").unwrap(), 5).is_err());
        assert!(check(tempfile::tempfile().unwrap(), 5).is_err());
    }
}
