//! The cache of a node, shared by all its mounts: one or several disks.
//!
//! A version is on one disk. Which one is decided when it is first used: the one that its reader
//! prefers (next to his GPUs), and of those equally near the one with most room. A disk that fails
//! is left alone while there are others; what it held is fetched again.

mod entering;
mod placement;
mod region_evictions;

pub use entering::ANSWERS;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::disk::{DiskCache, DiskSettings, DiskStats, Held, Pressure, Room};
use super::error::CacheError;
use super::lost::{LostRow, whose};
use super::moves::Moves;
use super::records::{ListingRow, UploadRow};
use super::share::{Share, Shares};
use super::space::Need;
use super::staging::StagingFile;
use super::tenants::Tenants;
use super::version::CachedVersion;
use crate::blocking::{MayBlock, Turn, Turns, in_place};
use crate::metrics::Metrics;
use crate::model::version::BucketId;
use crate::sync::{Mutex, MutexGuard};

/// Where the cache is and how large it may become.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// Its disks; at least one.
    pub disks: Vec<DiskSettings>,
}

impl CacheSettings {
    /// On one disk.
    pub fn one(dir: &Path, max_size: u64, min_free: u64) -> Self {
        Self { disks: vec![DiskSettings::new(dir.to_owned(), max_size, min_free)] }
    }
}

/// Figures about the cache.
#[derive(Clone, Default, Debug, serde::Serialize, serde::Deserialize)]
pub struct CacheStats {
    /// Bytes taken on all disks.
    pub used_bytes: u64,
    /// Versions held.
    pub versions: u64,
    /// Disk by disk.
    pub disks: Vec<DiskStats>,
}

/// How near each disk is, by its place in the settings: the greatest is the nearest. Disks
/// without an entry count as 0.
pub type Preference = Arc<[u8]>;

/// The cache of a node.
pub struct NodeCache {
    disks: Vec<Arc<DiskCache>>,
    /// Disks that could not be opened.
    unopened: Vec<DiskStats>,
    /// Whether the spare one is used, since none of them could.
    is_spare: bool,
    /// Whether one of them is on overlayfs.
    is_on_overlayfs: bool,
    /// Held while a version gets its disk, so that it gets one. No disk is waited for meanwhile.
    placing: Mutex<()>,
    /// Who uses which bucket.
    tenants: Mutex<HashMap<BucketId, Arc<Tenants>>>,
    /// What disks are asked that nobody waits for, by their places and what it is for.
    questions: Mutex<HashSet<(usize, Vec<u8>)>>,
    shares: Shares,
    moves: Moves,
}

/// Threads of the engine's that wait for one disk at once, where there are several, and where there is
/// one: what a fast disk does side by side. Some are left that wait for nothing but the mounter.
const THREADS: usize = 32;
const THREADS_OF_ONE: usize = 48;
const THREADS_OF_NONE: usize = 16;

/// How soon it is looked again which disks answer, while a turn is waited for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The disk on which a file of the staging folder is, or will be.
#[derive(Clone)]
pub struct StagingDisk(Arc<DiskCache>);

impl StagingDisk {
    /// Turns at it.
    pub fn calls(&self) -> &Turns {
        &self.0.shared.calls
    }

    /// A new file for what is being written; by whose mount, where it will have bytes.
    ///
    /// # Errors
    /// What open reports.
    pub fn create(&self, may: &MayBlock, share: Option<Arc<Share>>) -> io::Result<StagingFile> {
        self.0.new_staging(may, share)
    }

    /// Where a record of what is under way may be put: beside what is being written, under a name
    /// that nobody has.
    pub fn new_record_path(&self) -> PathBuf {
        self.0.new_record_path()
    }
}

/// Waits for a turn at a disk until it is `gone`. Its place in the queue is kept meanwhile, and no turn at
/// another disk is.
async fn turn_unless(disk: &DiskCache, gone: impl Fn() -> bool) -> Option<Turn> {
    let calls = &disk.shared.calls;
    if let Some(turn) = calls.try_take() {
        return Some(turn);
    }
    let mut taken = pin!(calls.take());
    while !gone() {
        if let Ok(turn) = tokio::time::timeout(LOOK_AGAIN, &mut taken).await {
            return Some(turn);
        }
    }
    None
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NodeCache {
    /// Takes ownership of the directories and opens their indexes. Of several, one whose disk
    /// fails is left out.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn open(
        may: &MayBlock,
        settings: &CacheSettings,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, CacheError> {
        Self::open_or(may, settings, None, metrics)
    }

    /// Like [`NodeCache::open`], but with a spare disk, which is opened where all others fail
    /// ([`CacheError::is_about_disk`]); then one that is too full is left out, too.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn open_or(
        may: &MayBlock,
        settings: &CacheSettings,
        spare: Option<&DiskSettings>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, CacheError> {
        let mut disks = Vec::new();
        let mut unopened = Vec::new();
        let mut failed = None;
        let threads = if settings.disks.len() > 1 { THREADS } else { THREADS_OF_ONE };
        for (disk, number) in settings.disks.iter().zip(0..) {
            match DiskCache::open(may, disk, number, threads, metrics.clone()) {
                Ok(opened) => disks.push(opened),
                Err(error @ CacheError::InUse { .. }) => return Err(error),
                Err(error @ CacheError::Full { .. }) if spare.is_none() => return Err(error),
                Err(error) => {
                    tracing::error!(%error, "a disk of the cache is not used");
                    unopened.push(DiskStats::of_unopened(disk, &error));
                    failed.get_or_insert(error);
                }
            }
        }
        let is_about_disk = failed.as_ref().is_some_and(CacheError::is_about_disk);
        let spare = spare.filter(|_| disks.is_empty() && is_about_disk);
        if let Some(spare) = spare {
            disks.push(DiskCache::open(may, spare, 0, THREADS_OF_ONE, metrics)?);
        }
        if disks.is_empty() {
            let none = || CacheError::Unusable {
                dir: PathBuf::new(),
                error: io::Error::other("no directory is given"),
            };
            return Err(failed.unwrap_or_else(none));
        }
        let is_on_overlayfs = disks.iter().any(|disk| disk.shared.dir.is_on_overlayfs(may));
        Ok(Arc::new(Self {
            disks,
            is_on_overlayfs,
            unopened,
            is_spare: spare.is_some(),
            placing: Mutex::default(),
            tenants: Mutex::default(),
            questions: Mutex::default(),
            shares: Shares::new(settings.disks.len().max(1)),
            moves: Moves::default(),
        }))
    }

    /// Threads that wait for its disks and for the mounter: so many that disks which do not answer leave
    /// enough to the others.
    pub(crate) fn threads(&self) -> usize {
        let of_disks = match self.disks.len() {
            1 => THREADS_OF_ONE,
            several => THREADS * several,
        };
        of_disks + THREADS_OF_NONE
    }

    /// Whether it is a spare one, since none of its disks could be opened.
    pub fn is_spare(&self) -> bool {
        self.is_spare
    }

    /// Whether one of its disks was on overlayfs when it was opened.
    pub(crate) fn is_on_overlayfs(&self) -> bool {
        self.is_on_overlayfs
    }

    /// The disks that are used: those that work or, if none does, all.
    fn in_use(&self) -> impl Iterator<Item = &Arc<DiskCache>> {
        let any_works = self.disks.len() > 1 && self.works();
        self.disks.iter().filter(move |disk| !any_works || disk.shared.works())
    }

    /// The disk that what belongs to no version is kept on. There is at least one disk.
    fn main(&self) -> &Arc<DiskCache> {
        self.in_use().next().unwrap_or(&self.disks[0])
    }

    /// The disk that holds a version.
    fn disk_of(&self, version: &CachedVersion) -> &Arc<DiskCache> {
        let is_its = |disk: &&Arc<DiskCache>| Arc::ptr_eq(&disk.shared, &version.shared);
        self.disks.iter().find(is_its).unwrap_or(&self.disks[0])
    }

    /// The disk for something new of `bytes`: where there is room, the nearest, then the roomiest.
    fn choose(&self, bytes: u64, preference: &[u8]) -> &Arc<DiskCache> {
        let rank = |disk: &Arc<DiskCache>| {
            let near = preference.get(usize::from(disk.shared.number)).copied().unwrap_or(0);
            let available = disk.available();
            (available >= bytes, near, available)
        };
        self.in_use().max_by_key(|disk| rank(disk)).unwrap_or(&self.disks[0])
    }

    /// Notes that a version is being used and what it holds now.
    pub fn used(&self, version: &Arc<CachedVersion>) {
        self.disk_of(version).used(version);
    }

    /// Makes room for `bytes` of a version, by evicting what was not used for longest, and sets
    /// it aside while the result lives. `None`: there is no room, as there is none for what a
    /// weak tag names, which may be other bytes tomorrow.
    pub fn make_room(&self, may: &MayBlock, version: &CachedVersion, bytes: u64) -> Option<Room> {
        if !version.key.version.etag.is_strong() {
            return None;
        }
        // Its first bytes come with a file.
        let files = u64::from(version.held_bytes() == 0);
        self.disk_of(version).make_room(may, Need { bytes, files })
    }

    /// Registers somebody to be asked when room is short.
    pub fn on_pressure(&self, holder: Weak<dyn Pressure>) {
        self.disks.iter().for_each(|disk| disk.on_pressure(holder.clone()));
    }

    /// What one mount more may take for what it writes, with the others of its tenant; the name is
    /// empty where there is no other tenant.
    pub fn share(&self, tenant: &str) -> Arc<Share> {
        self.shares.begin(tenant)
    }

    /// The disk for what will be written.
    pub fn staging_disk(&self, preference: &[u8]) -> StagingDisk {
        StagingDisk(self.choose(0, preference).clone())
    }

    /// The disk for records of what is under way.
    pub fn record_disk(&self) -> StagingDisk {
        StagingDisk(self.main().clone())
    }

    /// Does something at the disk that what belongs to no version is kept on, in the place of the task
    /// that asks, in its turn.
    pub async fn at_main<T>(&self, work: impl FnOnce(&MayBlock) -> T) -> T {
        loop {
            let disk = self.main();
            if let Some(_turn) = self.turn_at(disk).await {
                return in_place(work);
            }
        }
    }

    /// As [`NodeCache::at_main`], at the disk that has the file at `path`.
    pub async fn at_disk_of<T>(&self, path: &Path, work: impl FnOnce(&MayBlock) -> T) -> T {
        self.disk_with(path).shared.calls.in_place(work).await
    }

    fn disk_with(&self, path: &Path) -> &Arc<DiskCache> {
        self.disks.iter().find(|disk| disk.contains(path)).unwrap_or(&self.disks[0])
    }

    /// Waits for a turn at a disk for as long as that is used.
    async fn turn_at(&self, disk: &Arc<DiskCache>) -> Option<Turn> {
        turn_unless(disk, || !self.in_use().any(|used| Arc::ptr_eq(used, disk))).await
    }

    /// Puts a staging file whose bytes could not be stored where a person finds it.
    ///
    /// # Errors
    /// What the disk reports; the file is then where it was.
    pub fn keep_lost(&self, may: &MayBlock, path: &Path, row: &LostRow) -> io::Result<PathBuf> {
        self.disk_with(path).keep_lost(may, path, row)
    }

    /// What is kept of bytes that could not be stored, on all disks.
    pub fn lost(&self, may: &MayBlock) -> Vec<LostRow> {
        self.disks.iter().flat_map(|disk| disk.lost(may)).collect()
    }

    /// Whether as much is kept of bytes that could not be stored as is meant to, of this tenant's or of
    /// all, on every disk. Where one is known to have room, no disk is waited for.
    pub async fn lost_is_full(&self, share: &Share, bucket: &BucketId) -> bool {
        let others = self.shares.are_several();
        let whose = whose(share.tenant(), bucket.as_str());
        if self.in_use().any(|disk| !disk.shared.space.lost_is_full(whose, others)) {
            return false;
        }
        for disk in self.in_use() {
            if let Some(_turn) = self.turn_at(disk).await
                && !in_place(|may| disk.lost_is_full(may, whose, others))
            {
                return false;
            }
        }
        true
    }

    /// Whether kept listings know of all that was changed here. After a crash they may lack the
    /// last changes: then they are only better than nothing.
    pub fn knows_all_changes(&self) -> bool {
        self.main().knows_all_changes()
    }

    /// The listing stored under `name`.
    pub fn listing(&self, may: &MayBlock, name: &[u8]) -> Option<ListingRow> {
        self.main().listing(may, name)
    }

    /// Stores or, with `None`, forgets a listing.
    pub fn put_listing(&self, name: Vec<u8>, row: Option<ListingRow>) {
        if row.is_none() {
            // Wherever it was put.
            self.disks.iter().for_each(|disk| disk.put_listing(name.clone(), None));
            return;
        }
        self.main().put_listing(name, row);
    }

    /// What was committed last of what is known of the bucket's endpoint.
    pub fn verdicts(&self, may: &MayBlock, bucket: &BucketId) -> Option<Vec<u8>> {
        self.main().verdicts(may, bucket)
    }

    /// Keeps what is known of the bucket's endpoint. Waits for no disk.
    pub fn put_verdicts(&self, bucket: &BucketId, row: Vec<u8>) {
        self.main().put_verdicts(bucket, row);
    }

    /// Forgets an upload that an earlier release journaled in the index.
    pub fn forget_journaled_upload(&self, id: &str) {
        self.disks.iter().for_each(|disk| disk.forget_upload(id));
    }

    /// Takes the files that earlier processes were writing when they ended: bytes, and records
    /// beside them.
    pub fn take_staged(&self) -> Vec<PathBuf> {
        self.disks.iter().flat_map(|disk| disk.take_staged()).collect()
    }

    /// Takes the uploads that an earlier release began in this bucket and did not finish; each is
    /// given once, so that no mount aborts what another one has under way.
    pub fn take_journaled_uploads(&self, bucket: &BucketId) -> Vec<(String, UploadRow)> {
        self.disks.iter().flat_map(|disk| disk.take_journaled(bucket)).collect()
    }

    /// Bytes held of each of these. Walks the index: milliseconds for thousands of versions.
    pub async fn held_of(&self, of: &[Held]) -> Vec<u64> {
        let mut sums = vec![0; of.len()];
        for disk in self.disks.iter().filter(|_| !of.is_empty()) {
            if let Some(_turn) = turn_unless(disk, || disk.shared.is_silent()).await {
                in_place(|may| disk.add_held(may, of, &mut sums));
            }
        }
        sums
    }

    /// Waits until what happened so far is durable.
    pub fn flush(&self, may: &MayBlock) {
        self.disks.iter().for_each(|disk| disk.flush(may));
    }

    /// Its directories.
    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.disks.iter().map(|disk| disk.shared.dir.root())
    }

    /// Figures for people.
    pub fn stats(&self, may: &MayBlock) -> CacheStats {
        self.stats_of(self.disks.iter().map(|disk| disk.stats(may)).collect())
    }

    /// As [`NodeCache::stats`], for a task. What does not answer is not waited for.
    pub async fn stats_in_turn(&self) -> CacheStats {
        let mut disks = Vec::new();
        for disk in &self.disks {
            let _turn = turn_unless(disk, || disk.shared.is_silent()).await;
            disks.push(in_place(|may| disk.stats(may)));
        }
        self.stats_of(disks)
    }

    fn stats_of(&self, opened: Vec<DiskStats>) -> CacheStats {
        let disks: Vec<DiskStats> = opened.into_iter().chain(self.unopened.clone()).collect();
        CacheStats {
            used_bytes: disks.iter().map(|disk| disk.used_bytes).sum(),
            versions: disks.iter().map(|disk| disk.versions).sum(),
            disks,
        }
    }

    /// What is wrong with its disks, if anything is.
    pub fn problem(&self) -> Option<String> {
        let unopened = self.unopened.iter().filter_map(|disk| disk.problem.clone());
        let mut problems = self.disks.iter().filter_map(|disk| disk.problem()).chain(unopened);
        problems.next()
    }

    /// Whether one of its disks works.
    pub fn works(&self) -> bool {
        self.disks.iter().any(|disk| disk.shared.works())
    }

    /// Makes the metrics follow the disks' health: that one does not answer is no call's outcome.
    pub fn show_health(&self) {
        self.disks.iter().for_each(|disk| disk.shared.show_health());
    }

    /// Makes everything durable and marks the cache as closed in order.
    pub fn close(&self, may: &MayBlock) {
        self.disks.iter().for_each(|disk| disk.close(may));
    }
}
