//! The division of a version into blocks, and which of them are held.

use std::ops::Range;

/// The unit of the range map, of checksums and of what is served: 128 KiB.
///
/// It is the largest request that FUSE readahead makes by default, and a multiple of every page
/// size (4 KiB to 64 KiB). Changing it changes the format on disk.
pub const BLOCK: u64 = 128 * 1024;

/// Number of blocks of a file of `size` bytes.
pub fn count(size: u64) -> u32 {
    u32::try_from(size.div_ceil(BLOCK)).unwrap_or(u32::MAX)
}

/// The blocks that hold the bytes `offset .. offset + len` of a file of `size` bytes.
pub fn covering(offset: u64, len: u64, size: u64) -> Range<u32> {
    let end = offset.saturating_add(len).min(size);
    if offset >= end {
        return 0..0;
    }
    count_floor(offset)..count(end)
}

/// The bytes of the blocks `blocks` of a file of `size` bytes.
pub fn bytes_of(blocks: &Range<u32>, size: u64) -> Range<u64> {
    let start = u64::from(blocks.start) * BLOCK;
    let end = (u64::from(blocks.end) * BLOCK).min(size);
    start.min(end)..end
}

/// Length of one block of a file of `size` bytes: [`BLOCK`] but for the last.
pub fn len_of(block: u32, size: u64) -> usize {
    let range = bytes_of(&(block..block + 1), size);
    // At most BLOCK, which fits every usize that Linux runs on.
    (range.end - range.start) as usize
}

fn count_floor(offset: u64) -> u32 {
    u32::try_from(offset / BLOCK).unwrap_or(u32::MAX)
}

/// Which blocks of a version are held, with their checksums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockMap {
    /// CRC32C of each held block, by block number.
    sums: Vec<Option<u32>>,
    held: u32,
}

impl BlockMap {
    /// A map that holds none of `blocks` blocks.
    pub fn empty(blocks: u32) -> Self {
        Self { sums: vec![None; blocks as usize], held: 0 }
    }

    /// The checksum of a block, if it is held.
    pub fn get(&self, block: u32) -> Option<u32> {
        self.sums.get(block as usize).copied().flatten()
    }

    /// Whether a block is held.
    pub fn has(&self, block: u32) -> bool {
        self.get(block).is_some()
    }

    /// Notes a block as held. Numbers beyond the end are ignored.
    pub fn insert(&mut self, block: u32, crc: u32) {
        if let Some(slot) = self.sums.get_mut(block as usize) {
            self.held += u32::from(slot.is_none());
            *slot = Some(crc);
        }
    }

    /// Forgets a block; says whether it was held.
    pub fn remove(&mut self, block: u32) -> bool {
        let was = self.sums.get_mut(block as usize).is_some_and(|slot| slot.take().is_some());
        self.held -= u32::from(was);
        was
    }

    /// How many blocks are held.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// How many blocks there are.
    pub fn len(&self) -> u32 {
        // Built from a u32.
        self.sums.len() as u32
    }

    /// Whether the version has no blocks at all.
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// Whether every block is held.
    pub fn is_complete(&self) -> bool {
        self.held == self.len()
    }

    /// The runs of blocks in `wanted` for which `absent` says true.
    pub fn runs(wanted: Range<u32>, mut absent: impl FnMut(u32) -> bool) -> Vec<Range<u32>> {
        let mut out: Vec<Range<u32>> = Vec::new();
        for block in wanted {
            if !absent(block) {
                continue;
            }
            match out.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => out.push(block..block + 1),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_covered_and_clipped_at_the_end() {
        let size = 3 * BLOCK + 5;
        assert_eq!(count(size), 4);
        assert_eq!(count(0), 0);
        assert_eq!(covering(0, 1, size), 0..1);
        assert_eq!(covering(BLOCK - 1, 2, size), 0..2);
        assert_eq!(covering(3 * BLOCK, u64::MAX, size), 3..4);
        assert_eq!(covering(size, 1, size), 0..0);
        assert_eq!(len_of(3, size), 5);
        assert_eq!(bytes_of(&(1..4), size), BLOCK..size);
    }

    #[test]
    fn the_map_counts_what_it_holds() {
        let mut map = BlockMap::empty(4);
        map.insert(1, 7);
        map.insert(1, 8);
        map.insert(9, 1);
        assert_eq!((map.held(), map.get(1), map.is_complete()), (1, Some(8), false));
        assert_eq!(BlockMap::runs(0..4, |b| !map.has(b)), vec![0..1, 2..4]);
        assert!(map.remove(1) && !map.remove(1));
        assert_eq!(map.held(), 0);
        assert!(BlockMap::empty(0).is_complete());
    }
}
