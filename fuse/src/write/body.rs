//! Ranges of a staging file as bodies of requests, and their checksums.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::draft::{Draft, PartState, by_block};
use crate::blocking::MayBlock;
use crate::cache::dir::FROZEN;
use crate::model::blocks::BLOCK;
use crate::model::crc;
use crate::origin::UploadBody;
use crate::page_cache::{self, Chunk};

/// Ranges up to this size are read into memory; larger ones go out of the staging file, so that an
/// upload takes no share of the readers' memory.
const MEMORY_MAX: u64 = 1 << 20;
/// The checksums of all blocks of a file of `size` bytes that nobody writes any more.
pub(super) fn sums(_: &MayBlock, draft: &Draft, size: u64) -> io::Result<Vec<u32>> {
    let sum = |block: Range<u64>| match draft.sum(block.start / BLOCK) {
        Some(sum) => Ok(sum),
        None => file_sum(draft, draft.file(), block),
    };
    by_block(0..size).map(sum).collect()
}

/// A range of the staging file as a body, where that needs nothing of the disk.
pub(super) fn at_hand(draft: &Draft, of: PartState) -> Option<UploadBody> {
    let noted = |range| noted_sum(draft, &range).ok_or_else(|| io::ErrorKind::WouldBlock.into());
    body(draft, of, page_cache::read, noted).ok()
}

/// A range of the staging file as a body; `frozen`: of bytes that nobody changes any more.
///
/// # Errors
/// What the cache disk reports.
pub(super) fn from_disk(
    _: &MayBlock,
    draft: &Draft,
    of: PartState,
    frozen: bool,
) -> io::Result<UploadBody> {
    // What is read into memory is frozen there.
    if frozen && of.len > MEMORY_MAX {
        let file = Arc::new(copy_of(draft, of.start, of.len)?);
        let crc32c = combined(by_block(0..of.len), |range| file_sum(draft, &file, range))?;
        let calls = draft.calls().clone();
        return Ok(UploadBody::File { file, calls, offset: 0, len: of.len, crc32c });
    }
    let read = |file: &File, bytes: &mut [u8], at| {
        let _call = draft.calls().call();
        file.read_exact_at(bytes, at)
    };
    body(draft, of, read, |range| known_sum(draft, of, range))
}

/// A range as a body, by these ways to its bytes and to the checksums of its blocks.
fn body(
    draft: &Draft,
    of: PartState,
    read: impl Fn(&File, &mut [u8], u64) -> io::Result<()>,
    sum: impl Fn(Range<u64>) -> io::Result<u32>,
) -> io::Result<UploadBody> {
    let (file, offset, len) = (draft.file(), of.start, of.len);
    if len <= MEMORY_MAX {
        let mut chunk = Chunk::new(len as usize);
        read(file, chunk.bytes_mut(), offset)?;
        return Ok(UploadBody::of(chunk.into_bytes()));
    }
    let crc32c = combined(by_block(of.range()), sum)?;
    let (file, calls) = (file.clone(), draft.calls().clone());
    Ok(UploadBody::File { file, calls, offset, len, crc32c })
}

/// The checksum of bytes within one block of a part: as they were written, or read now.
fn known_sum(draft: &Draft, of: PartState, range: Range<u64>) -> io::Result<u32> {
    if let Some(sum) = noted_sum(draft, &range) {
        return Ok(sum);
    }
    let sum = file_sum(draft, draft.file(), range.clone())?;
    if is_block(draft, &range) {
        draft.block_read(of, range, sum);
    }
    Ok(sum)
}

/// The checksum of a block as it was written.
fn noted_sum(draft: &Draft, range: &Range<u64>) -> Option<u32> {
    is_block(draft, range).then(|| draft.sum(range.start / BLOCK)).flatten()
}

/// Whether a range is a whole block: one that goes on beyond the range is another one.
fn is_block(draft: &Draft, range: &Range<u64>) -> bool {
    range.start.is_multiple_of(BLOCK)
        && (range.end.is_multiple_of(BLOCK) || range.end == draft.size())
}

/// A nameless copy of a range.
fn copy_of(draft: &Draft, mut offset: u64, mut len: u64) -> io::Result<File> {
    /// What a slow disk copies in well less than the time in which it has to answer.
    const AT_ONCE: u64 = 64 << 20;
    let mut call = draft.calls().call();
    let path = draft.path().with_extension(FROZEN);
    let mut options = File::options();
    let copy = options.read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    let mut at = 0;
    while len > 0 {
        let step = usize::try_from(len.min(AT_ONCE)).unwrap_or(usize::MAX);
        let (mut from, mut to) = (offset, at);
        let copied =
            rustix::fs::copy_file_range(draft.file(), Some(&mut from), &copy, Some(&mut to), step)?;
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (offset, at, len) = (from, to, len - copied as u64);
        call.next();
    }
    Ok(copy)
}

/// The CRC32C of ranges that follow one another, from those of each.
fn combined(
    mut ranges: impl Iterator<Item = Range<u64>>,
    sum: impl Fn(Range<u64>) -> io::Result<u32>,
) -> io::Result<u32> {
    let Some(first) = ranges.next() else { return Ok(0) };
    ranges.try_fold(sum(first)?, |crc, range| {
        let len = range.end - range.start;
        Ok(crc::combine(crc, sum(range)?, len))
    })
}

/// The CRC32C of a range of a file of at most a block.
fn file_sum(draft: &Draft, file: &File, range: Range<u64>) -> io::Result<u32> {
    let mut chunk = Chunk::new((range.end - range.start) as usize);
    let _call = draft.calls().call();
    file.read_exact_at(chunk.bytes_mut(), range.start)?;
    Ok(crc32c::crc32c(chunk.bytes_mut()))
}
