//! How many Events one node may write: the API server is everybody's, and a cause that all nodes
//! share makes all of them speak at once.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

/// Events of the node at once.
const NODE_BURST: u32 = 25;
/// After these, one in such a time: ten a second.
const NODE_EVERY: Duration = Duration::from_millis(100);
/// Events about one object at once; as client-go's recorder has it.
const OBJECT_BURST: u32 = 25;
/// After these, one in such a time; as client-go's recorder has it.
const OBJECT_EVERY: Duration = Duration::from_secs(300);
/// Objects that are remembered.
const OBJECTS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// A token bucket: full at first, and one token more in each `every`.
struct Bucket {
    tokens: u32,
    burst: u32,
    every: Duration,
    /// Up to when tokens were added.
    filled: Instant,
}

impl Bucket {
    fn new(burst: u32, every: Duration, now: Instant) -> Self {
        Self { tokens: burst, burst, every, filled: now }
    }

    fn has_one(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.filled).as_nanos();
        let more = u32::try_from(since / self.every.as_nanos()).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(more).min(self.burst);
        self.filled = match self.tokens == self.burst {
            true => now,
            false => self.filled + self.every * more,
        };
        self.tokens > 0
    }
}

/// The buckets of a node, and of the objects that it speaks about.
pub(super) struct Rate {
    node: Bucket,
    objects: LruCache<String, Bucket>,
}

impl Rate {
    /// With full buckets.
    pub(super) fn new(now: Instant) -> Self {
        let node = Bucket::new(NODE_BURST, NODE_EVERY, now);
        Self { node, objects: LruCache::new(OBJECTS_MAX) }
    }

    /// Whether an Event about this object may be written; if so, it counts.
    pub(super) fn take(&mut self, object: &str, now: Instant) -> bool {
        let new = || Bucket::new(OBJECT_BURST, OBJECT_EVERY, now);
        let bucket = self.objects.get_or_insert_mut(object.to_owned(), new);
        let both = bucket.has_one(now) && self.node.has_one(now);
        if both {
            bucket.tokens -= 1;
            self.node.tokens -= 1;
        }
        both
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_a_burst_and_then_one_in_five_minutes() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        // Slowly enough for the node's own bucket.
        let mut at = start;
        let mut taken = 0;
        for _ in 0..100 {
            at += NODE_EVERY;
            taken += u32::from(rate.take("pv", at));
        }
        assert_eq!(taken, OBJECT_BURST);
        assert!(rate.take("another", at));
        at += OBJECT_EVERY;
        assert!(rate.take("pv", at));
        assert!(!rate.take("pv", at));
    }

    #[test]
    fn a_node_has_a_burst_and_then_ten_a_second() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let mut take =
            |from: u32, at| (0..100).filter(|n| rate.take(&(from + n).to_string(), at)).count();
        assert_eq!(take(0, start), 25);
        assert_eq!(take(100, start + Duration::from_secs(1)), 10);
        assert_eq!(take(200, start + Duration::from_secs(3600)), 25);
    }
}
