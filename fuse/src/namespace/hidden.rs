//! Keys that cannot be shown: counted once each. Whoever fills a bucket chooses how many there are
//! and what they are called, so that the log has a few lines about them, and no name but at debug.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::metrics::Metrics;
use crate::model::key::BadName;
use crate::sync::unpoisoned;

/// Most keys that are remembered; beyond, a key may be counted again.
const REMEMBERED: usize = 10_000;

/// Lines that a session may log at once.
const LINES_MAX: u32 = 10;
/// How long it takes until it may log one more.
const LINE_EVERY: Duration = Duration::from_secs(60);

/// Remembers which keys were reported.
pub struct HiddenKeys {
    metrics: Arc<Metrics>,
    seen: Mutex<HashSet<u64>>,
    hasher: RandomState,
    lines: Mutex<LineBudget>,
}

/// How many lines may be logged now: [`LINES_MAX`], and one more each [`LINE_EVERY`].
struct LineBudget {
    left: u32,
    /// Up to when lines were added.
    filled: Instant,
    /// Keys that no line told of since the last one.
    untold: u64,
}

impl LineBudget {
    fn new(now: Instant) -> Self {
        Self { left: LINES_MAX, filled: now, untold: 0 }
    }

    /// Takes a line for `keys` keys, if there is one: then it says how many went untold before it.
    fn take(&mut self, keys: u64, now: Instant) -> Option<u64> {
        while self.left < LINES_MAX && now.saturating_duration_since(self.filled) >= LINE_EVERY {
            self.left += 1;
            self.filled += LINE_EVERY;
        }
        if self.left == LINES_MAX {
            self.filled = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.untold))
            }
            None => {
                self.untold = self.untold.saturating_add(keys);
                None
            }
        }
    }
}

impl HiddenKeys {
    /// Counts into `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let lines = Mutex::new(LineBudget::new(Instant::now()));
        Self { metrics, seen: Mutex::default(), hasher: RandomState::new(), lines }
    }

    /// Reports a key, once. Our own keys are nobody's loss.
    pub fn note(&self, key: &str, reason: BadName) {
        if reason == BadName::Reserved {
            return;
        }
        let fresh = {
            let mut seen = unpoisoned(self.seen.lock());
            if seen.len() >= REMEMBERED {
                seen.clear();
            }
            seen.insert(self.hasher.hash_one(key))
        };
        if fresh {
            self.count(reason, 1);
            tracing::debug!(key = ?key, %reason, "key cannot be shown as a file");
            self.tell(reason, 1);
        }
    }

    /// Counts keys of which not even the name can be told.
    pub fn note_undecodable(&self, count: u64) {
        if count > 0 {
            self.count(BadName::NotUtf8, count);
            self.tell(BadName::NotUtf8, count);
        }
    }

    /// A line for the operator, if there were not too many.
    fn tell(&self, reason: BadName, count: u64) {
        let line = unpoisoned(self.lines.lock()).take(count, Instant::now());
        if let Some(untold) = line {
            tracing::warn!(count, %reason, untold, "keys cannot be shown as files");
        }
    }

    fn count(&self, reason: BadName, count: u64) {
        let label = match reason {
            BadName::Empty => "empty-component",
            BadName::Dots => "dot-component",
            BadName::Nul => "nul",
            BadName::TooLong => "name-too-long",
            BadName::Slash | BadName::OutsidePrefix => "server-fault",
            BadName::NotUtf8 => "not-utf8",
            BadName::ShadowedByDirectory => "shadowed-by-directory",
            BadName::MarkerWithContent => "marker-with-content",
            BadName::KeyTooLong => "key-too-long",
            BadName::Reserved => "reserved",
            BadName::Size => "size",
        };
        self.metrics.hidden_keys.with_label_values(&[label]).inc_by(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_hidden_keys_are_few_however_many_keys_there_are() {
        let start = Instant::now();
        let mut lines = LineBudget::new(start);
        let told = (0..1_000_000).filter(|_| lines.take(1, start).is_some()).count();
        assert_eq!(told, LINES_MAX as usize);
        assert_eq!(lines.take(5, start + LINE_EVERY / 2), None);
        let untold = 1_000_000 - u64::from(LINES_MAX) + 5;
        assert_eq!(lines.take(1, start + LINE_EVERY), Some(untold));
        assert_eq!(lines.take(1, start + LINE_EVERY), None);
        let later = start + LINE_EVERY * 1000;
        let told = (0..1_000).filter(|_| lines.take(1, later).is_some()).count();
        assert_eq!(told, LINES_MAX as usize, "what was not used does not pile up");
    }

    #[test]
    fn every_hidden_key_is_counted_also_where_no_line_tells_of_it() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let hidden = HiddenKeys::new(metrics.clone());
        for n in 0..1000 {
            hidden.note(&format!("a//{n}"), BadName::Empty);
        }
        let counted = metrics.hidden_keys.with_label_values(&["empty-component"]).get();
        assert_eq!(counted, 1000);
        let lines = unpoisoned(hidden.lines.lock());
        assert!(lines.untold >= 900, "{} of 1000 keys without a line", lines.untold);
    }
}
