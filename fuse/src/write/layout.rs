//! How the bytes of an upload are divided into parts, where some may be copied from the version
//! that the origin holds: pure arithmetic.

use std::ops::Range;

use super::parts::PartPlan;

/// The largest part, in bytes: 5 GiB (Amazon S3 user guide, "Multipart upload limits"); less, so
/// that what is left over of a division fits, too.
const COPY_MAX: u64 = 4 << 30;
/// Most parts before those of the plan, but for what must be copied in several pieces: of the few that some
/// endpoints take, the plan gets more than half.
const HEAD_MAX: usize = 400;

/// The parts of an upload, from part 1 on: first some that follow what did not change, then,
/// without end, those of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    head: Vec<Range<u64>>,
    plan: PartPlan,
}

impl Layout {
    /// The plan alone, for an upload whose every byte is sent.
    pub(super) fn plain(plan: PartPlan) -> Self {
        Self { head: Vec::new(), plan }
    }

    /// Parts that leave as much of `unchanged` whole as S3's limits let it: ranges in order. An
    /// object of `size` bytes may end with a short part; without a size more follows.
    pub(super) fn over(plan: PartPlan, unchanged: &[Range<u64>], size: Option<u64>) -> Self {
        let mut min = plan.part_min();
        if size.is_some_and(|size| size < min) {
            return Self::plain(plan);
        }
        let pieces = unchanged.last().map_or(0, |range| range.end / COPY_MAX) as usize;
        loop {
            let head = head(&plan, unchanged, size, min);
            if head.len() <= HEAD_MAX + pieces {
                return Self { head, plan };
            }
            min *= 2;
        }
    }

    /// Whether it was made to have parts that are copied.
    pub(super) fn has_copies(&self) -> bool {
        !self.head.is_empty()
    }

    /// Where the parts of the plan begin.
    pub(super) fn plan_start(&self) -> u64 {
        self.head.last().map_or(0, |range| range.end)
    }

    /// The bytes of part `number` (from 1), were the object endless.
    pub(super) fn range(&self, number: u32) -> Range<u64> {
        let index = number.saturating_sub(1) as usize;
        if let Some(range) = self.head.get(index) {
            return range.clone();
        }
        let range = self.plan.range((index - self.head.len()) as u32 + 1);
        let start = self.plan_start();
        start + range.start..start + range.end
    }

    /// The number of the part that is exactly this range.
    pub(super) fn number_of(&self, range: &Range<u64>) -> Option<u32> {
        let number = self.count(range.end);
        (number > 0 && self.range(number) == *range).then_some(number)
    }

    /// The parts of an object of `size` bytes.
    pub(super) fn parts(&self, size: u64) -> impl Iterator<Item = Range<u64>> {
        (1..=self.count(size)).map(move |number| {
            let range = self.range(number);
            range.start..range.end.min(size)
        })
    }

    /// Whether an object of `size` bytes has a short part nowhere but at its end.
    pub(super) fn fits(&self, size: u64) -> bool {
        let last = self.count(size) as usize;
        let inner = self.head.iter().take(last.saturating_sub(1));
        inner.into_iter().all(|range| range.end - range.start >= self.plan.part_min())
    }

    /// Number of parts of an object of `size` bytes.
    fn count(&self, size: u64) -> u32 {
        let start = self.plan_start();
        let head = self.head.partition_point(|range| range.start < size);
        // At most HEAD_MAX, and a few for each TiB.
        head as u32 + self.plan.count(size.saturating_sub(start))
    }
}

/// The parts up to the end of the last range that is left whole.
fn head(plan: &PartPlan, unchanged: &[Range<u64>], size: Option<u64>, min: u64) -> Vec<Range<u64>> {
    let mut head = Vec::new();
    let mut at = 0;
    for range in unchanged {
        // What changed before it is a part of its own, or part of one.
        let start = match range.start - at {
            0 => at,
            changed => at + changed.max(min),
        };
        let is_last = size == Some(range.end);
        if range.end <= start || (range.end - start < min && !is_last) {
            continue;
        }
        divide(&mut head, at..start, plan.base().max((start - at) / HEAD_MAX as u64));
        divide(&mut head, start..range.end, COPY_MAX);
        at = range.end;
    }
    head
}

/// Divides a range into pieces of `step` bytes; the last one takes what is left over.
fn divide(into: &mut Vec<Range<u64>>, range: Range<u64>, step: u64) {
    let mut at = range.start;
    while at < range.end {
        let end = if range.end - at < 2 * step { range.end } else { at + step };
        into.push(at..end);
        at = end;
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of one range are meant")]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::write::parts::PART_MIN;

    const MIB: u64 = 1 << 20;

    fn plan() -> PartPlan {
        PartPlan::new(8 * MIB)
    }

    #[test]
    fn a_log_is_copied_up_to_where_it_grows() {
        let layout = Layout::over(plan(), &[0..10 * MIB + 3], Some(12 * MIB));
        let parts: Vec<_> = layout.parts(12 * MIB).collect();
        assert_eq!(parts, [0..10 * MIB + 3, 10 * MIB + 3..12 * MIB]);
        assert_eq!(Layout::over(plan(), &[0..2 * MIB], Some(12 * MIB)), Layout::plain(plan()));
        assert_eq!(Layout::over(plan(), &[0..4 * MIB], Some(4 * MIB)), Layout::plain(plan()));
    }

    #[test]
    fn a_change_within_takes_the_smallest_part_and_the_end_may_be_short() {
        let size = 64 * MIB;
        let layout = Layout::over(
            plan(),
            &[0..30 * MIB, 31 * MIB..63 * MIB, 63 * MIB + 9..size],
            Some(size),
        );
        let parts: Vec<_> = layout.parts(size).collect();
        let sent_end = 30 * MIB + PART_MIN;
        assert_eq!(parts[..3], [0..30 * MIB, 30 * MIB..sent_end, sent_end..63 * MIB]);
        // Nine bytes changed near the end: what follows them is shorter than a part.
        assert_eq!(parts[3..], [63 * MIB..size]);
        let layout = Layout::over(plan(), &[0..30 * MIB, 40 * MIB..44 * MIB], Some(44 * MIB));
        assert_eq!(layout.parts(44 * MIB).last(), Some(40 * MIB..44 * MIB));
        assert!(layout.fits(44 * MIB) && !layout.fits(50 * MIB) && layout.fits(40 * MIB));
    }

    #[test]
    fn every_byte_is_in_one_part_and_none_but_the_last_is_short() {
        let mut random = rand::rngs::StdRng::seed_from_u64(7);
        for _ in 0..2000 {
            let size = random.random_range(1..200 * MIB);
            let (mut unchanged, mut at) = (Vec::new(), 0);
            while at < size {
                let start = at + random.random_range(0..20 * MIB);
                let end = (start + random.random_range(1..40 * MIB)).min(size);
                if start < end {
                    unchanged.push(start..end);
                }
                at = end + 1;
            }
            let open = random.random_bool(0.3);
            let layout = Layout::over(plan(), &unchanged, (!open).then_some(size));
            let parts: Vec<_> = layout.parts(size).collect();
            let mut end = 0;
            for (number, part) in (1..).zip(&parts) {
                assert_eq!(part.start, end);
                assert_eq!(layout.number_of(&layout.range(number)), Some(number));
                end = part.end;
            }
            assert_eq!(end, size);
            let (_, inner) = parts.split_last().unwrap();
            assert!(inner.iter().all(|part| part.end - part.start >= PART_MIN));
            assert!(layout.fits(size) || open);
        }
    }

    #[test]
    fn a_large_object_full_of_changes_has_no_more_parts_than_s3_takes() {
        let size = 5 << 40;
        let unchanged: Vec<_> =
            (0..size / (12 * MIB)).map(|n| n * 12 * MIB + 1..(n + 1) * 12 * MIB).collect();
        let layout = Layout::over(plan(), &unchanged, Some(size));
        assert!(layout.count(size) <= crate::write::parts::PARTS_MAX);
        assert!(layout.parts(size).all(|part| part.end - part.start <= 5 << 30));
    }

    #[test]
    fn changes_fit_where_an_upload_has_few_parts_and_a_large_object_is_copied_all_the_same() {
        let few = crate::write::parts::PARTS_FEW;
        for changes in [150, 495, 600, 5000] {
            let size = changes * 40 * MIB + 1024 * MIB;
            let unchanged: Vec<_> =
                (0..changes).map(|n| n * 40 * MIB + 1..(n + 1) * 40 * MIB).collect();
            let layout = Layout::over(plan(), &unchanged, Some(size));
            assert!(layout.count(size) <= few, "{changes}: {}", layout.count(size));
            assert!(layout.has_copies() || changes > 150);
        }
        let size = 1 << 40;
        let grown = Layout::over(plan(), &[0..size], Some(size + 100 * 1024 * MIB));
        assert!(grown.count(size + 100 * 1024 * MIB) <= few);
        assert!(Layout::over(plan(), &[0..5 << 40], Some(5 << 40)).has_copies());
    }
}
