//! What a region was late with: it may be fetching it, as AIStore fetches all of an object before the
//! first byte of a range of it.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::sync::unpoisoned;

/// How long a region is not asked for it.
const PAUSE: Duration = Duration::from_secs(60);
/// Keys that are remembered.
const REMEMBERED: usize = 4096;

/// Keys that a region is not asked for, for a while.
pub(super) struct LateKeys {
    since: Mutex<LruCache<Box<str>, Instant>>,
}

impl Default for LateKeys {
    fn default() -> Self {
        Self { since: Mutex::new(LruCache::unbounded()) }
    }
}

impl LateKeys {
    /// Takes notice of one.
    pub(super) fn note(&self, key: &str, now: Instant) {
        let mut since = self.since();
        since.put(key.into(), now);
        if since.len() > REMEMBERED {
            since.pop_lru();
        }
    }

    /// Whether the region was late with it not long ago.
    pub(super) fn has(&self, key: &str, now: Instant) -> bool {
        let mut since = self.since();
        let is_late = since.peek(key).is_some_and(|at| now < *at + PAUSE);
        if !is_late {
            since.pop(key);
        }
        is_late
    }

    fn since(&self) -> MutexGuard<'_, LruCache<Box<str>, Instant>> {
        unpoisoned(self.since.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_late_is_not_asked_for_for_a_while_and_no_more_of_it_is_kept_than_is_useful() {
        let (late, now) = (LateKeys::default(), Instant::now());
        assert!(!late.has("k", now));
        late.note("k", now);
        assert!(late.has("k", now) && !late.has("l", now));
        assert!(!late.has("k", now + PAUSE));
        for n in 0..REMEMBERED + 10 {
            late.note(&n.to_string(), now);
        }
        assert_eq!(late.since().len(), REMEMBERED);
        assert!(!late.has("0", now) && late.has(&REMEMBERED.to_string(), now));
    }
}
