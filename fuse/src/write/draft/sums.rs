//! Checksums of blocks, taken while their bytes pass by, so that they need not be read again.

use std::collections::HashMap;
use std::ops::Range;

use crate::model::blocks::BLOCK;
use crate::model::crc;

/// CRC32C of blocks. What is known of a block is true of the bytes that are in the file, but for
/// a write that is under way: at its end its blocks are noted or forgotten.
#[derive(Default)]
pub(super) struct Sums {
    /// By block: how many bytes from its start, and their sum.
    blocks: HashMap<u64, (u64, u32)>,
}

/// The sum of bytes that lie within one block.
pub(super) struct Slice {
    start: u64,
    len: u64,
    crc32c: u32,
}

/// The sums of what is about to be written, block by block.
pub(super) fn slices(offset: u64, data: &[u8]) -> Vec<Slice> {
    let mut slices = Vec::with_capacity(data.len() / BLOCK as usize + 2);
    for range in by_block(offset..offset + data.len() as u64) {
        let bytes = &data[(range.start - offset) as usize..(range.end - offset) as usize];
        let len = range.end - range.start;
        slices.push(Slice { start: range.start, len, crc32c: crc32c::crc32c(bytes) });
    }
    slices
}

/// A range, divided where blocks end.
pub(in crate::write) fn by_block(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    let starts = std::iter::successors(Some(range.start), |at| Some((at / BLOCK + 1) * BLOCK));
    starts.take_while(move |at| *at < end).map(move |at| at..((at / BLOCK + 1) * BLOCK).min(end))
}

impl Sums {
    /// Notes bytes that were written into a file which has `size` bytes now.
    pub(super) fn wrote(&mut self, slice: &Slice, size: u64) {
        let (block, within) = (slice.start / BLOCK, slice.start % BLOCK);
        let crc32c = match self.blocks.get(&block) {
            _ if within == 0 => slice.crc32c,
            Some((len, before)) if *len == within => crc::combine(*before, slice.crc32c, slice.len),
            _ => {
                self.blocks.remove(&block);
                return;
            }
        };
        let len = within + slice.len;
        match len == len_of(block, size) {
            true => self.blocks.insert(block, (len, crc32c)),
            false => self.blocks.remove(&block),
        };
    }

    /// Notes what the block that begins at `start` was read to be.
    pub(super) fn read(&mut self, start: u64, len: u64, crc32c: u32) {
        self.blocks.insert(start / BLOCK, (len, crc32c));
    }

    /// Forgets the blocks of a range.
    pub(super) fn forget(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (first, last) = (range.start / BLOCK, range.end.div_ceil(BLOCK));
        if last - first > self.blocks.len() as u64 {
            self.blocks.retain(|block, _| *block < first || *block >= last);
            return;
        }
        for block in first..last {
            self.blocks.remove(&block);
        }
    }

    /// The sum of a block of a file of `size` bytes.
    pub(super) fn get(&self, block: u64, size: u64) -> Option<u32> {
        let (len, crc32c) = self.blocks.get(&block)?;
        (*len == len_of(block, size)).then_some(*crc32c)
    }
}

fn len_of(block: u64, size: u64) -> u64 {
    size.saturating_sub(block * BLOCK).min(BLOCK)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn what_is_known_of_a_block_is_true() {
        let mut random = rand::rngs::StdRng::seed_from_u64(5);
        let mut known = 0;
        for _ in 0..100 {
            let (mut sums, mut file) = (Sums::default(), Vec::<u8>::new());
            for _ in 0..30 {
                let most = 3 * BLOCK;
                let offset = match random.random_bool(0.6) {
                    true => file.len() as u64,
                    false => random.random_range(0..most),
                };
                if random.random_bool(0.2) {
                    let low = offset.min(file.len() as u64);
                    file.resize(offset as usize, 0);
                    sums.forget(low..u64::MAX);
                } else {
                    let data: Vec<u8> =
                        (0..random.random_range(1..BLOCK + 50)).map(|n| n as u8).collect();
                    let end = offset as usize + data.len();
                    let old = file.len();
                    file.resize(old.max(end), 0);
                    file[offset as usize..end].copy_from_slice(&data);
                    if offset as usize > old {
                        sums.forget(old as u64..offset);
                    }
                    let size = file.len() as u64;
                    slices(offset, &data).iter().for_each(|slice| sums.wrote(slice, size));
                }
                for (n, block) in file.chunks(BLOCK as usize).enumerate() {
                    if let Some(sum) = sums.get(n as u64, file.len() as u64) {
                        assert_eq!(sum, crc32c::crc32c(block));
                        known += 1;
                    }
                }
            }
        }
        assert!(known > 1000, "{known}");
    }

    #[test]
    fn a_sequential_writer_leaves_every_sum_known() {
        let mut sums = Sums::default();
        let data: Vec<u8> = (0..5 * BLOCK / 2).map(|n| (n / 3) as u8).collect();
        for (n, piece) in data.chunks(4096).enumerate() {
            let offset = n as u64 * 4096;
            let size = offset + piece.len() as u64;
            slices(offset, piece).iter().for_each(|slice| sums.wrote(slice, size));
        }
        for (n, block) in data.chunks(BLOCK as usize).enumerate() {
            assert_eq!(sums.get(n as u64, data.len() as u64), Some(crc32c::crc32c(block)));
        }
    }
}
