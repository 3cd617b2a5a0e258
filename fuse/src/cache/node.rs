//! The cache of a node, shared by all its mounts.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::commit::Committer;
use super::dir::CacheDir;
use super::error::CacheError;
use super::evict::Recency;
use super::index::Index;
use super::records::{ListingRow, UploadRow};
use super::space::Space;
use super::version::{CachedVersion, Shared};
use crate::metrics::Metrics;
use crate::model::blocks::{self, BlockMap};
use crate::model::version::{BucketId, VersionKey};

/// How often a commit is asked for because room is short.
const FLUSH_EVERY: Duration = Duration::from_millis(250);

/// Where the cache is and how large it may become.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// Its directory.
    pub dir: PathBuf,
    /// Most bytes that it holds.
    pub max_size: u64,
    /// Bytes that it leaves free on its file system.
    pub min_free: u64,
}

/// Figures about the cache.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct CacheStats {
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
}

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

/// The cache of a node.
pub struct NodeCache {
    pub(super) shared: Arc<Shared>,
    index: Arc<Index>,
    active: Mutex<Active>,
    recency: Mutex<Recency>,
    next_id: AtomicU64,
    pressure: Mutex<Vec<Weak<dyn Pressure>>>,
    flushed: Mutex<Option<Instant>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Uploads that were in the index when it was opened.
    leftovers: Mutex<Vec<(String, UploadRow)>>,
    /// Buckets, and whether several identities use them.
    identities: Mutex<HashMap<BucketId, Arc<AtomicBool>>>,
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

impl NodeCache {
    /// Takes ownership of the directory and opens its index.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn open(settings: &CacheSettings, metrics: Arc<Metrics>) -> Result<Arc<Self>, CacheError> {
        let dir = CacheDir::own(&settings.dir, settings.min_free)?;
        dir.clear_staging();
        let index = Arc::new(Index::open(&dir)?);
        let shared = Arc::new(Shared {
            dir,
            space: Space::new(settings.max_size, settings.min_free),
            committer: Committer::default(),
            metrics,
            epoch: index.epoch,
        });
        let cache = Arc::new(Self {
            shared,
            next_id: AtomicU64::new(index.first_id),
            leftovers: Mutex::new(index.uploads()),
            identities: Mutex::default(),
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
            shared.committer.run(&shared.dir, &index, committed);
        };
        let thread = std::thread::Builder::new().name("weir-commit".into()).spawn(commit)?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        std::thread::Builder::new().name("weir-load".into()).spawn(move || self.load())?;
        Ok(())
    }

    /// Reads the order of use from the index, and removes files that it does not name.
    fn load(&self) {
        let mut rows = Vec::new();
        self.index.for_each_object(|id, held, last_used| rows.push((id, held, last_used)));
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
    pub fn acquire(&self, key: &VersionKey) -> Arc<CachedVersion> {
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

    /// Like [`NodeCache::acquire`], but only a version of which something is held or in use.
    pub fn peek(&self, key: &VersionKey) -> Option<Arc<CachedVersion>> {
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
    pub fn used(&self, version: &Arc<CachedVersion>) {
        let held = version.held_bytes();
        if held > 0 {
            version.touch();
            self.recency().touch(version.id, held);
        }
        self.note_use();
    }

    /// Makes room for `bytes`, by evicting what was not used for longest, and sets it aside
    /// while the result lives. `None`: there is no room.
    pub fn make_room(&self, bytes: u64) -> Option<Room> {
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
    pub fn on_pressure(&self, holder: Weak<dyn Pressure>) {
        let mut pressure = self.pressure.lock().unwrap_or_else(PoisonError::into_inner);
        pressure.retain(|weak| weak.strong_count() > 0);
        pressure.push(holder);
    }

    /// A path for a new staging file, on the cache's file system.
    pub fn staging_path(&self) -> PathBuf {
        self.shared.dir.staging_path(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Puts a staging file whose bytes could not be stored where a person finds it.
    ///
    /// # Errors
    /// What rename reports.
    pub fn keep_lost(&self, path: &Path) -> io::Result<PathBuf> {
        let kept = self.shared.dir.lost_path(self.next_id.fetch_add(1, Ordering::Relaxed));
        fs::rename(path, &kept)?;
        Ok(kept)
    }

    /// Makes a file that holds all bytes of `key`, with their checksums by block, the cached
    /// version. The file is moved; where that fails or there is no room it is removed.
    pub fn adopt(&self, key: &VersionKey, path: &Path, sums: &[u32]) {
        let room = self.make_room(key.version.size);
        if room.is_none() || !self.try_adopt(key, path, sums, false) {
            let _ = fs::remove_file(path);
        }
    }

    /// Makes what is held of `from` also the cached version `to`: the same bytes under another
    /// name, after a copy by the server.
    pub fn link(&self, from: &VersionKey, to: &VersionKey) {
        let Some(source) = self.peek(from) else { return };
        let (Some(sums), true) = (source.sums(), source.is_trusted()) else { return };
        let path = self.shared.dir.object_path(source.id);
        if let Some(_room) = self.make_room(to.version.size) {
            self.try_adopt(to, &path, &sums, true);
        }
    }

    fn try_adopt(&self, key: &VersionKey, path: &Path, sums: &[u32], keep: bool) -> bool {
        let version = self.acquire(key);
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
                self.used(&version);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "written file not kept in the cache");
                false
            }
        }
    }

    /// Forgets a version that its bucket no longer has, unless it is in use.
    pub fn discard(&self, key: &VersionKey) {
        let Some((id, _)) = self.index.find(&key.to_bytes()) else { return };
        let mut active = self.active();
        if active.in_use(id) || !active.evicted.insert(id) {
            return;
        }
        drop(active);
        self.remove(id);
    }

    /// Whether kept listings know of all that was changed here. After a crash they may lack the
    /// last changes: then they are only better than nothing.
    pub fn knows_all_changes(&self) -> bool {
        self.index.closed_in_order
    }

    /// The listing stored under `name`.
    pub fn listing(&self, name: &[u8]) -> Option<ListingRow> {
        match self.shared.committer.pending_listing(name) {
            Some(pending) => pending,
            None => self.index.listing(name),
        }
    }

    /// Stores or, with `None`, forgets a listing.
    pub fn put_listing(&self, name: Vec<u8>, row: Option<ListingRow>) {
        self.shared.committer.listing(name, row);
    }

    /// Journals an upload as begun or, with `None`, as finished.
    pub fn journal_upload(&self, upload_id: &str, row: Option<UploadRow>) {
        self.shared.committer.upload(upload_id.to_owned(), row);
    }

    /// Notes that somebody with this identity uses the bucket. The flag says whether others do or
    /// did: then what is here may have been brought with credentials that reach further.
    pub fn shared_by_identities(&self, bucket: &BucketId, identity: &str) -> Arc<AtomicBool> {
        let identities = self.index.identities_with(bucket.as_str(), identity);
        let mut shared = self.identities.lock().unwrap_or_else(PoisonError::into_inner);
        let flag = shared.entry(bucket.clone()).or_default();
        // An index that cannot be read knows nothing; then everything is checked.
        if identities.len() != 1 {
            flag.store(true, Ordering::Relaxed);
        }
        flag.clone()
    }

    /// Takes the uploads that an earlier run began in this bucket and did not finish; each is
    /// given once, so that no mount aborts what another one has under way.
    pub fn take_leftovers(&self, bucket: &BucketId) -> Vec<(String, UploadRow)> {
        let mut all = self.leftovers.lock().unwrap_or_else(PoisonError::into_inner);
        all.extract_if(.., |(_, row)| row.bucket == bucket.as_str()).collect()
    }

    /// Waits until what happened so far is durable.
    pub fn flush(&self) {
        self.shared.committer.flush();
    }

    /// Figures for people.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            dir: self.shared.dir.root().to_owned(),
            used_bytes: self.shared.space.used(),
            max_bytes: self.shared.space.max_size(),
            free_bytes: self.shared.dir.free_bytes().unwrap_or(0),
            versions: self.recency().len() as u64,
        }
    }

    /// Makes everything durable and marks the cache as closed in order.
    pub fn close(&self) {
        self.shared.committer.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        // The thread itself may hold the last reference for a moment.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("the index thread ended in a panic");
        }
    }

    fn note_use(&self) {
        let used = i64::try_from(self.shared.space.used()).unwrap_or(i64::MAX);
        self.shared.metrics.cache_bytes.set(used);
    }

    fn active(&self) -> MutexGuard<'_, Active> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recency(&self) -> MutexGuard<'_, Recency> {
        self.recency.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NodeCache {
    fn drop(&mut self) {
        self.close();
    }
}
