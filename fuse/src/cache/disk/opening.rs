//! A cache's start and end on a disk.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::sync::{Arc, PoisonError};

use super::{DiskCache, DiskSettings};
use crate::blocking::{MayBlock, Turns};
use crate::cache::commit::Committer;
use crate::cache::dir::{CacheDir, on_one_file_system};
use crate::cache::error::CacheError;
use crate::cache::health::DiskHealth;
use crate::cache::index::Index;
use crate::cache::reserve;
use crate::cache::shared::Shared;
use crate::cache::space::{Limits, Space};
use crate::metrics::Metrics;
use crate::sync::atomic::{AtomicI64, AtomicU64};
use crate::sync::{Mutex, thread};

/// Tasks that may be at one disk at once, and others that store what was fetched: what a fast disk does
/// side by side. The runtime has more threads that may wait than its disks have turns.
const CALLS: usize = 16;
const STORES: usize = 16;

impl DiskCache {
    /// Takes ownership of the directory and opens its index. At most so many `threads` of the engine
    /// wait for it at once.
    ///
    /// # Errors
    /// [`CacheError`].
    pub(in crate::cache) fn open(
        may: &MayBlock,
        settings: &DiskSettings,
        number: u8,
        threads: usize,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, CacheError> {
        let taken = settings.apart_from.as_ref();
        if let Some(other) = taken.filter(|other| on_one_file_system(&settings.dir, other)) {
            let (dir, other) = (settings.dir.clone(), other.clone());
            return Err(CacheError::NotApart { dir, other });
        }
        let dir = CacheDir::own(may, &settings.dir, settings.min_free)?;
        let index = Arc::new(Index::open(may, &dir)?);
        let staged = dir.staging_leftovers(may);
        let DiskSettings { max_size, min_free, min_free_inodes, lost_max, .. } = *settings;
        let unanswered = dir.folder().unanswered().clone();
        let turns = |most| Arc::new(Turns::at(most, unanswered.clone()));
        let shared = Arc::new(Shared {
            dir,
            space: Space::new(Limits { max_size, min_free, min_free_inodes, lost_max }),
            committer: Committer::default(),
            metrics,
            epoch: index.epoch,
            number,
            health: DiskHealth::default(),
            calls: turns(CALLS),
            threads: turns(threads),
            stores: turns(STORES),
            noted: AtomicI64::new(0),
        });
        let cache = Arc::new(Self {
            shared,
            next_id: AtomicU64::new(index.first_id),
            journaled: Mutex::new(index.uploads(may)),
            staged: Mutex::new(staged),
            index,
            active: Mutex::default(),
            pressure: Mutex::default(),
            flushed: Mutex::default(),
            lost_counted: Mutex::default(),
            thread: Mutex::default(),
        });
        cache.count_lost(may);
        cache.shared.space.set_index(cache.index.bytes(may));
        reserve::take(may, &cache.shared.dir, min_free);
        cache
            .clone()
            .start()
            .map_err(|error| CacheError::Unusable { dir: settings.dir.clone(), error })?;
        Ok(cache)
    }

    fn start(self: Arc<Self>) -> io::Result<()> {
        let (shared, index) = (self.shared.clone(), self.index.clone());
        let weak = Arc::downgrade(&self);
        let commit = move || {
            let may = &MayBlock::own_thread();
            let committed = |removed: &BTreeSet<u64>| {
                if let Some(cache) = weak.upgrade() {
                    let mut active = cache.active();
                    active.generation += u64::from(!removed.is_empty());
                    removed.iter().for_each(|id| {
                        active.evicted.remove(id);
                    });
                }
            };
            shared.committer.run(may, &shared, &index, committed);
            // Before the lock of the directory, which `shared` keeps.
            index.close(may);
        };
        let committer = thread::Builder::new().name("weir-commit".into()).spawn(commit)?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(committer);
        thread::Builder::new()
            .name("weir-load".into())
            .spawn(move || self.load(&MayBlock::own_thread()))?;
        Ok(())
    }

    /// Reads the order of use from the index, and removes files that it does not name.
    fn load(&self, may: &MayBlock) {
        let mut rows = Vec::new();
        let whole =
            self.index.for_each_object(may, |id, row| rows.push((id, row.held, row.last_used)));
        let known: HashSet<u64> = rows.iter().map(|(id, _, _)| *id).collect();
        self.shared.space.versions_mut(|versions| versions.load(rows));
        self.note_use();
        if !whole {
            // What could not be read may name files.
            return;
        }
        let orphans =
            self.shared.dir.clear_orphans(may, self.index.first_id, |id| known.contains(&id));
        if orphans > 0 {
            tracing::info!(orphans, "removed cache files that the index does not name");
        }
    }

    /// Makes everything durable, closes the index and marks the cache as closed in order.
    pub(in crate::cache) fn close(&self, _: &MayBlock) {
        self.end();
    }

    /// As [`DiskCache::close`], where nobody is left who has it.
    pub(super) fn end(&self) {
        self.shared.committer.close();
        let committer = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(committer) = committer else { return };
        // The thread itself may hold the last reference for a moment.
        if committer.thread().id() != thread::current().id() && committer.join().is_err() {
            tracing::error!("the index thread ended in a panic");
        }
    }
}
