//! Keys that cannot be shown: counted once each, logged once each.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};

use crate::metrics::Metrics;
use crate::model::key::BadName;
use crate::sync::unpoisoned;

/// Most keys that are remembered; beyond, a key may be counted again.
const REMEMBERED: usize = 100_000;

/// Remembers which keys were reported.
pub struct HiddenKeys {
    metrics: Arc<Metrics>,
    seen: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

impl HiddenKeys {
    /// Counts into `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, seen: Mutex::default(), hasher: RandomState::new() }
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
            tracing::warn!(key = ?key, %reason, "key cannot be shown as a file");
        }
    }

    /// Counts keys of which not even the name can be told.
    pub fn note_undecodable(&self, count: u64) {
        if count > 0 {
            self.count(BadName::NotUtf8, count);
            tracing::warn!(count, "keys that are not UTF-8 cannot be shown as files");
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
        };
        self.metrics.hidden_keys.with_label_values(&[label]).inc_by(count);
    }
}
