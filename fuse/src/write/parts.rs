//! How an object is divided into parts: pure arithmetic.

use std::ops::Range;

use crate::model::blocks::BLOCK;

/// The largest object, in bytes: 5 TiB (Amazon S3 user guide, "Multipart upload limits").
pub const OBJECT_MAX: u64 = 5 << 40;
/// The smallest part but the last, in bytes (same page).
pub const PART_MIN: u64 = 5 << 20;
/// Most parts of an upload (same page).
pub const PARTS_MAX: u32 = 10_000;
/// Most parts where an endpoint takes fewer than S3 (OpenStack Swift, `max_upload_part_num` of s3api).
pub const PARTS_FEW: u32 = 1000;
/// The largest part planned, in bytes; S3 takes 5 GiB.
const PART_MAX: u64 = 4 << 30;
/// After so many parts the size of a part doubles: so soon that [`PARTS_FEW`] of them are a TiB, and so late
/// that what is left to send at a close is a small part of the whole.
const STEP: u32 = 80;

/// Sizes of the parts of an upload whose final size is not known when it begins: the first ones
/// are small, so that they leave early; later ones grow, so that the largest object fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartPlan {
    base: u64,
}

impl PartPlan {
    /// `base` is the size of the first parts; it is brought within S3's limits and to whole
    /// blocks.
    pub fn new(base: u64) -> Self {
        let base = base.clamp(PART_MIN, PART_MAX);
        Self { base: base.next_multiple_of(BLOCK) }
    }

    /// Parts below S3's limits, so that tests of many of them are cheap.
    #[cfg(test)]
    pub(super) fn of_blocks(blocks: u64) -> Self {
        Self { base: blocks * BLOCK }
    }

    /// Size of the first parts, which is also the most that goes in a single PUT.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The least size of a part but the last.
    pub fn part_min(&self) -> u64 {
        PART_MIN.min(self.base)
    }

    /// The bytes of part `number` (from 1), were the object endless.
    pub fn range(&self, number: u32) -> Range<u64> {
        let index = number.saturating_sub(1);
        let step = index / STEP;
        let mut start = 0_u64;
        for earlier in 0..step {
            start += self.size_at(earlier) * u64::from(STEP);
        }
        let size = self.size_at(step);
        start += size * u64::from(index % STEP);
        start..start + size
    }

    /// The part that holds the byte at `offset`.
    pub fn part_at(&self, offset: u64) -> u32 {
        let mut start = 0_u64;
        let mut step = 0;
        loop {
            let size = self.size_at(step);
            let whole = size * u64::from(STEP);
            if offset < start + whole {
                let within = (offset - start) / size;
                // Below STEP.
                return step * STEP + within as u32 + 1;
            }
            start += whole;
            step += 1;
        }
    }

    /// Number of parts of an object of `size` bytes.
    pub fn count(&self, size: u64) -> u32 {
        if size == 0 { 0 } else { self.part_at(size - 1) }
    }

    fn size_at(&self, step: u32) -> u64 {
        self.base.saturating_mul(1 << step.min(20)).min(PART_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_exactly_one_part_and_the_largest_object_fits() {
        for base in [PART_MIN, 8 << 20, 100 << 20, PART_MAX] {
            let plan = PartPlan::new(base);
            let mut end = 0;
            for number in 1..=2100 {
                let range = plan.range(number);
                assert_eq!(range.start, end);
                assert_eq!(range.start % BLOCK, 0);
                assert_eq!(plan.part_at(range.start), number);
                assert_eq!(plan.part_at(range.end - 1), number);
                end = range.end;
            }
            assert!(plan.count(OBJECT_MAX) <= PARTS_MAX, "{base}: {}", plan.count(OBJECT_MAX));
        }
        assert_eq!(PartPlan::new(8 << 20).count(0), 0);
        assert_eq!(PartPlan::new(1).base(), PART_MIN);
    }

    #[test]
    fn a_tebibyte_fits_where_an_upload_has_few_parts_and_the_last_ones_are_small_beside_it() {
        for base in [PART_MIN, 8 << 20, 100 << 20] {
            let plan = PartPlan::new(base);
            assert!(plan.count(1 << 40) <= PARTS_FEW, "{base}: {}", plan.count(1 << 40));
            for number in STEP..PARTS_FEW {
                let range = plan.range(number);
                let part = range.end - range.start;
                assert!(part <= range.start / 40 + base, "{base}: part {number} of {part} bytes");
            }
        }
    }
}
