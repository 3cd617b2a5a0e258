//! A lock for each session, held while it is mounted, shown or ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Locks by name; those that nobody holds or waits for are gone.
#[derive(Default)]
pub(super) struct Locks {
    by_name: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

impl Locks {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Mutex<()>>>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does this while nobody else does anything of the same name.
    pub(super) fn hold<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let lock = self.all().entry(name.to_owned()).or_default().clone();
        let done = {
            // One that panicked has left nothing half done that the next would not see.
            let _held = lock.lock().unwrap_or_else(PoisonError::into_inner);
            work()
        };
        let mut all = self.all();
        // The map's, and this one.
        if Arc::strong_count(&lock) == 2 {
            all.remove(name);
        }
        done
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
    }
}
