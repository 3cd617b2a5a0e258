//! What mounts may take of a cache's disks for what they write, so that nobody's files drive out all
//! that others have cached or are writing: while there are several, one has at most half of a disk,
//! and all together three quarters; of the last quarter each has a little, so that who writes much by
//! several mounts leaves others something to write to.

use std::sync::Arc;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard, unpoisoned};

/// Of the last quarter of a disk a mount has this part of the disk.
const LITTLE: u64 = 16;

/// The mounts of a cache.
#[derive(Clone)]
pub(super) struct Shares {
    mounts: Arc<AtomicUsize>,
    /// Bytes that all of them have taken, by the number of the disk.
    taken: Arc<[Mutex<u64>]>,
}

/// What the files under change of one mount have taken. It counts as a mount while it lives.
pub struct Share {
    all: Shares,
    /// Bytes, by the number of the disk. Locked with those of all.
    taken: Box<[Mutex<u64>]>,
}

impl Shares {
    /// No mount yet, of a cache whose disks have numbers below this.
    pub(super) fn new(disks: usize) -> Self {
        Self { mounts: Arc::default(), taken: nothing(disks) }
    }

    /// One mount more.
    pub(super) fn begin(&self) -> Arc<Share> {
        self.mounts.fetch_add(1, Ordering::Relaxed);
        Arc::new(Share { all: self.clone(), taken: nothing(self.taken.len()) })
    }

    /// Whether several mounts share the cache.
    pub(super) fn are_several(&self) -> bool {
        self.mounts.load(Ordering::Relaxed) > 1
    }
}

fn nothing<A: FromIterator<Mutex<u64>>>(disks: usize) -> A {
    (0..disks).map(|_| Mutex::new(0)).collect()
}

impl Share {
    /// Whether the mount may take `more` bytes of a disk that has `total` for all.
    pub(super) fn allows(&self, disk: u8, more: u64, total: u64) -> bool {
        self.look(disk).is_none_or(|taken| self.would_allow(&taken, more, total))
    }

    /// Takes `more` bytes of a disk that has `total` for all, if the mount may have them.
    pub(super) fn take(&self, disk: u8, more: u64, total: u64) -> bool {
        let Some(mut taken) = self.look(disk) else { return true };
        let may = self.would_allow(&taken, more, total);
        if may {
            taken.add(more);
        }
        may
    }

    /// Takes bytes that it has been given beyond what it asked for.
    pub(super) fn take_given(&self, disk: u8, bytes: u64) {
        if let Some(mut taken) = self.look(disk) {
            taken.add(bytes);
        }
    }

    /// Notes bytes that were given back.
    pub(super) fn give_back(&self, disk: u8, bytes: u64) {
        if let Some(mut taken) = self.look(disk) {
            *taken.own = taken.own.saturating_sub(bytes);
            *taken.all = taken.all.saturating_sub(bytes);
        }
    }

    fn would_allow(&self, taken: &Taken<'_>, more: u64, total: u64) -> bool {
        let own = taken.own.saturating_add(more);
        let all = taken.all.saturating_add(more);
        !self.all.are_several()
            || own <= total / 2 && (all <= total / 4 * 3 || own <= total / LITTLE)
    }

    /// `None` for a disk that the cache does not have.
    fn look(&self, disk: u8) -> Option<Taken<'_>> {
        let disk = usize::from(disk);
        let all = unpoisoned(self.all.taken.get(disk)?.lock());
        Some(Taken { all, own: unpoisoned(self.taken.get(disk)?.lock()) })
    }
}

/// What is taken of a disk, by all and by one.
struct Taken<'a> {
    all: MutexGuard<'a, u64>,
    own: MutexGuard<'a, u64>,
}

impl Taken<'_> {
    fn add(&mut self, bytes: u64) {
        *self.own += bytes;
        *self.all += bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.mounts.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_mounts_of_one_tenant_leave_others_something_to_write_to() {
        let shares = Shares::new(1);
        let (one, two, other) = (shares.begin(), shares.begin(), shares.begin());
        assert!(one.take(0, 50, 100) && !one.take(0, 1, 100));
        assert!(two.take(0, 25, 100) && !two.take(0, 1, 100));
        assert!(other.take(0, 6, 100) && !other.take(0, 1, 100));
        two.give_back(0, 10);
        assert!(other.take(0, 4, 100));
    }

    #[test]
    fn who_is_alone_has_all_and_what_he_has_counts_when_others_come() {
        let shares = Shares::new(2);
        let one = shares.begin();
        assert!(one.take(1, 90, 100));
        let other = shares.begin();
        assert!(!one.take(1, 1, 100) && !other.take(1, 7, 100) && other.take(1, 6, 100));
        assert!(other.take(0, 50, 100), "another disk");
        drop(other);
        assert!(one.take(1, 4, 100));
    }

    #[test]
    fn of_what_is_left_only_one_has_the_last() {
        let shares = Shares::new(1);
        let mounts: Vec<_> = (0..4).map(|_| shares.begin()).collect();
        std::thread::scope(|scope| {
            for mount in &mounts {
                scope.spawn(|| (0..100).for_each(|_| _ = mount.take(0, 10, 1000)));
            }
        });
        let all = *unpoisoned(shares.taken[0].lock());
        assert!(all <= 750 + 4 * 60, "{all}");
    }
}
