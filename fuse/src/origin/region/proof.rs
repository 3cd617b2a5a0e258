//! What the origin let whoever asks read himself. What a region gives out it gives to the node, whoever
//! of its pods asks for it.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::model::version::Version;
use crate::sync::unpoisoned;

/// Versions that are remembered.
const REMEMBERED: usize = 16_384;

/// What one word of the origin is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub enum ProofScope {
    /// All that is mounted: the credentials are the node's, as the region's are.
    Mount,
    /// One version: the credentials are somebody's.
    #[default]
    Version,
}

/// What the origin has let these credentials read, and when.
pub(super) struct Proofs {
    scope: ProofScope,
    lifetime: Duration,
    /// Versions are known by two hashes that nobody can foresee.
    hashers: [RandomState; 2],
    at: Mutex<LruCache<[u64; 2], Instant>>,
}

impl Proofs {
    pub(super) fn new(scope: ProofScope, lifetime: Duration) -> Self {
        let hashers = [RandomState::new(), RandomState::new()];
        Self { scope, lifetime, hashers, at: Mutex::new(LruCache::unbounded()) }
    }

    fn name(&self, key: &str, version: &Version) -> [u64; 2] {
        match self.scope {
            ProofScope::Mount => [0; 2],
            ProofScope::Version => {
                self.hashers.each_ref().map(|hasher| hasher.hash_one((key, version)))
            }
        }
    }

    /// Whether the origin let it be read not long ago.
    pub(super) fn holds(&self, key: &str, version: &Version, now: Instant) -> bool {
        let at = self.at().get(&self.name(key, version)).copied();
        at.is_some_and(|at| now < at + self.lifetime)
    }

    /// Notes that the origin let it be read, now.
    pub(super) fn note(&self, key: &str, version: &Version, now: Instant) {
        let mut at = self.at();
        at.put(self.name(key, version), now);
        if at.len() > REMEMBERED {
            at.pop_lru();
        }
    }

    fn at(&self) -> MutexGuard<'_, LruCache<[u64; 2], Instant>> {
        unpoisoned(self.at.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::version::ETag;

    #[test]
    fn a_word_is_good_for_its_scope_and_for_a_while() {
        let version = |tag| Version { etag: ETag::new(tag).unwrap(), size: 1 };
        let (now, lifetime) = (Instant::now(), Duration::from_secs(60));
        let proofs = Proofs::new(ProofScope::Version, lifetime);
        proofs.note("k", &version("a"), now);
        assert!(proofs.holds("k", &version("a"), now));
        assert!(!proofs.holds("k", &version("b"), now) && !proofs.holds("l", &version("a"), now));
        assert!(!proofs.holds("k", &version("a"), now + lifetime));
        (0..REMEMBERED + 10).for_each(|n| proofs.note(&n.to_string(), &version("a"), now));
        assert_eq!(proofs.at().len(), REMEMBERED);
        let proofs = Proofs::new(ProofScope::Mount, lifetime);
        assert!(!proofs.holds("k", &version("a"), now));
        proofs.note("k", &version("a"), now);
        assert!(proofs.holds("l", &version("b"), now));
    }
}
