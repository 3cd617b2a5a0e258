//! What the kernel keeps of a file in memory.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::ops::Range;

use bytes::Bytes;
use rustix::fs::Advice;
use rustix::io::{ReadWriteFlags, preadv2};

/// Alignment of memory that is read into: a line of the processor's cache.
const ALIGN: usize = 64;

/// Fills `into` from `offset` on without waiting for the disk.
///
/// # Errors
/// `WouldBlock` where not all of it is in memory, `UnexpectedEof` where the file is shorter, or what
/// preadv2 reports.
///
/// preadv2(2), RWF_NOWAIT. Memory is best aligned to [`ALIGN`]: the kernel copies to the user by
/// `rep movsb`, which on some processors (AMD EPYC) is eight times slower to an address that is 16
/// more than a multiple of 64, and there is where the allocator puts all large buffers.
pub(crate) fn read(file: &File, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !into.is_empty() {
        let slices = &mut [IoSliceMut::new(into)];
        match preadv2(file, slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => return Err(error.into()),
            Ok(filled) => {
                into = &mut into[filled..];
                offset += filled as u64;
            }
        }
    }
    Ok(())
}

/// Bytes of a file, and where they begin in memory that was aligned.
pub(crate) struct Chunk {
    memory: Vec<u8>,
    bytes: Range<usize>,
}

impl Chunk {
    /// Room for `len` bytes.
    pub(crate) fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self { memory, bytes: start..start + len }
    }

    /// The bytes to fill.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.bytes.clone()]
    }

    /// Makes it immutable.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from(self.memory).slice(self.bytes)
    }
}

/// Begins to write what is dirty of a range to the disk, and drops what is there already.
/// Nothing is waited for, so that bytes that were just written are dropped by a second call.
///
/// mm/fadvise.c: POSIX_FADV_DONTNEED.
pub(crate) fn leave(file: &File, offset: u64, len: Option<NonZeroU64>) {
    let _ = rustix::fs::fadvise(file, offset, len, Advice::DontNeed);
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_just_written_is_read_without_the_disk_and_not_beyond_the_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut into = [0; 4];
        read(&file, &mut into, 3).unwrap();
        assert_eq!(&into, b"3456");
        read(&file, &mut into, 7).unwrap_err();
        read(&file, &mut [], 10).unwrap();
        let mut chunk = Chunk::new(7);
        assert!(chunk.bytes_mut().as_ptr().addr().is_multiple_of(ALIGN));
        read(&file, chunk.bytes_mut(), 3).unwrap();
        assert_eq!(chunk.into_bytes(), "3456789");
    }
}
