//! What the flights of one origin may have at once of what all mounts of a node share. While
//! several origins are mounted it is half of the memory and half of the requests, so that one that
//! answers slowly, or never, keeps nobody else waiting for either.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::sync::unpoisoned;

/// Unit in which memory is counted, in bytes.
const UNIT: usize = 1024;

/// The lanes of a node, one for each endpoint that is mounted.
pub(super) struct Lanes {
    lanes: Mutex<HashMap<Box<str>, Weak<Lane>>>,
    mounted: Arc<AtomicUsize>,
    memory: usize,
    gets: usize,
}

/// What one origin may have. It counts as mounted as long as somebody holds its lane.
pub struct Lane {
    mounted: Arc<AtomicUsize>,
    memory: Arc<Semaphore>,
    /// What `memory` has when nobody uses it.
    units: usize,
    gets: Arc<Semaphore>,
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
        Self { lanes: Mutex::default(), mounted: Arc::default(), memory, gets }
    }

    /// The lane of an endpoint.
    pub(super) fn of(&self, endpoint: &str) -> Arc<Lane> {
        let mut lanes = unpoisoned(self.lanes.lock());
        if let Some(lane) = lanes.get(endpoint).and_then(Weak::upgrade) {
            return lane;
        }
        lanes.retain(|_, lane| lane.strong_count() > 0);
        let units = (self.memory / 2 / UNIT).clamp(1, Semaphore::MAX_PERMITS);
        self.mounted.fetch_add(1, Ordering::Relaxed);
        let lane = Arc::new(Lane {
            mounted: self.mounted.clone(),
            memory: Arc::new(Semaphore::new(units)),
            units,
            gets: Arc::new(Semaphore::new((self.gets / 2).max(1))),
        });
        lanes.insert(endpoint.into(), Arc::downgrade(&lane));
        lane
    }
}

impl Lane {
    fn is_alone(&self) -> bool {
        self.mounted.load(Ordering::Relaxed) < 2
    }

    /// More than the lane has is all that it has, so that it does not hang.
    fn units_of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT).min(self.units)).unwrap_or(u32::MAX)
    }

    /// Waits until the origin may take so many bytes of memory.
    pub(super) async fn memory(&self, bytes: usize) -> Toll {
        if self.is_alone() {
            return Toll::default();
        }
        // It is never closed.
        Toll { _permit: self.memory.clone().acquire_many_owned(self.units_of(bytes)).await.ok() }
    }

    /// Like [`Lane::memory`], at once or not at all, and so that a quarter is left to those who
    /// wait.
    pub(super) fn spare_memory(&self, bytes: usize) -> Option<Toll> {
        if self.is_alone() {
            return Some(Toll::default());
        }
        let units = self.units_of(bytes);
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
