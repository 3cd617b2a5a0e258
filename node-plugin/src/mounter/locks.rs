//! A lock for each session, held while it is mounted, shown or ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Locks by name; those that nobody holds or waits for are gone.
#[derive(Default)]
pub(super) struct Locks {
    by_name: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

/// A lock of the map's that somebody holds or waits for.
struct Entry<'a> {
    locks: &'a Locks,
    name: &'a str,
    lock: Arc<Mutex<()>>,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut all = self.locks.all();
        // The map's, and this one.
        if Arc::strong_count(&self.lock) == 2 {
            all.remove(self.name);
        }
    }
}

impl Locks {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Mutex<()>>>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does this while nobody else does anything of the same name.
    pub(super) fn hold<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let lock = self.all().entry(name.to_owned()).or_default().clone();
        // Dropped after it is let go, also by a panic.
        let entry = Entry { locks: self, name, lock };
        // One that panicked has left nothing half done that the next would not see.
        let _held = entry.lock.lock().unwrap_or_else(PoisonError::into_inner);
        work()
    }

    /// How many wait for one that is held.
    #[cfg(test)]
    pub(super) fn waiting(&self, name: &str) -> usize {
        // The map's, and the holder's.
        self.all().get(name).map_or(0, |lock| Arc::strong_count(lock).saturating_sub(2))
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time_by_name_and_nothing_is_left() {
        let (locks, inside) = (Locks::default(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        locks.hold("a", || {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        // Another name waits for nobody.
        locks.hold("a", || locks.hold("b", || assert_eq!(locks.all().len(), 2)));
        assert!(locks.all().is_empty());
        let panicked =
            std::panic::catch_unwind(AssertUnwindSafe(|| locks.hold("a", || panic!("a test's"))));
        assert!(panicked.is_err() && locks.all().is_empty());
        assert_eq!(locks.hold("a", || 1), 1);
    }
}
