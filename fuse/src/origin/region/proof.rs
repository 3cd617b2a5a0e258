//! What the origin let whoever asks read himself. What a region gives out it gives to the node, whoever
//! of its pods asks for it.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::model::version::Version;
use crate::origin::{OriginError, SETTLING};
use crate::sync::unpoisoned;

/// Versions that are remembered. Each mount has its own, and few have so many: there is room for them as
/// they come.
const REMEMBERED: usize = 16_384;
/// How long an origin that does not answer is not asked again for what it let be read before.
const OUTAGE: Duration = Duration::from_secs(10);

/// What one word of the origin is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub enum ProofScope {
    /// All that is mounted, as long as the origin refuses nothing of it: the credentials are the node's,
    /// as the region's are.
    Mount,
    /// One version: the credentials are somebody's.
    #[default]
    Version,
}

/// What the origin has let these credentials read, and until when that counts.
pub(super) struct Proofs {
    lifetime: Duration,
    /// Versions are known by two hashes that nobody can foresee.
    hashers: [RandomState; 2],
    state: Mutex<State>,
}

struct State {
    scope: ProofScope,
    until: LruCache<[u64; 2], Instant>,
    /// From when on requests are signed with the present credentials, as far as is known.
    settled: Option<Instant>,
}

impl Proofs {
    pub(super) fn new(scope: ProofScope, lifetime: Duration) -> Self {
        let hashers = [RandomState::new(), RandomState::new()];
        let state = State { scope, until: LruCache::unbounded(), settled: None };
        Self { lifetime, hashers, state: Mutex::new(state) }
    }

    /// Whether the origin let it be read not long ago.
    pub(super) fn holds(&self, key: &str, version: &Version, now: Instant) -> bool {
        let mut state = self.state();
        let name = self.name(&state, key, version);
        state.until.get(&name).is_some_and(|until| now < *until)
    }

    /// Takes notice of what the origin said when it was asked for the version. One that does not answer
    /// takes nothing away.
    pub(super) fn note<T>(
        &self,
        key: &str,
        version: &Version,
        asked: Instant,
        answer: &Result<T, OriginError>,
    ) {
        let mut state = self.state();
        let name = self.name(&state, key, version);
        match answer {
            Ok(_) if state.settled.is_some_and(|settled| asked < settled) => {}
            Ok(_) => state.put(name, asked + self.lifetime),
            Err(error) if error.is_outage() => {}
            Err(error) => {
                state.until.pop(&name);
                if matches!(error, OriginError::Denied(_)) && !error.is_archived() {
                    // It does not allow these credentials everything.
                    state.scope = ProofScope::Version;
                }
            }
        }
    }

    /// Whether the origin, which does not answer, let it be read before: then that counts for a while
    /// more.
    pub(super) fn outlasts(&self, key: &str, version: &Version, now: Instant) -> bool {
        let mut state = self.state();
        let name = self.name(&state, key, version);
        let was_allowed = state.until.contains(&name);
        if was_allowed {
            state.put(name, now + OUTAGE);
        }
        was_allowed
    }

    /// Forgets what was said to the credentials before: others sign from now on.
    pub(super) fn forget(&self, now: Instant) {
        let mut state = self.state();
        state.until.clear();
        state.settled = Some(now + SETTLING);
    }

    fn name(&self, state: &State, key: &str, version: &Version) -> [u64; 2] {
        match state.scope {
            ProofScope::Mount => [0; 2],
            ProofScope::Version => {
                self.hashers.each_ref().map(|hasher| hasher.hash_one((key, version)))
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }
}

impl State {
    fn put(&mut self, name: [u64; 2], until: Instant) {
        self.until.put(name, until);
        if self.until.len() > REMEMBERED {
            self.until.pop_lru();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::version::ETag;

    const LIFETIME: Duration = Duration::from_secs(60);

    fn version(tag: &str) -> Version {
        Version { etag: ETag::new(tag).unwrap(), size: 1 }
    }

    fn denied() -> Result<(), OriginError> {
        Err(OriginError::Denied("AccessDenied".into()))
    }

    #[test]
    fn a_word_is_good_for_its_scope_and_for_a_while() {
        let now = Instant::now();
        let proofs = Proofs::new(ProofScope::Version, LIFETIME);
        proofs.note("k", &version("a"), now, &Ok(()));
        assert!(proofs.holds("k", &version("a"), now));
        assert!(!proofs.holds("k", &version("b"), now) && !proofs.holds("l", &version("a"), now));
        assert!(!proofs.holds("k", &version("a"), now + LIFETIME));
        for n in 0..REMEMBERED + 10 {
            proofs.note(&n.to_string(), &version("a"), now, &Ok(()));
        }
        assert_eq!(proofs.state().until.len(), REMEMBERED);
        let proofs = Proofs::new(ProofScope::Mount, LIFETIME);
        assert!(!proofs.holds("k", &version("a"), now));
        proofs.note("k", &version("a"), now, &Ok(()));
        assert!(proofs.holds("l", &version("b"), now));
    }

    #[test]
    fn a_refusal_ends_what_was_said_before_and_what_counts_for_all() {
        let now = Instant::now();
        let proofs = Proofs::new(ProofScope::Version, LIFETIME);
        for key in ["k", "l"] {
            proofs.note(key, &version("a"), now, &Ok(()));
        }
        proofs.note("k", &version("a"), now, &denied());
        assert!(!proofs.holds("k", &version("a"), now) && proofs.holds("l", &version("a"), now));
        proofs.note("l", &version("a"), now, &Err::<(), _>(OriginError::Changed));
        assert!(!proofs.holds("l", &version("a"), now));
        let proofs = Proofs::new(ProofScope::Mount, LIFETIME);
        proofs.note("k", &version("a"), now, &Ok(()));
        // In the place of an archived object nothing is given to anybody.
        let archived = Err::<(), _>(OriginError::Denied("InvalidObjectState".into()));
        proofs.note("k", &version("a"), now, &archived);
        proofs.note("k", &version("a"), now, &Ok(()));
        assert!(proofs.holds("l", &version("a"), now));
        proofs.note("k", &version("a"), now, &denied());
        proofs.note("l", &version("a"), now, &Ok(()));
        assert!(proofs.holds("l", &version("a"), now) && !proofs.holds("k", &version("a"), now));
    }

    #[test]
    fn what_was_said_to_credentials_that_were_replaced_counts_no_more() {
        let now = Instant::now();
        let proofs = Proofs::new(ProofScope::Version, LIFETIME);
        proofs.note("k", &version("a"), now, &Ok(()));
        proofs.forget(now);
        assert!(
            !proofs.holds("k", &version("a"), now) && !proofs.outlasts("k", &version("a"), now)
        );
        // It may have been said to those before.
        proofs.note("k", &version("a"), now, &Ok(()));
        proofs.note("k", &version("a"), now + SETTLING / 2, &Ok(()));
        assert!(!proofs.holds("k", &version("a"), now + SETTLING / 2));
        proofs.note("k", &version("a"), now + SETTLING, &Ok(()));
        assert!(proofs.holds("k", &version("a"), now + SETTLING));
    }

    #[test]
    fn an_origin_that_does_not_answer_takes_nothing_away_and_gives_nothing() {
        let now = Instant::now();
        let proofs = Proofs::new(ProofScope::Version, LIFETIME);
        proofs.note("k", &version("a"), now, &Ok(()));
        let late = now + LIFETIME;
        proofs.note("k", &version("a"), late, &Err::<(), _>(OriginError::TimedOut));
        assert!(!proofs.holds("k", &version("a"), late));
        assert!(proofs.outlasts("k", &version("a"), late));
        assert!(proofs.holds("k", &version("a"), late));
        assert!(!proofs.holds("k", &version("a"), late + OUTAGE));
        assert!(!proofs.outlasts("l", &version("a"), late));
    }
}
