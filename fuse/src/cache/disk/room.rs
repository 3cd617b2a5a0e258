//! Room on a disk: set aside, and made by evicting what was not used for longest.

use std::fs;
use std::io;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::DiskCache;
use crate::cache::version::Shared;
use crate::model::version::VersionKey;

/// How often a commit is asked for because room is short.
const FLUSH_EVERY: Duration = Duration::from_millis(250);

/// Something that keeps versions in use although nobody reads them, and can let go.
pub trait Pressure: Send + Sync {
    /// Lets go of some, least recently used first; says whether there were any.
    fn relieve(&self) -> bool;
}

/// Room set aside in the cache; given back when dropped, by when what was stored is counted.
pub struct Room {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shared.space.unreserve(self.bytes);
    }
}

impl DiskCache {
    /// Makes room for `bytes`, by evicting what was not used for longest, and sets it aside
    /// while the result lives. `None`: there is no room.
    pub(in crate::cache) fn make_room(&self, bytes: u64) -> Option<Room> {
        loop {
            if self.shared.space.reserve(&self.shared.dir, bytes) {
                return Some(Room { shared: self.shared.clone(), bytes });
            }
            if bytes > self.shared.space.max_size() {
                return None;
            }
            if self.evict_one() {
                continue;
            }
            if !self.relieve() {
                return None;
            }
        }
    }

    fn evict_one(&self) -> bool {
        let mut active = self.active();
        let victim = self.recency().victim(|id| active.in_use(id));
        let Some(id) = victim else { return false };
        active.evicted.insert(id);
        drop(active);
        self.remove(id);
        self.shared.metrics.cache_evictions.inc();
        true
    }

    /// Removes a version that `active.evicted` already names.
    fn remove(&self, id: u64) {
        let row = self.index.row(id);
        let held = self.recency().remove(id).or(row.as_ref().map(|row| row.held));
        if let Some(key) = row.and_then(|row| row.version_key()) {
            self.shared.committer.removed(id, key);
        }
        match fs::remove_file(self.shared.dir.object_path(id)) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(id, %error, "evicted file stays on the disk"),
        }
        self.shared.space.subtract(held.unwrap_or(0));
        self.shared.space.look_again();
        self.note_use();
    }

    /// Asks those who keep versions in use without need: backing ids that nobody has open, then
    /// the committer, for which a version is in use until it is in the index. That costs a
    /// commit, so not again soon. Says whether a victim may be found now.
    fn relieve(&self) -> bool {
        let pressure = self.pressure.lock().unwrap_or_else(PoisonError::into_inner);
        let holders: Vec<_> = pressure.iter().filter_map(Weak::upgrade).collect();
        drop(pressure);
        let mut any = false;
        // All of them are asked, so that no mount keeps more than others.
        for holder in holders {
            any |= holder.relieve();
        }
        if any {
            return true;
        }
        {
            let mut last = self.flushed.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|at| at.elapsed() < FLUSH_EVERY) {
                return false;
            }
            *last = Some(Instant::now());
        }
        self.shared.committer.flush();
        true
    }

    /// Registers somebody to be asked when room is short.
    pub(in crate::cache) fn on_pressure(&self, holder: Weak<dyn Pressure>) {
        let mut pressure = self.pressure.lock().unwrap_or_else(PoisonError::into_inner);
        pressure.retain(|weak| weak.strong_count() > 0);
        pressure.push(holder);
    }

    /// Forgets a version that its bucket no longer has, unless it is in use.
    pub(in crate::cache) fn discard(&self, key: &VersionKey) {
        let Some((id, _)) = self.index.find(&key.to_bytes()) else { return };
        let mut active = self.active();
        if active.in_use(id) || !active.evicted.insert(id) {
            return;
        }
        drop(active);
        self.remove(id);
    }
}
