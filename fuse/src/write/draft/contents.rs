//! What of a file under change has changed when: counted by part, under one lock of memory.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use crate::write::parts::PartPlan;

/// Size, and a generation for each part.
pub(super) struct Contents {
    pub(super) size: u64,
    /// Counts changes.
    pub(super) generation: u64,
    /// Where a sequential writer has come to.
    front: u64,
    /// The first part that was not handed out for sending yet.
    eager: u32,
    /// Generation of the last change of each part.
    changed: HashMap<u32, u64>,
    /// Checksums by block, of parts as they were.
    sums: HashMap<u32, (PartState, Vec<u32>)>,
}

/// Identity of the bytes of a part: two that are equal are the same bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::write) struct PartState {
    pub(in crate::write) generation: u64,
    pub(in crate::write) len: u64,
}

/// What is to be stored, as of a moment.
pub(in crate::write) struct Snapshot {
    pub(in crate::write) generation: u64,
    pub(in crate::write) size: u64,
    /// The state of each part, from part 1 on.
    pub(in crate::write) parts: Vec<PartState>,
}

impl Contents {
    pub(super) fn new() -> Self {
        Self {
            size: 0,
            generation: 1,
            front: 0,
            eager: 1,
            changed: HashMap::new(),
            sums: HashMap::new(),
        }
    }

    /// Notes bytes at `offset..end`. Returns the parts that a sequential writer has just passed.
    pub(super) fn wrote(&mut self, plan: &PartPlan, offset: u64, end: u64) -> Vec<u32> {
        self.size = self.size.max(end);
        self.touch(plan.part_at(offset)..=plan.part_at(end.saturating_sub(1).max(offset)));
        if offset != self.front {
            return Vec::new();
        }
        self.front = end;
        // What fits a single PUT goes in one, at the end.
        if self.size <= plan.base() {
            return Vec::new();
        }
        let filling = plan.part_at(end);
        let passed = (self.eager..filling).collect();
        self.eager = self.eager.max(filling);
        passed
    }

    /// Notes a new size.
    pub(super) fn resized(&mut self, plan: &PartPlan, size: u64) {
        let (low, high) = (size.min(self.size), size.max(self.size));
        self.touch(plan.part_at(low)..=plan.part_at(high.saturating_sub(1).max(low)));
        self.size = size;
        self.front = self.front.min(size);
    }

    fn touch(&mut self, parts: RangeInclusive<u32>) {
        self.generation += 1;
        for part in parts {
            self.changed.insert(part, self.generation);
        }
    }

    /// The state of a part of a file of `size` bytes. Its length counts: a part that was the last
    /// and short is another one once bytes follow it, although none of its own was written.
    pub(super) fn part(&self, plan: &PartPlan, part: u32, size: u64) -> PartState {
        let range = plan.range(part);
        let len = range.end.min(size).saturating_sub(range.start);
        PartState { generation: self.changed.get(&part).copied().unwrap_or(0), len }
    }

    pub(super) fn snapshot(&self, plan: &PartPlan) -> Snapshot {
        let parts = (1..=plan.count(self.size)).map(|n| self.part(plan, n, self.size));
        Snapshot { generation: self.generation, size: self.size, parts: parts.collect() }
    }

    pub(super) fn set_sums(&mut self, part: u32, of: PartState, sums: Vec<u32>) {
        self.sums.insert(part, (of, sums));
    }

    /// The checksums of all blocks, if those of every part are known as it is now.
    pub(super) fn sums(&self, plan: &PartPlan) -> Option<Vec<u32>> {
        let mut all = Vec::new();
        for part in 1..=plan.count(self.size) {
            let (of, sums) = self.sums.get(&part)?;
            if *of != self.part(plan, part, self.size) {
                return None;
            }
            all.extend_from_slice(sums);
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::parts::PART_MIN;

    #[test]
    fn a_part_that_was_the_last_is_another_one_once_bytes_follow_it() {
        let plan = PartPlan::new(PART_MIN);
        let mut contents = Contents::new();
        contents.wrote(&plan, 0, PART_MIN + 100);
        let short = contents.part(&plan, 2, contents.size);
        assert_eq!(short.len, 100);
        // Over a hole: no byte of the second part is written.
        contents.wrote(&plan, 2 * PART_MIN, 2 * PART_MIN + 1);
        let whole = contents.part(&plan, 2, contents.size);
        assert_eq!((whole.generation, whole.len), (short.generation, PART_MIN));
        assert_ne!(short, whole);
    }

    #[test]
    fn parts_are_handed_out_once_and_only_to_a_sequential_writer() {
        let plan = PartPlan::new(PART_MIN);
        let mut contents = Contents::new();
        assert!(contents.wrote(&plan, 0, PART_MIN).is_empty());
        assert_eq!(contents.wrote(&plan, PART_MIN, PART_MIN + 1), [1]);
        assert!(contents.wrote(&plan, 0, 10).is_empty());
        assert_eq!(contents.wrote(&plan, PART_MIN + 1, 3 * PART_MIN + 1), [2, 3]);
        contents.resized(&plan, 1);
        assert!(contents.wrote(&plan, 1, PART_MIN + 5).is_empty());
    }
}
