//! What the kernel's directory cache can hold.
//!
//! The kernel fills the cache of a directory from whichever of its open descriptors is read first,
//! and reads it for all of them; it is emptied by an open that does not say keep
//! (fs/fuse/readdir.c, fs/fuse/dir.c). A descriptor goes on with the names of its own open. So the
//! cache is of use to descriptors that have the same names only: while one with other names is
//! open, a new one is read past the cache.

use std::sync::Arc;

use super::{Dir, DirEntry};
use crate::namespace::memory::{Account, SNAPSHOT_BYTES};

/// Names of a directory at one time.
pub struct Names {
    entries: Vec<DirEntry>,
    _account: Account,
}

impl Names {
    /// They count for as long as they live.
    pub(super) fn new(entries: Vec<DirEntry>, mut account: Account) -> Self {
        account.set(entries.len() as u64 * SNAPSHOT_BYTES);
        Self { entries, _account: account }
    }
}

/// Names that several look at.
pub type Snapshot = Arc<Names>;

/// What an open descriptor of a directory has to do with the kernel's cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheUse {
    /// Reads what is there, or fills it.
    Keep,
    /// Empties it, and fills it.
    Refill,
    /// Neither reads nor fills it.
    Bypass,
}

/// The cache of one directory.
#[derive(Default)]
pub(super) struct KernelCache {
    /// The only names that it can hold.
    names: Option<Snapshot>,
    /// Whether it was emptied since these names are the only ones. An open empties it after our
    /// answer: only what comes next from that descriptor tells that it is done.
    emptied: bool,
    /// Descriptors that may fill it: all have these names.
    fillers: usize,
}

impl KernelCache {
    fn open(&mut self, names: &Snapshot) -> CacheUse {
        let same = |n: &Snapshot| Arc::ptr_eq(n, names) || n.entries == names.entries;
        let same = self.names.as_ref().is_some_and(same);
        if !same && self.fillers > 0 {
            return CacheUse::Bypass;
        }
        if !same {
            self.names = Some(names.clone());
            self.emptied = false;
        }
        self.fillers += 1;
        if self.emptied { CacheUse::Keep } else { CacheUse::Refill }
    }

    /// Lets go of the names, unless a descriptor holds them anyway.
    pub(super) fn forget(&mut self) {
        if self.fillers == 0 {
            *self = Self::default();
        }
    }

    /// Notes a request that came through a descriptor that is open.
    fn used(&mut self, with: CacheUse) {
        if with == CacheUse::Refill {
            self.emptied = true;
        }
    }

    fn close(&mut self, with: CacheUse) {
        self.used(with);
        if with != CacheUse::Bypass {
            self.fillers = self.fillers.saturating_sub(1);
        }
    }
}

/// An open descriptor of a directory, with the names as they were when it was opened. Closed when
/// dropped.
pub struct DirView {
    dir: Arc<Dir>,
    names: Snapshot,
    cache_use: CacheUse,
}

impl DirView {
    /// Opens a view of these names.
    pub fn open(dir: Arc<Dir>, names: Snapshot) -> Self {
        let cache_use = dir.state().kernel_cache.open(&names);
        Self { dir, names, cache_use }
    }

    /// The directory.
    pub fn dir(&self) -> &Arc<Dir> {
        &self.dir
    }

    /// Its names, of which the kernel is about to be told through this descriptor.
    pub fn read(&self) -> &[DirEntry] {
        self.dir.state().kernel_cache.used(self.cache_use);
        &self.names.entries
    }

    /// What it has to do with the kernel's cache.
    pub fn cache_use(&self) -> CacheUse {
        self.cache_use
    }
}

impl Drop for DirView {
    fn drop(&mut self) {
        self.dir.state().kernel_cache.close(self.cache_use);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::memory::NameMemory;

    fn names(names: &[&str]) -> Snapshot {
        let entry = |name: &&str| DirEntry { name: (*name).into(), is_dir: false };
        Arc::new(Names::new(names.iter().map(entry).collect(), NameMemory::new(0).account()))
    }

    #[test]
    fn the_cache_is_kept_once_it_can_hold_nothing_but_these_names() {
        let mut cache = KernelCache::default();
        let old = names(&["a"]);
        assert_eq!(cache.open(&old), CacheUse::Refill);
        // The first one's open may not have emptied the cache yet.
        assert_eq!(cache.open(&old), CacheUse::Refill);
        cache.used(CacheUse::Refill);
        assert_eq!(cache.open(&names(&["a"])), CacheUse::Keep);
    }

    #[test]
    fn while_a_descriptor_with_other_names_may_fill_the_cache_it_is_read_past() {
        let mut cache = KernelCache::default();
        let (old, new) = (names(&["a"]), names(&["a", "z"]));
        assert_eq!(cache.open(&old), CacheUse::Refill);
        assert_eq!(cache.open(&new), CacheUse::Bypass);
        cache.close(CacheUse::Bypass);
        assert_eq!(cache.open(&new), CacheUse::Bypass, "the old one is still open");
        // The old names are what it can hold, and they are still somebody's.
        cache.used(CacheUse::Refill);
        assert_eq!(cache.open(&old), CacheUse::Keep);
        cache.close(CacheUse::Keep);
        cache.close(CacheUse::Refill);
        assert_eq!(cache.open(&new), CacheUse::Refill);
        cache.close(CacheUse::Refill);
        assert_eq!(cache.open(&new), CacheUse::Keep);
    }
}
