//! Which bytes of a file changed when: ranges, each with the generation of its last change.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::model::blocks::BLOCK;

/// More ranges than this are made coarser, so that they take little memory (about 2 MiB) whatever
/// is written where.
const RANGES_MAX: usize = 32 * 1024;

/// Ranges of bytes with the generation of their last change. What was never marked has 0.
pub(super) struct Changes {
    /// By first byte: the end, and the generation. None overlap.
    ranges: BTreeMap<u64, (u64, u64)>,
    /// Ranges are widened to multiples of so many bytes: more seems to have changed than did.
    grain: u64,
}

impl Changes {
    pub(super) fn new() -> Self {
        Self { ranges: BTreeMap::new(), grain: 1 }
    }

    /// Notes a change, which is later than all before.
    pub(super) fn mark(&mut self, range: Range<u64>, generation: u64) {
        self.insert(range, generation);
        if self.ranges.len() > RANGES_MAX {
            self.coarsen();
        }
    }

    /// The generation of the last change of any byte in `range`.
    pub(super) fn latest(&self, range: &Range<u64>) -> u64 {
        let before_end = self.ranges.range(..range.end).rev();
        let within = before_end.take_while(|(_, (end, _))| *end > range.start);
        within.map(|(_, (_, generation))| *generation).max().unwrap_or(0)
    }

    /// What of the bytes before `end` did not change since `generation`, in order.
    pub(super) fn unchanged_since(&self, generation: u64, end: u64) -> Vec<Range<u64>> {
        let mut unchanged = Vec::new();
        let mut at = 0;
        for (start, (changed_end, last)) in self.ranges.range(..end) {
            if *last <= generation {
                continue;
            }
            if *start > at {
                unchanged.push(at..*start);
            }
            at = *changed_end;
        }
        if at < end {
            unchanged.push(at..end);
        }
        unchanged
    }

    fn insert(&mut self, range: Range<u64>, generation: u64) {
        let mut start = range.start / self.grain * self.grain;
        let mut end = range.end.next_multiple_of(self.grain);
        if start >= end {
            return;
        }
        self.cut(start..end);
        if let Some((&before, &(touches, of))) = self.ranges.range(..start).next_back()
            && touches == start
            && of == generation
        {
            start = before;
        }
        if let Some(&(behind, of)) = self.ranges.get(&end)
            && of == generation
        {
            self.ranges.remove(&end);
            end = behind;
        }
        self.ranges.insert(start, (end, generation));
    }

    /// Takes `range` out.
    fn cut(&mut self, range: Range<u64>) {
        if let Some((&start, &(end, generation))) = self.ranges.range(..range.start).next_back()
            && end > range.start
        {
            self.ranges.insert(start, (range.start, generation));
            if end > range.end {
                self.ranges.insert(range.end, (end, generation));
            }
        }
        while let Some((&start, &(end, generation))) = self.ranges.range(range.clone()).next() {
            self.ranges.remove(&start);
            if end > range.end {
                self.ranges.insert(range.end, (end, generation));
            }
        }
    }

    fn coarsen(&mut self) {
        while self.ranges.len() > RANGES_MAX / 2 {
            self.grain = (self.grain * 2).max(BLOCK);
            let ranges = std::mem::take(&mut self.ranges);
            let mut ranges: Vec<_> = ranges.into_iter().collect();
            ranges.sort_by_key(|(_, (_, generation))| *generation);
            for (start, (end, generation)) in ranges {
                self.insert(start..end, generation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn every_byte_has_the_generation_of_its_last_change() {
        let mut random = rand::rngs::StdRng::seed_from_u64(11);
        for _ in 0..200 {
            let (mut changes, mut bytes) = (Changes::new(), [0; 60]);
            for generation in 1..20 {
                let start = random.random_range(0..60);
                let end = random.random_range(start..=60);
                changes.mark(start..end, generation);
                bytes[start as usize..end as usize].fill(generation);
            }
            for start in 0..60 {
                for end in start + 1..=60 {
                    let latest = bytes[start..end].iter().max().unwrap();
                    assert_eq!(changes.latest(&(start as u64..end as u64)), *latest);
                }
            }
            for generation in 0..20 {
                let unchanged = changes.unchanged_since(generation, 55);
                let seen: Vec<u64> = unchanged.into_iter().flatten().collect();
                let meant = (0..55).filter(|at| bytes[*at as usize] <= generation);
                assert_eq!(seen, meant.collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn bytes_in_a_row_of_one_generation_are_one_range() {
        let mut changes = Changes::new();
        for at in 0..1000 {
            changes.mark(at * 10..at * 10 + 10, 1 + at / 500);
        }
        assert_eq!(changes.ranges.len(), 2);
    }

    #[test]
    fn more_ranges_than_are_kept_are_widened_and_none_is_forgotten() {
        let mut changes = Changes::new();
        let count = 4 * RANGES_MAX as u64;
        for n in 0..count {
            changes.mark(n * 50_000..n * 50_000 + 1, n + 1);
            assert!(changes.ranges.len() <= RANGES_MAX);
        }
        for n in 0..count {
            assert!(changes.latest(&(n * 50_000..n * 50_000 + 1)) > n);
        }
        assert_eq!(changes.latest(&(count * 50_000 + changes.grain..u64::MAX)), 0);
    }
}
