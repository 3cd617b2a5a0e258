//! What of a file under change has changed when, under one lock of memory.

use std::ops::Range;

use super::changes::Changes;
use super::sums::{Slice, Sums};
use crate::write::parts::PartPlan;

/// Size, the generation of each byte, and checksums.
pub(super) struct Contents {
    pub(super) size: u64,
    /// Counts changes, as far as anybody looked between them.
    generation: u64,
    /// Whether somebody knows the generation: the next change is another one.
    is_known: bool,
    changes: Changes,
    sums: Sums,
    /// Writes that are under way.
    writing: u32,
    /// Counts the changes that were begun while a write was under way.
    overlaps: u64,
    /// Where a sequential writer has come to.
    front: u64,
    /// What he writes from here on leaves in parts of the plan while he goes on.
    eager_from: u64,
    /// The first of these parts that was not handed out for sending yet.
    eager: u32,
}

/// Identity of the bytes of a part: two that are equal are the same bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::write) struct PartState {
    pub(in crate::write) start: u64,
    pub(in crate::write) len: u64,
    pub(in crate::write) generation: u64,
}

/// What is to be stored, as of a moment.
#[derive(Clone, Copy, Debug)]
pub(in crate::write) struct Snapshot {
    pub(in crate::write) generation: u64,
    pub(in crate::write) size: u64,
}

/// A write under way: what it passed if no other change was begun meanwhile.
pub(super) struct Turn {
    overlaps: Option<u64>,
}

impl PartState {
    pub(in crate::write) fn range(&self) -> Range<u64> {
        self.start..self.start + self.len
    }
}

impl Contents {
    pub(super) fn new() -> Self {
        Self {
            size: 0,
            generation: 1,
            is_known: true,
            changes: Changes::new(),
            sums: Sums::default(),
            writing: 0,
            overlaps: 0,
            front: 0,
            eager_from: 0,
            eager: 1,
        }
    }

    /// Begins a write; it ends with [`Contents::wrote`] or [`Contents::failed`].
    pub(super) fn begin_write(&mut self) -> Turn {
        let alone = self.writing == 0;
        if !alone {
            self.overlaps += 1;
        }
        self.writing += 1;
        Turn { overlaps: alone.then_some(self.overlaps) }
    }

    /// Notes bytes that were written at `range`, and their sums. Returns the parts that a
    /// sequential writer has just passed.
    pub(super) fn wrote(
        &mut self,
        plan: &PartPlan,
        range: Range<u64>,
        sums: &[Slice],
        turn: Turn,
    ) -> Vec<Range<u64>> {
        self.writing -= 1;
        let hole = self.size..range.start.max(self.size);
        self.size = self.size.max(range.end);
        self.sums.forget(hole.clone());
        match turn.overlaps == Some(self.overlaps) {
            true => sums.iter().for_each(|slice| self.sums.wrote(slice, self.size)),
            false => self.sums.forget(range.clone()),
        }
        self.touch(hole.start.min(range.start)..range.end);
        if range.start != self.front {
            return Vec::new();
        }
        self.front = range.end;
        self.passed(plan)
    }

    /// The parts of the plan that a sequential writer has passed and that were not handed out yet.
    fn passed(&mut self, plan: &PartPlan) -> Vec<Range<u64>> {
        let behind = self.front.saturating_sub(self.eager_from);
        // What fits a single PUT goes in one, at the end.
        if behind <= plan.base() {
            return Vec::new();
        }
        let filling = plan.part_at(behind);
        let passed = (self.eager..filling).map(|part| {
            let range = plan.range(part);
            self.eager_from + range.start..self.eager_from + range.end
        });
        let passed = passed.collect();
        self.eager = self.eager.max(filling);
        passed
    }

    /// Hands parts out from `start` on, from the next one that is passed.
    pub(super) fn eager_from(&mut self, start: u64) {
        if start != self.eager_from {
            self.eager_from = start;
            self.eager = 1;
        }
    }

    /// Notes a write that failed: some of its bytes may be there.
    pub(super) fn failed(&mut self, range: Range<u64>) {
        self.writing -= 1;
        self.sums.forget(range.clone());
        self.touch(range);
    }

    /// Notes a new size.
    pub(super) fn resized(&mut self, size: u64) {
        self.overlaps += 1;
        let (low, high) = (size.min(self.size), size.max(self.size));
        self.sums.forget(low..high);
        self.touch(low..high);
        self.size = size;
        self.front = self.front.min(size);
    }

    fn touch(&mut self, range: Range<u64>) {
        self.generation += u64::from(self.is_known);
        self.is_known = false;
        self.changes.mark(range, self.generation);
    }

    /// The generation of what is there now.
    pub(super) fn generation(&mut self) -> u64 {
        self.is_known = true;
        self.generation
    }

    /// Whether that is what is there now.
    pub(super) fn is(&self, generation: Option<u64>) -> bool {
        generation == Some(self.generation)
    }

    pub(super) fn snapshot(&mut self) -> Snapshot {
        Snapshot { generation: self.generation(), size: self.size }
    }

    /// The state of a range. Its length counts: a part that was the last and short is another one
    /// once bytes follow it, although none of its own was written.
    pub(super) fn part(&mut self, range: Range<u64>) -> PartState {
        self.is_known = true;
        let generation = self.changes.latest(&range);
        PartState { start: range.start, len: range.end - range.start, generation }
    }

    /// Whether bytes of a part changed since it was in this state.
    pub(super) fn changed_since(&self, of: PartState) -> bool {
        let range = of.range();
        self.changes.latest(&range) != of.generation || self.size < range.end
    }

    /// What of the bytes before `end` did not change since a generation.
    pub(super) fn unchanged_since(&self, generation: u64, end: u64) -> Vec<Range<u64>> {
        self.changes.unchanged_since(generation, end.min(self.size))
    }

    /// Notes the sum of a block of a part that was read in this state.
    pub(super) fn read(&mut self, of: PartState, block: Range<u64>, crc32c: u32) {
        if !self.changed_since(of) {
            self.sums.read(block.start, block.end - block.start, crc32c);
        }
    }

    /// The sum of a block, where it is known.
    pub(super) fn sum(&self, block: u64) -> Option<u32> {
        self.sums.get(block, self.size)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of one range are meant")]
mod tests {
    use super::super::sums::slices;
    use super::*;
    use crate::write::parts::PART_MIN;

    fn write(contents: &mut Contents, range: Range<u64>) -> Vec<Range<u64>> {
        let turn = contents.begin_write();
        contents.wrote(&PartPlan::new(PART_MIN), range, &[], turn)
    }

    #[test]
    fn a_part_that_was_the_last_is_another_one_once_bytes_follow_it() {
        let mut contents = Contents::new();
        write(&mut contents, 0..PART_MIN + 100);
        let short = contents.part(PART_MIN..contents.size);
        assert_eq!(short.len, 100);
        contents.resized(2 * PART_MIN);
        let whole = contents.part(PART_MIN..contents.size);
        assert_ne!(short, whole);
        assert!(!contents.changed_since(short));
        contents.resized(PART_MIN + 99);
        assert!(contents.changed_since(short));
    }

    #[test]
    fn changes_count_as_one_until_somebody_looks() {
        let mut contents = Contents::new();
        write(&mut contents, 0..10);
        write(&mut contents, 10..20);
        let snapshot = contents.snapshot();
        assert_eq!(snapshot.generation, 2);
        assert!(contents.is(Some(2)));
        write(&mut contents, 20..30);
        assert!(!contents.is(Some(2)));
        assert_eq!(contents.unchanged_since(2, 30), [0..20]);
        assert_eq!(contents.part(5..15).generation, 2);
        assert_eq!(contents.part(15..25).generation, 3);
    }

    #[test]
    fn parts_are_handed_out_once_and_only_to_a_sequential_writer() {
        let mut contents = Contents::new();
        assert!(write(&mut contents, 0..PART_MIN).is_empty());
        assert_eq!(write(&mut contents, PART_MIN..PART_MIN + 1), [0..PART_MIN]);
        assert!(write(&mut contents, 0..10).is_empty());
        let passed = write(&mut contents, PART_MIN + 1..3 * PART_MIN + 1);
        assert_eq!(passed, [PART_MIN..2 * PART_MIN, 2 * PART_MIN..3 * PART_MIN]);
        contents.resized(1);
        assert!(write(&mut contents, 1..PART_MIN + 5).is_empty());
        contents.eager_from(PART_MIN);
        assert!(write(&mut contents, PART_MIN + 5..2 * PART_MIN).is_empty());
        assert_eq!(write(&mut contents, 2 * PART_MIN..2 * PART_MIN + 1), [PART_MIN..2 * PART_MIN]);
    }

    #[test]
    fn sums_of_writes_that_overlap_are_not_believed() {
        let plan = PartPlan::new(PART_MIN);
        let mut contents = Contents::new();
        let (a, b) = (slices(0, b"aaaa"), slices(0, b"bbbb"));
        let (first, second) = (contents.begin_write(), contents.begin_write());
        contents.wrote(&plan, 0..4, &b, second);
        assert_eq!(contents.sum(0), None);
        contents.wrote(&plan, 0..4, &a, first);
        assert_eq!(contents.sum(0), None);
        let alone = contents.begin_write();
        contents.wrote(&plan, 0..4, &a, alone);
        assert_eq!(contents.sum(0), Some(crc32c::crc32c(b"aaaa")));
        let cut = contents.begin_write();
        contents.resized(2);
        contents.wrote(&plan, 0..4, &a, cut);
        assert_eq!(contents.sum(0), None);
    }
}
