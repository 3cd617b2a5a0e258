//! What one mount may take of a cache's disks for what it writes: half, while there are others, so
//! that nobody's files drive out all that others have cached or are writing.

use std::sync::Arc;

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The mounts of a cache.
#[derive(Default)]
pub(super) struct Shares {
    mounts: Arc<AtomicUsize>,
}

/// What the files under change of one mount have taken. It counts as a mount while it lives.
pub struct Share {
    mounts: Arc<AtomicUsize>,
    /// Bytes, by the number of the disk.
    taken: Box<[AtomicU64]>,
}

impl Shares {
    /// One mount more, of a cache with so many disks.
    pub(super) fn begin(&self, disks: usize) -> Arc<Share> {
        self.mounts.fetch_add(1, Ordering::Relaxed);
        let taken = (0..disks).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Share { mounts: self.mounts.clone(), taken })
    }

    /// Whether several mounts share the cache.
    pub(super) fn are_several(&self) -> bool {
        self.mounts.load(Ordering::Relaxed) > 1
    }
}

impl Share {
    /// Whether the mount may take `more` bytes of a disk that has `total` for all.
    pub(super) fn allows(&self, disk: u8, more: u64, total: impl FnOnce() -> u64) -> bool {
        if self.mounts.load(Ordering::Relaxed) < 2 {
            return true;
        }
        let taken = self.taken.get(usize::from(disk)).map_or(0, |of| of.load(Ordering::Relaxed));
        taken.saturating_add(more) <= total() / 2
    }

    /// Notes bytes that were taken.
    pub(super) fn take(&self, disk: u8, bytes: u64) {
        if let Some(taken) = self.taken.get(usize::from(disk)) {
            taken.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Notes bytes that were given back.
    pub(super) fn give_back(&self, disk: u8, bytes: u64) {
        if let Some(taken) = self.taken.get(usize::from(disk)) {
            taken.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.mounts.fetch_sub(1, Ordering::Relaxed);
    }
}
