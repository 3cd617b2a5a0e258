//! The cache on one disk.

mod room;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Instant;

use super::commit::Committer;
use super::dir::CacheDir;
use super::error::CacheError;
use super::evict::Recency;
use super::health::DiskHealth;
use super::index::Index;
use super::records::{ListingRow, UploadRow};
use super::space::Space;
use super::version::{CachedVersion, Shared};
use crate::metrics::Metrics;
use crate::model::blocks::{self, BlockMap};
use crate::model::version::{BucketId, VersionKey};
use crate::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, thread};

pub use room::{Pressure, Room};

/// Where the cache is and how large it may become.
#[derive(Clone, Debug)]
pub struct DiskSettings {
    /// Its directory.
    pub dir: PathBuf,
    /// Most bytes that it holds.
    pub max_size: u64,
    /// Bytes that it leaves free on its file system.
    pub min_free: u64,
}

/// Figures about the cache on a disk.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct DiskStats {
    /// Its directory.
    pub dir: PathBuf,
    /// Bytes held.
    pub used_bytes: u64,
    /// Most bytes that it may hold.
    pub max_bytes: u64,
    /// Bytes free on its file system.
    pub free_bytes: u64,
    /// Versions held.
    pub versions: u64,
    /// What is wrong with the disk, if anything is.
    pub problem: Option<String>,
}

/// What of a cache is counted together: the keys of a bucket that begin alike.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// The bucket.
    pub bucket: BucketId,
    /// What the keys begin with.
    pub prefix: String,
}

/// The cache on one disk.
pub(super) struct DiskCache {
    pub(super) shared: Arc<Shared>,
    index: Arc<Index>,
    active: Mutex<Active>,
    recency: Mutex<Recency>,
    next_id: AtomicU64,
    pressure: Mutex<Vec<Weak<dyn Pressure>>>,
    flushed: Mutex<Option<Instant>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
    /// Uploads that were in the index when it was opened.
    leftovers: Mutex<Vec<(String, UploadRow)>>,
}

#[derive(Default)]
struct Active {
    by_key: HashMap<VersionKey, Weak<CachedVersion>>,
    by_id: HashMap<u64, Weak<CachedVersion>>,
    /// Evicted, but the index may still name them.
    evicted: HashSet<u64>,
}

impl Active {
    fn in_use(&self, id: u64) -> bool {
        self.by_id.get(&id).is_some_and(|weak| weak.strong_count() > 0)
    }

    fn forget_dead(&mut self) {
        if self.by_id.len() > 1024 && self.by_id.len().is_power_of_two() {
            self.by_id.retain(|_, weak| weak.strong_count() > 0);
            self.by_key.retain(|_, weak| weak.strong_count() > 0);
        }
    }
}

impl DiskCache {
    /// Takes ownership of the directory and opens its index.
    ///
    /// # Errors
    /// [`CacheError`].
    pub(super) fn open(
        settings: &DiskSettings,
        number: u8,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, CacheError> {
        let dir = CacheDir::own(&settings.dir, settings.min_free)?;
        dir.clear_staging();
        let index = Arc::new(Index::open(&dir)?);
        let shared = Arc::new(Shared {
            dir,
            space: Space::new(settings.max_size, settings.min_free),
            committer: Committer::default(),
            metrics,
            epoch: index.epoch,
            number,
            health: DiskHealth::default(),
            noted: AtomicI64::new(0),
        });
        let cache = Arc::new(Self {
            shared,
            next_id: AtomicU64::new(index.first_id),
            leftovers: Mutex::new(index.uploads()),
            index,
            active: Mutex::default(),
            recency: Mutex::new(Recency::new()),
            pressure: Mutex::default(),
            flushed: Mutex::default(),
            thread: Mutex::default(),
        });
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
            let committed = |removed: &[u64]| {
                if let Some(cache) = weak.upgrade() {
                    let mut active = cache.active();
                    removed.iter().for_each(|id| {
                        active.evicted.remove(id);
                    });
                }
            };
            shared.committer.run(&shared, &index, committed);
        };
        let committer = thread::Builder::new().name("weir-commit".into()).spawn(commit)?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(committer);
        thread::Builder::new().name("weir-load".into()).spawn(move || self.load())?;
        Ok(())
    }

    /// Reads the order of use from the index, and removes files that it does not name.
    fn load(&self) {
        let mut rows = Vec::new();
        self.index.for_each_object(|id, row| rows.push((id, row.held, row.last_used)));
        let known: HashSet<u64> = rows.iter().map(|(id, _, _)| *id).collect();
        let added = self.recency().load(rows);
        self.shared.space.add(added);
        self.note_use();
        let orphans = self.shared.dir.clear_orphans(self.index.first_id, |id| known.contains(&id));
        if orphans > 0 {
            tracing::info!(orphans, "removed cache files that the index does not name");
        }
    }

    /// The version with this identity, held or not. It is not evicted while the result lives.
    pub(super) fn acquire(&self, key: &VersionKey) -> Arc<CachedVersion> {
        if let Some(version) = self.active().by_key.get(key).and_then(Weak::upgrade) {
            version.touch();
            return version;
        }
        let found = self.index.find(&key.to_bytes());
        let mut active = self.active();
        // Somebody may have been faster.
        if let Some(version) = active.by_key.get(key).and_then(Weak::upgrade) {
            return version;
        }
        // What was looked for in the index may have been in use, and committed, in between.
        let found = found.or_else(|| self.index.find(&key.to_bytes()));
        let found = found.filter(|(id, row)| {
            !active.evicted.contains(id) && row.version_key().as_ref() == Some(key)
        });
        let (id, map, epoch, known_use) = match found {
            Some((id, row)) => {
                (id, self.index.map(id, row.size), row.verified_epoch, row.last_used)
            }
            None => {
                let id = self.next_id.fetch_add(1, Ordering::Relaxed);
                (id, BlockMap::empty(blocks::count(key.version.size)), self.shared.epoch, 0)
            }
        };
        let version = Arc::new(CachedVersion::new(
            self.shared.clone(),
            key.clone(),
            id,
            map,
            epoch,
            known_use,
        ));
        active.forget_dead();
        active.by_key.insert(key.clone(), Arc::downgrade(&version));
        active.by_id.insert(id, Arc::downgrade(&version));
        let held = version.held_bytes();
        if held > 0 && self.recency().touch(id, held) {
            self.shared.space.add(held);
        }
        version
    }

    /// Like [`DiskCache::acquire`], but only a version of which something is held or in use.
    pub(super) fn peek(&self, key: &VersionKey) -> Option<Arc<CachedVersion>> {
        if let Some(version) = self.active().by_key.get(key).and_then(Weak::upgrade) {
            return Some(version);
        }
        let (id, _) = self.index.find(&key.to_bytes())?;
        if self.active().evicted.contains(&id) {
            return None;
        }
        Some(self.acquire(key))
    }

    /// Notes that a version is being used and what it holds now.
    pub(super) fn used(&self, version: &Arc<CachedVersion>) {
        let held = version.held_bytes();
        if held > 0 {
            version.touch();
            self.recency().touch(version.id, held);
        }
        self.note_use();
    }

    /// Bytes that it takes without evicting anything.
    pub(super) fn available(&self) -> u64 {
        self.shared.space.available(&self.shared.dir)
    }

    /// What is wrong with the disk, if anything is.
    pub(super) fn problem(&self) -> Option<String> {
        self.shared.health.problem()
    }

    /// Whether a path is in this directory.
    pub(super) fn contains(&self, path: &Path) -> bool {
        path.starts_with(self.shared.dir.root())
    }

    /// Adds to each of `sums` what is held of the same of `of`.
    pub(super) fn add_held(&self, of: &[Held], sums: &mut [u64]) {
        self.index.for_each_object(|_, row| {
            for (held, sum) in of.iter().zip(sums.iter_mut()) {
                if *row.bucket == *held.bucket.as_str() && row.key.starts_with(&held.prefix) {
                    *sum += row.held;
                }
            }
        });
    }

    /// A path for a new staging file, on the cache's file system.
    pub(super) fn staging_path(&self) -> PathBuf {
        self.shared.dir.staging_path(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Puts a staging file whose bytes could not be stored where a person finds it.
    ///
    /// # Errors
    /// What rename reports.
    pub(super) fn keep_lost(&self, path: &Path) -> io::Result<PathBuf> {
        let kept = self.shared.dir.lost_path(self.next_id.fetch_add(1, Ordering::Relaxed));
        fs::rename(path, &kept)?;
        Ok(kept)
    }

    /// Makes a file on this disk that holds all bytes of `version`, with their checksums by block,
    /// the cached version. The file is moved or, with `keep`, linked. Says whether it did.
    pub(super) fn adopt(
        &self,
        version: &Arc<CachedVersion>,
        path: &Path,
        sums: &[u32],
        keep: bool,
    ) -> bool {
        if version.held_bytes() > 0 || !version.flights.is_idle() {
            return false;
        }
        let target = self.shared.dir.object_path(version.id);
        let place = || {
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder)?;
            }
            if keep { fs::hard_link(path, &target) } else { fs::rename(path, &target) }
        };
        match place() {
            Ok(()) => {
                version.adopt(sums);
                self.used(version);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "written file not kept in the cache");
                false
            }
        }
    }

    /// Whether kept listings know of all that was changed here. After a crash they may lack the
    /// last changes: then they are only better than nothing.
    pub(super) fn knows_all_changes(&self) -> bool {
        self.index.closed_in_order
    }

    /// The listing stored under `name`.
    pub(super) fn listing(&self, name: &[u8]) -> Option<ListingRow> {
        match self.shared.committer.pending_listing(name) {
            Some(pending) => pending,
            None => self.index.listing(name),
        }
    }

    /// Stores or, with `None`, forgets a listing.
    pub(super) fn put_listing(&self, name: Vec<u8>, row: Option<ListingRow>) {
        self.shared.committer.listing(name, row);
    }

    /// Forgets an upload that an earlier release journaled.
    pub(super) fn forget_upload(&self, upload_id: &str) {
        self.shared.committer.upload(upload_id.to_owned(), None);
    }

    /// The identities that have brought bytes of a bucket here, with this one.
    pub(super) fn identities_with(&self, bucket: &BucketId, identity: &str) -> Vec<String> {
        self.index.identities_with(bucket.as_str(), identity)
    }

    /// Takes the uploads that an earlier run began in this bucket and did not finish; each is
    /// given once, so that no mount aborts what another one has under way.
    pub(super) fn take_leftovers(&self, bucket: &BucketId) -> Vec<(String, UploadRow)> {
        let mut all = self.leftovers.lock().unwrap_or_else(PoisonError::into_inner);
        all.extract_if(.., |(_, row)| row.bucket == bucket.as_str()).collect()
    }

    /// Waits until what happened so far is durable.
    pub(super) fn flush(&self) {
        self.shared.committer.flush();
    }

    /// Figures for people.
    pub(super) fn stats(&self) -> DiskStats {
        DiskStats {
            dir: self.shared.dir.root().to_owned(),
            used_bytes: self.shared.space.used(),
            max_bytes: self.shared.space.max_size(),
            free_bytes: self.shared.dir.free_bytes().unwrap_or(0),
            versions: self.recency().len() as u64,
            problem: self.problem(),
        }
    }

    /// Makes everything durable and marks the cache as closed in order.
    pub(super) fn close(&self) {
        self.shared.committer.close();
        let committer = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(committer) = committer else { return };
        // The thread itself may hold the last reference for a moment.
        if committer.thread().id() != thread::current().id() && committer.join().is_err() {
            tracing::error!("the index thread ended in a panic");
        }
    }

    fn note_use(&self) {
        self.shared.note_use();
    }

    fn active(&self) -> MutexGuard<'_, Active> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recency(&self) -> MutexGuard<'_, Recency> {
        self.recency.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        self.close();
    }
}
