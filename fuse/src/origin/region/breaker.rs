//! Keeps what fails out of the way until it works again.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::sync::unpoisoned;

/// Failures in a row after which nobody is sent there.
const FAILURES: u32 = 5;
/// How long it is left alone then, before one is sent there to see; twice as long after each that
/// fails, up to the last.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A circuit breaker.
#[derive(Default)]
pub(super) struct Breaker {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Failures since the last answer.
    failures: u32,
    shut: Option<Shut>,
}

struct Shut {
    until: Instant,
    pause: Duration,
    /// Whether one is on its way to see.
    probed: bool,
}

/// Leave to ask once. Dropped, it says nothing of how it was.
pub(super) struct Pass {
    breaker: Arc<Breaker>,
    is_probe: bool,
    told: bool,
}

impl Breaker {
    /// Leave to ask, unless it is shut.
    pub(super) fn enter(self: &Arc<Self>, now: Instant) -> Option<Pass> {
        let mut state = self.state();
        let is_probe = match &mut state.shut {
            None => false,
            Some(shut) if !shut.probed && now >= shut.until => {
                shut.probed = true;
                true
            }
            Some(_) => return None,
        };
        Some(Pass { breaker: self.clone(), is_probe, told: false })
    }

    /// Whether nobody is sent there, but to see.
    pub(super) fn is_shut(&self) -> bool {
        self.state().shut.is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }
}

impl Pass {
    /// It answered as it should. Returns whether it is open again for that.
    pub(super) fn answered(mut self) -> bool {
        self.told = true;
        let mut state = self.breaker.state();
        state.failures = 0;
        // Who was sent before it was shut knows nothing of now.
        self.is_probe && state.shut.take().is_some()
    }

    /// It failed. Returns whether it is shut for that.
    pub(super) fn failed(mut self, now: Instant) -> bool {
        let is_probe = self.is_probe;
        let mut state = self.count();
        let pause = match &state.shut {
            Some(shut) if is_probe => shut.pause * 2,
            None if state.failures >= FAILURES => PAUSE,
            _ => return false,
        };
        state.shut_for(pause, now)
    }

    /// It turned whoever asked away, as it will do for some time. Returns whether it is shut for that.
    pub(super) fn refused(mut self, now: Instant) -> bool {
        let is_probe = self.is_probe;
        let mut state = self.count();
        match state.shut.is_none() || is_probe {
            true => state.shut_for(PAUSE_MAX, now),
            false => false,
        }
    }

    fn count(&mut self) -> MutexGuard<'_, State> {
        self.told = true;
        let mut state = self.breaker.state();
        state.failures = state.failures.saturating_add(1);
        state
    }
}

impl State {
    /// Returns whether it was open.
    fn shut_for(&mut self, pause: Duration, now: Instant) -> bool {
        let pause = pause.min(PAUSE_MAX);
        self.shut.replace(Shut { until: now + pause, pause, probed: false }).is_none()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.is_probe
            && !self.told
            && let Some(shut) = &mut self.breaker.state().shut
        {
            shut.probed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shut(now: Instant) -> Arc<Breaker> {
        let breaker = Arc::new(Breaker::default());
        for n in 1..=FAILURES {
            assert_eq!(breaker.enter(now).unwrap().failed(now), n == FAILURES);
        }
        assert!(breaker.is_shut() && breaker.enter(now).is_none());
        breaker
    }

    #[test]
    fn failures_in_a_row_shut_it_and_one_that_is_answered_opens_it() {
        let now = Instant::now();
        let breaker = shut(now);
        let now = now + PAUSE;
        let probe = breaker.enter(now).unwrap();
        assert!(breaker.enter(now).is_none(), "a second one to see");
        assert!(!probe.failed(now));
        assert!(breaker.enter(now + PAUSE).is_none(), "it is left alone for longer");
        let now = now + 2 * PAUSE;
        drop(breaker.enter(now).unwrap());
        // Who went away has seen nothing.
        assert!(breaker.enter(now).unwrap().answered());
        assert!(!breaker.is_shut() && breaker.enter(now).is_some());
    }

    #[test]
    fn who_is_turned_away_once_does_not_come_again_soon() {
        let now = Instant::now();
        let breaker = Arc::new(Breaker::default());
        let late = breaker.enter(now).unwrap();
        assert!(breaker.enter(now).unwrap().refused(now) && breaker.is_shut());
        assert!(breaker.enter(now + PAUSE_MAX / 2).is_none());
        assert!(!late.refused(now + PAUSE_MAX / 2), "who was sent before keeps it shut");
        let now = now + PAUSE_MAX;
        assert!(!breaker.enter(now).unwrap().refused(now));
        assert!(breaker.enter(now + PAUSE_MAX / 2).is_none());
        assert!(breaker.enter(now + PAUSE_MAX).unwrap().answered() && !breaker.is_shut());
    }

    #[test]
    fn failures_with_answers_between_do_not_shut_it() {
        let now = Instant::now();
        let breaker = Arc::new(Breaker::default());
        for _ in 0..3 {
            (1..FAILURES).for_each(|_| assert!(!breaker.enter(now).unwrap().failed(now)));
            assert!(!breaker.enter(now).unwrap().answered());
        }
        assert!(!breaker.is_shut());
    }

    #[test]
    fn who_was_sent_before_it_was_shut_neither_opens_it_nor_keeps_it_shut() {
        let now = Instant::now();
        let breaker = Arc::new(Breaker::default());
        let [early, late] = [(); 2].map(|()| breaker.enter(now).unwrap());
        let failing: Vec<_> = (0..FAILURES).map(|_| breaker.enter(now).unwrap()).collect();
        for pass in failing {
            pass.failed(now);
        }
        assert!(!early.answered() && breaker.is_shut());
        assert!(!late.failed(now + PAUSE));
        assert!(breaker.enter(now + PAUSE).is_some());
    }
}
