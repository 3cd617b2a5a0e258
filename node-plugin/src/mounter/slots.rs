//! What is done at once, up to a number.

use std::sync::Arc;

/// A number of slots.
pub(super) struct Slots {
    /// Each slot that is taken has a copy.
    taken: Arc<()>,
    max: usize,
}

/// One of them, until it is dropped.
pub(super) struct Slot(#[expect(dead_code, reason = "it is counted")] Arc<()>);

impl Slots {
    pub(super) fn new(max: usize) -> Self {
        Self { taken: Arc::new(()), max }
    }

    /// Takes one, where one is left.
    pub(super) fn take(&self) -> Option<Slot> {
        let slot = Slot(self.taken.clone());
        // This one's copy, too.
        (Arc::strong_count(&self.taken) <= self.max + 1).then_some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_as_were_said_and_each_comes_back() {
        let slots = Slots::new(2);
        let (first, second) = (slots.take(), slots.take());
        assert!(first.is_some() && second.is_some() && slots.take().is_none());
        drop(first);
        assert!(slots.take().is_some());
    }
}
