//! How soon a source of bytes answers, and how much may be asked of it beside another one.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::sync::unpoisoned;

/// Answers that are remembered.
const SAMPLES: usize = 64;
/// Below so many nothing is known.
const ENOUGH: usize = 16;
/// To ask another one sooner would race against ordinary noise.
const SOONEST: Duration = Duration::from_millis(20);
/// After so long one is late of which nothing is known.
const UNKNOWN: Duration = Duration::from_secs(1);
/// Of what is asked of a source, one byte in so many may be asked though another one was asked for it, too;
/// and so many bytes before it was asked for any.
const ONE_IN: u64 = 50;
const FREE: u64 = 1 << 20;

/// How one source does.
#[derive(Default)]
pub(super) struct Pace {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Times until the first byte, in a ring.
    times: Vec<Duration>,
    next: usize,
    /// Bytes that were asked of it, and of these those that another one had been asked for.
    asked: u64,
    beside: u64,
}

impl State {
    fn quantile(&self, percent: usize) -> Option<Duration> {
        if self.times.len() < ENOUGH {
            return None;
        }
        let mut sorted = self.times.clone();
        let rank = (sorted.len() * percent / 100).min(sorted.len() - 1);
        Some(*sorted.select_nth_unstable(rank).1)
    }
}

impl Pace {
    /// It took so long to answer, or was given up after that.
    pub(super) fn note(&self, first_byte: Duration) {
        let mut state = self.state();
        let at = state.next;
        match state.times.get_mut(at) {
            Some(time) => *time = first_byte,
            None => state.times.push(first_byte),
        }
        state.next = (at + 1) % SAMPLES;
    }

    /// How soon it answers; nothing where that is not known: it is to be found out.
    pub(super) fn usual(&self) -> Duration {
        self.state().quantile(50).unwrap_or_default()
    }

    /// After how long it is late.
    pub(super) fn patience(&self) -> Duration {
        self.state().quantile(95).map_or(UNKNOWN, |p95| (p95 * 3 / 2).clamp(SOONEST, UNKNOWN))
    }

    /// Takes notice that so many bytes are asked of it.
    pub(super) fn ask(&self, bytes: u64) {
        let mut state = self.state();
        state.asked = state.asked.saturating_add(bytes);
    }

    /// Whether so many bytes may be asked of it though another one is asked for them; counts them, then.
    pub(super) fn may_ask_beside(&self, bytes: u64) -> bool {
        let mut state = self.state();
        let beside = state.beside.saturating_add(bytes);
        let may = beside <= FREE.saturating_add(state.asked / ONE_IN);
        if may {
            state.beside = beside;
        }
        may
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_usual_and_what_is_late_is_seen_of_the_last_answers() {
        let (pace, ms) = (Pace::default(), Duration::from_millis);
        (1..ENOUGH).for_each(|_| pace.note(ms(100)));
        assert_eq!((pace.usual(), pace.patience()), (Duration::ZERO, UNKNOWN));
        pace.note(ms(100));
        assert_eq!((pace.usual(), pace.patience()), (ms(100), ms(150)));
        (0..SAMPLES).for_each(|n| pace.note(ms(if n % 10 == 0 { 400 } else { 2 })));
        assert_eq!((pace.usual(), pace.patience()), (ms(2), ms(600)));
        (0..SAMPLES).for_each(|_| pace.note(ms(2)));
        assert_eq!(pace.patience(), SOONEST);
    }

    #[test]
    fn beside_others_little_is_asked() {
        let pace = Pace::default();
        assert!(pace.may_ask_beside(FREE) && !pace.may_ask_beside(1));
        pace.ask(ONE_IN * 1000);
        assert!(pace.may_ask_beside(600) && !pace.may_ask_beside(600) && pace.may_ask_beside(400));
    }
}
