//! The order in which versions were used, and what they weigh.

use std::collections::HashSet;

use lru::LruCache;

/// Recency of every version on disk, least recent first to go.
pub(super) struct Recency {
    order: LruCache<u64, u64>,
    /// Removed before the index was read, and not to come back with it.
    gone: HashSet<u64>,
    loaded: bool,
}

impl Recency {
    pub(super) fn new() -> Self {
        Self { order: LruCache::unbounded(), gone: HashSet::new(), loaded: false }
    }

    /// Notes a use of a version that holds `bytes`; says whether it was unknown.
    pub(super) fn touch(&mut self, id: u64, bytes: u64) -> bool {
        self.order.push(id, bytes).is_none_or(|(old, _)| old != id)
    }

    /// Takes a version out and says how many bytes it held.
    pub(super) fn remove(&mut self, id: u64) -> Option<u64> {
        if !self.loaded {
            self.gone.insert(id);
        }
        self.order.pop(&id)
    }

    /// Adds what an earlier run left, given as (id, bytes, last use), as older than all that
    /// this run used. Returns the bytes added.
    pub(super) fn load(&mut self, mut rows: Vec<(u64, u64, u64)>) -> u64 {
        rows.sort_by_key(|(_, _, last_used)| *last_used);
        let newer: Vec<(u64, u64)> = self.order.iter().rev().map(|(id, b)| (*id, *b)).collect();
        let known: HashSet<u64> = newer.iter().map(|(id, _)| *id).collect();
        self.order.clear();
        let mut added = 0;
        for (id, bytes, _) in rows {
            if !known.contains(&id) && !self.gone.contains(&id) {
                self.order.push(id, bytes);
                added += bytes;
            }
        }
        for (id, bytes) in newer {
            self.order.push(id, bytes);
        }
        self.loaded = true;
        self.gone = HashSet::new();
        added
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recent_that_is_not_in_use_goes_first() {
        let mut recency = Recency::new();
        for id in [1, 2, 3] {
            assert!(recency.touch(id, 10));
        }
        assert!(!recency.touch(1, 10));
        assert_eq!(recency.victim(|id| id == 2), Some(3));
        assert_eq!(recency.victim(|_| true), None);
    }

    #[test]
    fn what_an_earlier_run_left_is_older_and_not_counted_twice() {
        let mut recency = Recency::new();
        recency.touch(5, 10);
        recency.remove(7);
        let added = recency.load(vec![(9, 1, 200), (8, 2, 100), (5, 10, 300), (7, 50, 400)]);
        assert_eq!((added, recency.len()), (3, 3));
        assert_eq!(recency.victim(|_| false), Some(8));
        assert_eq!(recency.victim(|id| id != 5), Some(5));
    }
}
