//! The order in which versions were used, and what they weigh.

use std::collections::HashSet;

use lru::LruCache;

/// Recency of every version on disk, least recent first to go, and the sum of what they hold.
///
/// A weight changes by differences, which two threads may bring in either order: hence one may be
/// below zero for a moment.
pub(super) struct Recency {
    order: LruCache<u64, i64>,
    /// Sum of the weights in `order`.
    total: i64,
    /// Removed before the index was read, and not to come back with it.
    gone: HashSet<u64>,
    loaded: bool,
}

impl Recency {
    pub(super) fn new() -> Self {
        Self { order: LruCache::unbounded(), total: 0, gone: HashSet::new(), loaded: false }
    }

    /// Bytes that all versions hold together.
    pub(super) fn total(&self) -> u64 {
        u64::try_from(self.total).unwrap_or(0)
    }

    /// Notes a use of a version.
    pub(super) fn touch(&mut self, id: u64) {
        self.order.promote(&id);
    }

    /// Notes a use of a version that holds `bytes` more, or less, than before.
    pub(super) fn change(&mut self, id: u64, bytes: i64) {
        let before = self.order.get(&id).copied().unwrap_or(0);
        self.set(id, before + bytes);
    }

    /// Notes what a version holds that was just taken into use, and by nobody else.
    pub(super) fn begin(&mut self, id: u64, bytes: u64) {
        if bytes > 0 || self.order.contains(&id) {
            self.set(id, weight(bytes));
        }
    }

    fn set(&mut self, id: u64, weight: i64) {
        let before = self.order.put(id, weight).unwrap_or(0);
        self.total += weight - before;
    }

    /// Takes a version out; what it held is counted no more.
    pub(super) fn remove(&mut self, id: u64) {
        if !self.loaded {
            self.gone.insert(id);
        }
        self.total -= self.order.pop(&id).unwrap_or(0);
    }

    /// Adds what an earlier run left, given as (id, bytes, last use), as older than all that
    /// this run used.
    pub(super) fn load(&mut self, mut rows: Vec<(u64, u64, u64)>) {
        rows.sort_by_key(|(_, _, last_used)| *last_used);
        let newer: Vec<(u64, i64)> = self.order.iter().rev().map(|(id, w)| (*id, *w)).collect();
        let known: HashSet<u64> = newer.iter().map(|(id, _)| *id).collect();
        let older = rows
            .into_iter()
            .filter(|(id, _, _)| !known.contains(id) && !self.gone.contains(id))
            .map(|(id, bytes, _)| (id, weight(bytes)));
        let all: Vec<(u64, i64)> = older.chain(newer).collect();
        self.order.clear();
        self.total = 0;
        all.into_iter().for_each(|(id, weight)| self.set(id, weight));
        self.loaded = true;
        self.gone = HashSet::new();
    }

    /// The least recent version for which `in_use` says false; those in use count as just used.
    pub(super) fn victim(&mut self, in_use: impl Fn(u64) -> bool) -> Option<u64> {
        for _ in 0..self.order.len() {
            let (id, _) = self.order.peek_lru()?;
            let id = *id;
            if !in_use(id) {
                return Some(id);
            }
            self.order.promote(&id);
        }
        None
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}

fn weight(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recent_that_is_not_in_use_goes_first() {
        let mut recency = Recency::new();
        for id in [1, 2, 3] {
            recency.change(id, 10);
        }
        recency.touch(1);
        assert_eq!(recency.victim(|id| id == 2), Some(3));
        assert_eq!(recency.victim(|_| true), None);
    }

    #[test]
    fn what_an_earlier_run_left_is_older_and_not_counted_twice() {
        let mut recency = Recency::new();
        recency.begin(5, 10);
        recency.remove(7);
        recency.load(vec![(9, 1, 200), (8, 2, 100), (5, 10, 300), (7, 50, 400)]);
        assert_eq!((recency.total(), recency.len()), (13, 3));
        assert_eq!(recency.victim(|_| false), Some(8));
        assert_eq!(recency.victim(|id| id != 5), Some(5));
    }

    #[test]
    fn differences_add_up_in_whatever_order_they_come() {
        let mut recency = Recency::new();
        recency.change(1, -10);
        assert_eq!(recency.total(), 0);
        recency.change(1, 30);
        recency.begin(2, 5);
        assert_eq!(recency.total(), 25);
        recency.begin(2, 7);
        recency.begin(3, 0);
        recency.remove(1);
        recency.remove(4);
        assert_eq!((recency.total(), recency.len()), (7, 1));
    }
}
