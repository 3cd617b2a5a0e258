//! Names that are reserved: a writer who would overwrite a file that readers hold is told ESTALE,
//! so that the kernel looks the name up and gets a new inode. Until he has it, nobody else is to
//! hold that one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::retries::Place;

/// How long a name is reserved: the writer comes at once, but for one lookup, or he was killed.
const PATIENCE: Duration = Duration::from_secs(1);

/// Until when a name is reserved for each of its writers.
type Deadlines = HashMap<Place, Vec<Instant>>;

/// The reserved names of a mount.
#[derive(Default)]
pub(super) struct Reservations {
    names: Mutex<Deadlines>,
    /// How many names there are: opens look here first.
    count: AtomicUsize,
    changed: Notify,
}

impl Reservations {
    /// Reserves a name for one more writer.
    pub(super) fn reserve(&self, name: Place) {
        let mut names = self.names();
        let now = Instant::now();
        names.retain(|_, until| {
            until.retain(|until| *until > now);
            !until.is_empty()
        });
        names.entry(name).or_default().push(now + PATIENCE);
        self.count.store(names.len(), Ordering::Release);
    }

    /// Notes that a writer has come to a name.
    pub(super) fn redeem(&self, name: impl FnOnce() -> Place) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let name = name();
        let mut names = self.names();
        if let Some(until) = names.get_mut(&name) {
            until.pop();
            if until.is_empty() {
                names.remove(&name);
            }
        }
        self.count.store(names.len(), Ordering::Release);
        drop(names);
        self.changed.notify_waiters();
    }

    /// Whether a name is reserved.
    pub(super) fn is_reserved(&self, name: impl Fn() -> Place) -> bool {
        self.patience(name).is_some()
    }

    /// Waits until a name is not reserved any more.
    pub(super) async fn until_free(&self, name: impl Fn() -> Place) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let Some(patience) = self.patience(&name) else { return };
            let _ = tokio::time::timeout(patience, changed).await;
        }
    }

    /// Lets all names be reserved for so much longer.
    #[cfg(test)]
    pub(super) fn prolong(&self, by: Duration) {
        self.names().values_mut().flatten().for_each(|until| *until += by);
    }

    /// How long to wait for the last of its writers.
    fn patience(&self, name: impl Fn() -> Place) -> Option<Duration> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let names = self.names();
        let last = names.get(&name())?.iter().max()?;
        let left = last.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    fn names(&self) -> MutexGuard<'_, Deadlines> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
