//! The cache on one disk.

mod opening;
mod room;
mod written;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Instant;

use super::dir::file_system_bytes;
use super::error::CacheError;
use super::index::{Index, Signer, Standing};
use super::lost;
use super::records::{ListingRow, ObjectRow, UploadRow};
use super::shared::Shared;
use super::version::{CachedVersion, now_secs};
use crate::blocking::MayBlock;
use crate::model::blocks::{self, BlockMap};
use crate::model::version::{BucketId, VersionKey};
use crate::sync::atomic::{AtomicU64, Ordering};
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
    /// Inodes that it leaves free there, where that counts them.
    pub min_free_inodes: u64,
    /// Most bytes that `lost/` is meant to hold.
    pub lost_max: u64,
    /// A folder on whose file system the directory must not be.
    pub apart_from: Option<PathBuf>,
}

impl DiskSettings {
    /// These limits, the default one of `lost/`, and none of inodes; on any file system.
    pub fn new(dir: PathBuf, max_size: u64, min_free: u64) -> Self {
        let lost_max = lost::default_max(file_system_bytes(&dir));
        Self { dir, max_size, min_free, min_free_inodes: 0, lost_max, apart_from: None }
    }
}

/// Figures about the cache on a disk.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct DiskStats {
    /// Its directory.
    pub dir: PathBuf,
    /// Bytes taken: by versions, by what is being written, by what is kept in `lost/`, and by the
    /// index beyond its first 8 MiB.
    pub used_bytes: u64,
    /// Those of them that what is being written has reserved.
    #[serde(default)]
    pub staging_bytes: u64,
    /// Those of them that are kept in `lost/`.
    #[serde(default)]
    pub lost_bytes: u64,
    /// Most bytes that it may hold.
    pub max_bytes: u64,
    /// Bytes free on its file system.
    pub free_bytes: u64,
    /// Versions held.
    pub versions: u64,
    /// What is wrong with the disk, if anything is.
    pub problem: Option<String>,
}

impl DiskStats {
    /// Those of a disk that could not be opened.
    pub(super) fn of_unopened(settings: &DiskSettings, error: &CacheError) -> Self {
        Self {
            dir: settings.dir.clone(),
            used_bytes: 0,
            staging_bytes: 0,
            lost_bytes: 0,
            max_bytes: settings.max_size,
            free_bytes: 0,
            versions: 0,
            problem: Some(error.to_string()),
        }
    }
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
    /// Goes before `shared`, which has the lock of the directory.
    pub(super) index: Arc<Index>,
    pub(super) shared: Arc<Shared>,
    active: Mutex<Active>,
    next_id: AtomicU64,
    pressure: Mutex<Vec<Weak<dyn Pressure>>>,
    flushed: Mutex<Option<Instant>>,
    lost_counted: Mutex<Option<Instant>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
    /// Uploads that an earlier release journaled in the index.
    journaled: Mutex<Vec<(String, UploadRow)>>,
    /// Files that an earlier process was writing.
    staged: Mutex<Vec<PathBuf>>,
}

#[derive(Default)]
struct Active {
    by_key: HashMap<VersionKey, Weak<CachedVersion>>,
    by_id: HashMap<u64, Weak<CachedVersion>>,
    /// Evicted, but the index may still name them.
    evicted: HashSet<u64>,
    /// Changes with what makes a look into the index old that nothing else here tells of.
    generation: u64,
}

/// What the index says of a version that was not in use.
pub(super) struct Seen {
    /// What was known of it before.
    known: Option<Weak<CachedVersion>>,
    generation: u64,
    held: Option<(u64, ObjectRow, BlockMap)>,
}

impl Seen {
    /// Whether something of it is held.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }
}

impl Active {
    fn in_use(&self, id: u64) -> bool {
        self.by_id.get(&id).is_some_and(|weak| weak.strong_count() > 0)
    }

    fn forget_dead(&mut self) {
        if self.by_id.len() > 1024 && self.by_id.len().is_power_of_two() {
            self.generation += 1;
            self.by_id.retain(|_, weak| weak.strong_count() > 0);
            self.by_key.retain(|_, weak| weak.strong_count() > 0);
        }
    }
}

impl DiskCache {
    /// The version with this identity, held or not. It is not evicted while the result lives.
    pub(super) fn acquire(&self, may: &MayBlock, key: &VersionKey) -> Arc<CachedVersion> {
        loop {
            if let Some(version) = self.find_in_use(key) {
                version.touch();
                return version;
            }
            let seen = self.look(may, key);
            if let Some(version) = self.take_up(key, seen) {
                return version;
            }
        }
    }

    /// The version with this identity, if it is in use. Waits for no disk.
    pub(super) fn find_in_use(&self, key: &VersionKey) -> Option<Arc<CachedVersion>> {
        self.active().by_key.get(key).and_then(Weak::upgrade)
    }

    /// What the index says of a version that is not in use, for [`DiskCache::take_up`]. No lock is held
    /// meanwhile.
    pub(super) fn look(&self, may: &MayBlock, key: &VersionKey) -> Seen {
        let active = self.active();
        let (known, generation) = (active.by_key.get(key).cloned(), active.generation);
        drop(active);
        let _call = self.shared.call();
        let found = self.index.find(may, &key.to_bytes());
        let found = found.filter(|(id, row)| {
            row.version_key().as_ref() == Some(key) && !self.active().evicted.contains(id)
        });
        let held = found.map(|(id, row)| {
            let map = self.index.map(may, id, row.size);
            (id, row, map)
        });
        Seen { known, generation, held }
    }

    /// Takes a version up that was looked for, held or not; `None`: it has to be looked for again, since
    /// it was in use in between. Waits for no disk.
    pub(super) fn take_up(&self, key: &VersionKey, seen: Seen) -> Option<Arc<CachedVersion>> {
        let mut active = self.active();
        let known = active.by_key.get(key);
        // Somebody may have been faster.
        if let Some(version) = known.and_then(Weak::upgrade) {
            return Some(version);
        }
        let is_known = match (known, &seen.known) {
            (Some(now), Some(then)) => now.ptr_eq(then),
            (None, None) => true,
            _ => false,
        };
        if !is_known || active.generation != seen.generation {
            return None;
        }
        let held = seen.held.filter(|(id, ..)| !active.evicted.contains(id));
        let (id, map, epoch, known_use) = match held {
            Some((id, row, map)) => (id, map, row.verified_epoch, row.last_used),
            None => {
                let id = self.new_id();
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
        self.shared.space.versions_mut(|versions| versions.begin(id, held));
        Some(version)
    }

    /// Like [`DiskCache::acquire`], but only a version of which something is held or in use.
    pub(super) fn peek(&self, may: &MayBlock, key: &VersionKey) -> Option<Arc<CachedVersion>> {
        loop {
            if let Some(version) = self.find_in_use(key) {
                return Some(version);
            }
            let seen = self.look(may, key);
            if !seen.is_held() {
                return None;
            }
            if let Some(version) = self.take_up(key, seen) {
                return Some(version);
            }
        }
    }

    /// Notes that a version is being used and what it holds now.
    pub(super) fn used(&self, version: &Arc<CachedVersion>) {
        if version.held_bytes() > 0 {
            version.touch();
            self.shared.space.versions_mut(|versions| versions.touch(version.id));
        }
        self.note_use();
    }

    /// Bytes that it takes without evicting anything.
    pub(super) fn available(&self) -> u64 {
        self.shared.space.available(&self.shared.dir)
    }

    /// What is wrong with the disk, if anything is.
    pub(super) fn problem(&self) -> Option<String> {
        self.shared.problem()
    }

    /// Adds to each of `sums` what is held of the same of `of`.
    pub(super) fn add_held(&self, may: &MayBlock, of: &[Held], sums: &mut [u64]) {
        let mut call = self.shared.call();
        self.index.for_each_object(may, |_, row| {
            call.next();
            for (held, sum) in of.iter().zip(sums.iter_mut()) {
                if *row.bucket == *held.bucket.as_str() && row.key.starts_with(&held.prefix) {
                    *sum += row.held;
                }
            }
        });
    }

    /// Whether kept listings know of all that was changed here. After a crash they may lack the
    /// last changes: then they are only better than nothing.
    pub(super) fn knows_all_changes(&self) -> bool {
        self.index.closed_in_order
    }

    /// The listing stored under `name`.
    pub(super) fn listing(&self, may: &MayBlock, name: &[u8]) -> Option<ListingRow> {
        match self.shared.committer.pending_listing(name) {
            Some(pending) => pending,
            None => {
                let _call = self.shared.call();
                self.index.listing(may, name)
            }
        }
    }

    /// Stores or, with `None`, forgets a listing.
    pub(super) fn put_listing(&self, name: Vec<u8>, row: Option<ListingRow>) {
        self.shared.committer.listing(name, row);
    }

    /// What was committed last of what is known of the bucket's endpoint.
    pub(super) fn verdicts(&self, may: &MayBlock, bucket: &BucketId) -> Option<Vec<u8>> {
        let _call = self.shared.call();
        self.index.verdicts(may, bucket.as_str())
    }

    /// Keeps what is known of the bucket's endpoint.
    pub(super) fn put_verdicts(&self, bucket: &BucketId, row: Vec<u8>) {
        self.shared.committer.verdicts(bucket.clone(), row);
    }

    /// Forgets an upload that an earlier release journaled.
    pub(super) fn forget_upload(&self, upload_id: &str) {
        self.shared.committer.upload(upload_id.to_owned(), None);
    }

    /// Notes that somebody uses a bucket ([`Index::enter`]).
    pub(super) fn enter(
        &self,
        may: &MayBlock,
        bucket: &BucketId,
        signer: &Signer,
        lives: impl Fn(&str) -> bool,
    ) -> Option<Standing> {
        let _call = self.shared.call();
        self.index.enter(may, bucket.as_str(), signer, now_secs(), lives)
    }

    /// What somebody was known as who has used a bucket ([`Index::former_of`]).
    pub(super) fn former_of(
        &self,
        may: &MayBlock,
        bucket: &BucketId,
        identity: &str,
    ) -> Option<Vec<String>> {
        let _call = self.shared.call();
        self.index.former_of(may, bucket.as_str(), identity)
    }

    /// Takes the files that were in the staging folder when the cache was opened.
    pub(super) fn take_staged(&self) -> Vec<PathBuf> {
        std::mem::take(&mut *self.staged.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the uploads that an earlier release began in this bucket and did not finish; each is
    /// given once, so that no mount aborts what another one has under way.
    pub(super) fn take_journaled(&self, bucket: &BucketId) -> Vec<(String, UploadRow)> {
        let mut all = self.journaled.lock().unwrap_or_else(PoisonError::into_inner);
        all.extract_if(.., |(_, row)| row.bucket == bucket.as_str()).collect()
    }

    /// Waits until what happened so far is durable.
    pub(super) fn flush(&self, may: &MayBlock) {
        self.shared.committer.flush(may);
    }

    /// Figures for people.
    pub(super) fn stats(&self, may: &MayBlock) -> DiskStats {
        // One that does not answer is not asked.
        let answers = !self.shared.is_silent();
        if answers {
            self.count_lost(may);
        }
        let free = || self.shared.dir.free_bytes().ok();
        let space = &self.shared.space;
        DiskStats {
            dir: self.shared.dir.root().to_owned(),
            used_bytes: space.used(),
            staging_bytes: space.staging(),
            lost_bytes: space.lost(),
            max_bytes: space.limits().max_size,
            free_bytes: answers.then(free).flatten().unwrap_or(0),
            versions: space.versions() as u64,
            problem: self.problem(),
        }
    }

    fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn note_use(&self) {
        self.shared.note_use();
    }

    fn active(&self) -> MutexGuard<'_, Active> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        // The process ends, or could not go on: nobody waits for the disk then.
        self.end();
    }
}
