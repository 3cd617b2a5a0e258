//! What flights may have at once of what all mounts of a node share, so that origins that answer
//! slowly, or never, keep nobody else waiting for it. Those of one origin have half of the memory and
//! half of the requests while several are mounted. Those that have waited for a second for their
//! origin's next byte have three quarters of either, all origins together, until their GET ends: one
//! that finds no room among them gives up what it holds, and goes on once there is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::sync::unpoisoned;

/// Unit in which memory is counted, in bytes.
const UNIT: usize = 1024;
/// How long a flight waits for its origin before it counts as slow.
const PROMPT: Duration = Duration::from_secs(1);

/// The lanes of a node, one for each endpoint that is mounted.
pub(super) struct Lanes {
    lanes: Mutex<HashMap<Box<str>, Weak<Lane>>>,
    mounted: Arc<AtomicUsize>,
    memory: usize,
    gets: usize,
    slow: Slow,
}

/// What those that wait for long may have.
struct Slow {
    memory: Arc<Semaphore>,
    /// What `memory` has when nobody uses it.
    units: usize,
    gets: Arc<Semaphore>,
}

/// A place among those that wait for long; given back when dropped.
pub(super) struct SlowPlace {
    _memory: OwnedSemaphorePermit,
    _get: OwnedSemaphorePermit,
}

/// What one origin may have. It counts as mounted as long as somebody holds its lane.
pub struct Lane {
    mounted: Arc<AtomicUsize>,
    memory: Arc<Semaphore>,
    /// What `memory` has when nobody uses it.
    units: usize,
    gets: Arc<Semaphore>,
    /// Held by the one who is next to have a place among those that wait for long.
    turn: tokio::sync::Mutex<()>,
}

/// A part of what an origin may have; given back when dropped. Nothing is counted while no other
/// origin is mounted.
#[derive(Default)]
pub(super) struct Toll {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Lanes {
    /// Over so many bytes of memory, and requests at once.
    pub(super) fn new(memory: u64, gets: usize) -> Self {
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        let units = units_of(memory / 4 * 3);
        let slow = Slow {
            memory: Arc::new(Semaphore::new(units)),
            units,
            gets: Arc::new(Semaphore::new((gets / 4 * 3).max(1))),
        };
        Self { lanes: Mutex::default(), mounted: Arc::default(), memory, gets, slow }
    }

    /// Waits for an origin. Where that takes long it is in a place among those that do so for long,
    /// which the flight keeps from then on. `None`: there is none for one with so many bytes of memory.
    pub(super) async fn patiently<T>(
        &self,
        lane: &Lane,
        place: &mut Option<SlowPlace>,
        bytes: usize,
        wait: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::pin!(wait);
        while place.is_none() {
            match tokio::time::timeout(PROMPT, &mut wait).await {
                Ok(done) => return Some(done),
                // Whoever is alone keeps nobody waiting, until somebody comes.
                Err(_) if lane.is_alone() => {}
                Err(_) => *place = Some(self.slow.try_place(bytes)?),
            }
        }
        Some(wait.await)
    }

    /// Waits for a place among those that wait for long; of each origin one waits, so that none waits
    /// behind all of another's.
    pub(super) async fn slow_place(&self, lane: &Lane, bytes: usize) -> Option<SlowPlace> {
        let _turn = lane.turn.lock().await;
        self.slow.place(bytes).await
    }

    /// The lane of an endpoint.
    pub(super) fn of(&self, endpoint: &str) -> Arc<Lane> {
        let mut lanes = unpoisoned(self.lanes.lock());
        if let Some(lane) = lanes.get(endpoint).and_then(Weak::upgrade) {
            return lane;
        }
        lanes.retain(|_, lane| lane.strong_count() > 0);
        let units = units_of(self.memory / 2);
        self.mounted.fetch_add(1, Ordering::Relaxed);
        let lane = Arc::new(Lane {
            mounted: self.mounted.clone(),
            memory: Arc::new(Semaphore::new(units)),
            units,
            gets: Arc::new(Semaphore::new((self.gets / 2).max(1))),
            turn: tokio::sync::Mutex::default(),
        });
        lanes.insert(endpoint.into(), Arc::downgrade(&lane));
        lane
    }
}

/// So many bytes as a semaphore counts them.
fn units_of(bytes: usize) -> usize {
    (bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS)
}

/// As many of a semaphore's `units` as so many bytes are. More than there is is all there is, so that
/// it does not hang.
fn part_of(units: usize, bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT).min(units)).unwrap_or(u32::MAX)
}

impl Slow {
    fn try_place(&self, bytes: usize) -> Option<SlowPlace> {
        let memory = self.memory.clone().try_acquire_many_owned(part_of(self.units, bytes)).ok()?;
        let get = self.gets.clone().try_acquire_owned().ok()?;
        Some(SlowPlace { _memory: memory, _get: get })
    }

    async fn place(&self, bytes: usize) -> Option<SlowPlace> {
        // They are never closed.
        let memory =
            self.memory.clone().acquire_many_owned(part_of(self.units, bytes)).await.ok()?;
        let get = self.gets.clone().acquire_owned().await.ok()?;
        Some(SlowPlace { _memory: memory, _get: get })
    }
}

impl Lane {
    fn is_alone(&self) -> bool {
        self.mounted.load(Ordering::Relaxed) < 2
    }

    /// Waits until the origin may take so many bytes of memory.
    pub(super) async fn memory(&self, bytes: usize) -> Toll {
        if self.is_alone() {
            return Toll::default();
        }
        // It is never closed.
        Toll {
            _permit: self.memory.clone().acquire_many_owned(part_of(self.units, bytes)).await.ok(),
        }
    }

    /// Like [`Lane::memory`], at once or not at all, and so that a quarter is left to those who
    /// wait.
    pub(super) fn spare_memory(&self, bytes: usize) -> Option<Toll> {
        if self.is_alone() {
            return Some(Toll::default());
        }
        let units = part_of(self.units, bytes);
        let permit = self.memory.clone().try_acquire_many_owned(units).ok()?;
        let is_spare = self.memory.available_permits() >= self.units / 4;
        is_spare.then_some(Toll { _permit: Some(permit) })
    }

    /// Waits until the origin may be sent one more request.
    pub(super) async fn get(&self) -> Toll {
        if self.is_alone() {
            return Toll::default();
        }
        // It is never closed.
        Toll { _permit: self.gets.clone().acquire_owned().await.ok() }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.mounted.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    #[test]
    fn an_origin_beside_others_gets_half_and_alone_all() {
        let lanes = Lanes::new(64 * UNIT as u64, 4);
        let one = lanes.of("http://one");
        let many: Vec<_> = (0..100).map(|_| one.memory(UNIT).now_or_never()).collect();
        assert!(many.iter().all(Option::is_some), "alone");
        let two = lanes.of("http://two");
        assert!(Arc::ptr_eq(&one, &lanes.of("http://one")));
        let all = one.memory(32 * UNIT).now_or_never().unwrap();
        assert!(one.memory(1).now_or_never().is_none());
        assert!(two.memory(1).now_or_never().is_some());
        drop(all);
        // More than there is does not hang.
        assert!(one.memory(usize::MAX).now_or_never().is_some());
        let gets: Vec<_> = (0..3).filter_map(|_| one.get().now_or_never()).collect();
        assert_eq!(gets.len(), 2);
        assert!(two.get().now_or_never().is_some());
        drop(two);
        assert!(one.get().now_or_never().is_some(), "alone again");
    }

    #[tokio::test]
    async fn three_quarters_are_for_those_who_wait_for_long() {
        let lanes = Lanes::new(64 * UNIT as u64, 8);
        let (lane, _other) = (lanes.of("http://one"), lanes.of("http://two"));
        let never = || {
            Box::pin(async {
                let never = std::future::pending::<()>();
                lanes.patiently(&lane, &mut None, 8 * UNIT, never).await
            })
        };
        let mut waiting: Vec<_> = (0..6).map(|_| never()).collect();
        let all = join_all(&mut waiting);
        assert!(tokio::time::timeout(2 * PROMPT, all).await.is_err(), "there are places for six");
        assert_eq!(never().await, None, "there is none for a seventh");
        let mut place = Box::pin(lanes.slow_place(&lane, 8 * UNIT));
        assert!(place.as_mut().now_or_never().is_none());
        waiting.pop();
        let mut place = place.await;
        for _ in 0..2 {
            let late = tokio::time::sleep(2 * PROMPT);
            assert_eq!(lanes.patiently(&lane, &mut place, 8 * UNIT, late).await, Some(()));
            assert_eq!(never().await, None, "it is kept until the GET ends");
        }
        drop(place);
        assert!(lanes.slow_place(&lane, 8 * UNIT).now_or_never().is_some(), "it is given up");
    }

    #[test]
    fn a_quarter_is_left_to_those_who_wait() {
        let lanes = Lanes::new(64 * UNIT as u64, 4);
        let (one, _two) = (lanes.of("http://one"), lanes.of("http://two"));
        let spare = one.spare_memory(24 * UNIT).unwrap();
        assert!(one.spare_memory(1).is_none());
        assert!(one.memory(8 * UNIT).now_or_never().is_some());
        drop(spare);
        assert!(one.spare_memory(1).is_some());
    }
}
