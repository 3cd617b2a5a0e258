//! The division of a version into blocks, and which of them are held.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

/// The unit of the range map, of checksums and of what is served: 128 KiB.
///
/// It is the largest request that FUSE readahead makes by default, and a multiple of every page
/// size (4 KiB to 64 KiB). Changing it changes the format on disk.
pub const BLOCK: u64 = 128 * 1024;

/// The largest object that there can be, in bytes: S3's limit is 50 TB (Amazon S3 user guide, "Uploading
/// objects"), which is taken for powers of two. Its blocks can be numbered.
pub const OBJECT_MAX: u64 = 50 << 40;

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

/// Number of blocks whose checksums lie together, in memory and in a row of the index: 64 MiB of data.
pub const SEGMENT: u32 = 512;

/// Which blocks of a version are held, with their checksums. It takes memory for what is held, not for
/// the size that somebody gave the version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockMap {
    blocks: u32,
    /// CRC32C of each held block, by segment; a segment of which none is held is not there.
    segments: BTreeMap<u32, Box<[Option<u32>; SEGMENT as usize]>>,
    held: u32,
}

impl BlockMap {
    /// A map that holds none of `blocks` blocks.
    pub fn empty(blocks: u32) -> Self {
        Self { blocks, segments: BTreeMap::new(), held: 0 }
    }

    /// The checksum of a block, if it is held.
    pub fn get(&self, block: u32) -> Option<u32> {
        self.segments.get(&(block / SEGMENT))?[(block % SEGMENT) as usize]
    }

    /// Whether a block is held.
    pub fn has(&self, block: u32) -> bool {
        self.get(block).is_some()
    }

    /// Notes a block as held. Numbers beyond the end are ignored.
    pub fn insert(&mut self, block: u32, crc: u32) {
        if block < self.blocks {
            let none = || Box::new([None; SEGMENT as usize]);
            let segment = self.segments.entry(block / SEGMENT).or_insert_with(none);
            let slot = &mut segment[(block % SEGMENT) as usize];
            self.held += u32::from(slot.is_none());
            *slot = Some(crc);
        }
    }

    /// Forgets a block; says whether it was held.
    pub fn remove(&mut self, block: u32) -> bool {
        let Entry::Occupied(mut segment) = self.segments.entry(block / SEGMENT) else {
            return false;
        };
        let was = segment.get_mut()[(block % SEGMENT) as usize].take().is_some();
        self.held -= u32::from(was);
        if was && segment.get().iter().all(Option::is_none) {
            segment.remove();
        }
        was
    }

    /// How many blocks are held.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// The blocks that are held, in order.
    pub fn held_blocks(&self) -> impl Iterator<Item = u32> {
        self.segments.iter().flat_map(|(number, segment)| {
            let first = number * SEGMENT;
            (first..).zip(segment.iter()).filter_map(|(block, sum)| sum.map(|_| block))
        })
    }

    /// The segments of which a block is held, in order.
    pub fn segments(&self) -> impl Iterator<Item = u32> {
        self.segments.keys().copied()
    }

    /// How many blocks there are.
    pub fn len(&self) -> u32 {
        self.blocks
    }

    /// Whether the version has no blocks at all.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Whether every block is held.
    pub fn is_complete(&self) -> bool {
        self.held == self.blocks
    }

    /// The runs of blocks in `wanted` that are not held.
    pub fn missing(&self, wanted: Range<u32>) -> Vec<Range<u32>> {
        let mut out: Vec<Range<u32>> = Vec::new();
        if wanted.is_empty() {
            return out;
        }
        let mut add = |absent: Range<u32>| match out.last_mut() {
            Some(run) if run.end == absent.start => run.end = absent.end,
            _ if absent.is_empty() => {}
            _ => out.push(absent),
        };
        let mut from = wanted.start;
        let segments = wanted.start / SEGMENT..wanted.end.div_ceil(SEGMENT);
        for (number, segment) in self.segments.range(segments) {
            let first = number * SEGMENT;
            for (block, sum) in (first..).zip(segment.iter()) {
                if sum.is_some() && wanted.contains(&block) {
                    add(from..block);
                    from = block + 1;
                }
            }
        }
        add(from..wanted.end.max(from));
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
        assert_eq!(map.missing(0..4), vec![0..1, 2..4]);
        assert_eq!(map.missing(1..2), vec![]);
        assert!(map.remove(1) && !map.remove(1));
        assert_eq!(map.held(), 0);
        assert!(BlockMap::empty(0).is_complete());
    }

    #[test]
    fn a_map_takes_memory_for_what_is_held_alone() {
        let blocks = count(OBJECT_MAX);
        assert!(blocks < u32::MAX);
        let mut map = BlockMap::empty(blocks);
        for block in [0, SEGMENT - 1, SEGMENT, blocks / 2, blocks - 1] {
            map.insert(block, 7);
        }
        assert_eq!(map.segments().count(), 4);
        assert_eq!(map.missing(0..blocks).len(), 3);
        assert_eq!(map.missing(SEGMENT - 1..SEGMENT + 2), vec![SEGMENT + 1..SEGMENT + 2]);
        let held: Vec<_> = map.held_blocks().collect();
        assert_eq!(held, [0, SEGMENT - 1, SEGMENT, blocks / 2, blocks - 1]);
        for block in held {
            assert!(map.remove(block));
        }
        assert_eq!((map.held(), map.segments().count()), (0, 0));
        assert_eq!(map.missing(0..blocks), vec![0..blocks]);
    }

    #[test]
    fn what_is_missing_is_what_is_not_held() {
        let mut state = 1_u32;
        let mut random = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        for _ in 0..300 {
            let mut map = BlockMap::empty(2000);
            for _ in 0..random(2000) {
                map.insert(random(2000), 1);
            }
            let from = random(2100);
            let wanted = from..from + random(2100);
            let missing: Vec<u32> = map.missing(wanted.clone()).into_iter().flatten().collect();
            let expected: Vec<u32> = wanted.filter(|block| !map.has(*block)).collect();
            assert_eq!(missing, expected);
        }
    }
}
