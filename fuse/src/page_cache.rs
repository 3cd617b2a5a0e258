//! What the kernel keeps of a file in memory.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;

use bytes::Bytes;
use rustix::fs::Advice;
use rustix::io::{ReadWriteFlags, preadv2};

/// Alignment of memory that is read into: a line of the processor's cache.
const ALIGN: usize = 64;

/// Fills `into` from `offset` on without waiting for the disk. `false`: not all of it is in memory,
/// or the file is shorter.
///
/// preadv2(2), RWF_NOWAIT. Memory is best aligned to [`ALIGN`]: the kernel copies to the user by
/// `rep movsb`, which on some processors (AMD EPYC) is eight times slower to an address that is 16
/// more than a multiple of 64, and there is where the allocator puts all large buffers.
pub(crate) fn read(file: &File, mut into: &mut [u8], mut offset: u64) -> bool {
    while !into.is_empty() {
        let slices = &mut [IoSliceMut::new(into)];
        match preadv2(file, slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(0) | Err(_) => return false,
            Ok(filled) => {
                into = &mut into[filled..];
                offset += filled as u64;
            }
        }
    }
    true
}

/// Bytes of a file, and where they begin in memory that was aligned.
pub(crate) struct Chunk {
    memory: Vec<u8>,
    start: usize,
}

impl Chunk {
    /// Room for `len` bytes.
    pub(crate) fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self { memory, start }
    }

    /// The bytes to fill.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let end = self.start + self.memory.len() - ALIGN;
        &mut self.memory[self.start..end]
    }

    /// Makes it immutable.
    pub(crate) fn into_bytes(self) -> Bytes {
        let end = self.start + self.memory.len() - ALIGN;
        Bytes::from(self.memory).slice(self.start..end)
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
        assert!(read(&file, &mut into, 3));
        assert_eq!(&into, b"3456");
        assert!(!read(&file, &mut into, 7));
        assert!(read(&file, &mut [], 10));
        let mut chunk = Chunk::new(7);
        assert!(chunk.bytes_mut().as_ptr().addr().is_multiple_of(ALIGN));
        assert!(read(&file, chunk.bytes_mut(), 3));
        assert_eq!(chunk.into_bytes(), "3456789");
    }
}
