//! How many parts are under way: as many as make the total faster.
//!
//! A few parts at once fill a link that one cannot; more of them only make each slower, so that
//! all are in danger when the link falters. So some are under way from the start, and one more
//! as long as that carried measurably more bytes a second.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Parts under way at least.
pub const SLOTS_MIN: usize = 2;
/// Parts under way before anything is known of the link: what a fast one needs from the start.
const SLOTS_START: usize = 4;
/// Most parts under way.
pub const SLOTS_MAX: usize = 8;
/// One more part has to make the total faster by this factor to be worth it.
const GAIN: f64 = 1.1;
/// A rate is measured over this long at least: shorter ones are noise.
const WINDOW_MIN: Duration = Duration::from_millis(200);

/// Hands out slots for parts, as many as the measured rate asks for.
pub struct Pace {
    state: Mutex<State>,
    freed: Notify,
}

struct State {
    width: usize,
    in_use: usize,
    /// How many ask for a slot and have none.
    waiting: usize,
    window: Window,
    /// Rate with one slot less, in bytes a second, once it was measured.
    before: Option<f64>,
    /// A width that was tried and gave nothing is not tried again before the rate changes.
    settled: Option<f64>,
}

/// What was carried since a moment, with the width unchanged and more slots asked for.
struct Window {
    since: Instant,
    bytes: u64,
    parts: usize,
}

/// The right to have one part under way; given back when dropped.
pub struct Slot<'a> {
    pace: &'a Pace,
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}

impl Pace {
    /// With nothing known.
    pub fn new() -> Self {
        Self { state: Mutex::new(State::new()), freed: Notify::new() }
    }

    /// Waits for a slot. Dropping the future gives up the wait.
    pub async fn slot(&self) -> Slot<'_> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Heard from here on, so that no slot that is freed meanwhile is missed.
            freed.as_mut().enable();
            if self.state().take(Instant::now()) {
                return Slot { pace: self };
            }
            let _wait = Wait::begin(self);
            freed.await;
        }
    }

    /// How many parts may be under way now.
    pub fn width(&self) -> usize {
        self.state().width
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits for a slot, counted.
struct Wait<'a>(&'a Pace);

impl<'a> Wait<'a> {
    fn begin(pace: &'a Pace) -> Self {
        pace.state().waiting += 1;
        Self(pace)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

impl Slot<'_> {
    /// Gives the slot back after its part of `bytes` bytes was stored. A slot that is dropped
    /// otherwise tells nothing of the rate.
    pub fn done(self, bytes: u64) {
        self.pace.state().carried(bytes, Instant::now());
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.pace.state().in_use -= 1;
        self.pace.freed.notify_waiters();
    }
}

impl Window {
    fn begin(now: Instant) -> Self {
        Self { since: now, bytes: 0, parts: 0 }
    }
}

impl State {
    fn new() -> Self {
        let window = Window::begin(Instant::now());
        Self { width: SLOTS_START, in_use: 0, waiting: 0, window, before: None, settled: None }
    }

    fn take(&mut self, now: Instant) -> bool {
        if self.in_use >= self.width {
            return false;
        }
        // A time when nothing was to be sent says nothing of the link.
        if self.in_use == 0 && self.waiting == 0 {
            self.window = Window::begin(now);
        }
        self.in_use += 1;
        true
    }

    fn carried(&mut self, bytes: u64, now: Instant) {
        if self.waiting == 0 {
            // No more slots were asked for: the rate is the writer's, not the link's.
            self.window = Window::begin(now);
            return;
        }
        self.window.bytes += bytes;
        self.window.parts += 1;
        let elapsed = now.saturating_duration_since(self.window.since);
        if self.window.parts < self.width || elapsed < WINDOW_MIN {
            return;
        }
        let rate = self.window.bytes as f64 / elapsed.as_secs_f64();
        self.window = Window::begin(now);
        self.adjust(rate);
    }

    fn adjust(&mut self, rate: f64) {
        if let Some(settled) = self.settled {
            if rate < settled / GAIN && self.width > SLOTS_MIN {
                // Slower than when it was settled: fewer parts may do as well.
                self.width -= 1;
                self.settled = Some(rate);
            } else if rate > settled * GAIN {
                self.settled = None;
                self.before = None;
            }
            return;
        }
        match self.before {
            Some(before) if rate < before * GAIN => {
                // The last one gave nothing.
                self.width = (self.width - 1).max(SLOTS_MIN);
                self.settled = Some(rate.max(before));
            }
            _ if self.width == SLOTS_MAX => self.settled = Some(rate),
            _ => {
                self.before = Some(rate);
                self.width += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: u64 = 8 << 20;

    /// A writer with `demand` parts to send at any time, over a link that carries `one` bytes a
    /// second in one part and `all` in total.
    struct Link {
        state: State,
        now: Instant,
        demand: usize,
    }

    impl Link {
        fn new(demand: usize) -> Self {
            Self { state: State::new(), now: Instant::now(), demand }
        }

        /// Lets some rounds of parts pass; returns the width that comes of it.
        fn carry(&mut self, one: f64, all: f64, rounds: usize) -> usize {
            for _ in 0..rounds {
                let mut under_way = 0;
                while under_way < self.demand && self.state.take(self.now) {
                    under_way += 1;
                }
                self.state.waiting = self.demand - under_way;
                let total = all.min(one * under_way as f64);
                let bytes = PART * under_way as u64;
                self.now += Duration::from_secs_f64(bytes as f64 / total);
                for _ in 0..under_way {
                    self.state.carried(PART, self.now);
                    self.state.in_use -= 1;
                }
            }
            self.state.width
        }
    }

    #[test]
    fn a_link_that_one_part_fills_gets_no_more_than_it_needs() {
        assert_eq!(Link::new(100).carry(1e6, 1e6, 50), SLOTS_START);
    }

    #[test]
    fn parts_are_added_as_long_as_the_total_grows_and_no_further() {
        assert_eq!(Link::new(100).carry(10e6, 45e6, 50), 5);
        assert_eq!(Link::new(100).carry(10e6, 1e9, 50), SLOTS_MAX);
    }

    #[test]
    fn a_writer_who_is_slower_than_the_link_adds_none() {
        assert_eq!(Link::new(1).carry(10e6, 1e9, 50), SLOTS_START);
        assert_eq!(Link::new(SLOTS_START).carry(10e6, 1e9, 50), SLOTS_START);
    }

    #[test]
    fn a_link_that_becomes_slower_or_faster_is_followed() {
        let mut link = Link::new(100);
        assert_eq!(link.carry(10e6, 1e9, 50), SLOTS_MAX);
        assert_eq!(link.carry(10e6, 10e6, 50), SLOTS_MAX - 1);
        assert_eq!(link.carry(1e6, 1e6, 100), SLOTS_MAX - 2);
        assert_eq!(link.carry(10e6, 1e9, 100), SLOTS_MAX);
    }

    #[tokio::test]
    async fn a_slot_is_free_again_when_its_part_is_done_or_dropped() {
        let pace = Pace::new();
        let mut slots = Vec::new();
        for _ in 0..SLOTS_START {
            slots.push(pace.slot().await);
        }
        let more = pace.slot();
        tokio::pin!(more);
        tokio::select! {
            biased;
            _ = &mut more => panic!("more slots than there are"),
            () = tokio::task::yield_now() => {}
        }
        slots.remove(0).done(PART);
        let more = tokio::time::timeout(Duration::from_secs(60), more).await.unwrap();
        drop((slots, more));
        assert_eq!(pace.state().in_use, 0);
        assert_eq!(pace.state().waiting, 0);
        let given_up = pace.slot();
        drop(given_up);
        let (_a, _b) = (pace.slot().await, pace.slot().await);
    }
}
