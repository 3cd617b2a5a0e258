//! One account of everything that the cache has on its disk, and how much more it may take.
//!
//! Counted are the files of versions, staging files, what is kept in `lost/`, and the index beyond
//! [`INDEX_ALLOWANCE`]. What others have on the file system counts by what they leave free.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::dir::{CacheDir, Free};
use super::evict::Recency;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// How long a look at the file system's free space is believed, less what was set aside since.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Bytes of the index that are not counted, so that a small cache holds more than its index.
pub(super) const INDEX_ALLOWANCE: u64 = 8 * 1024 * 1024;

/// The limits of a cache on one disk, in bytes unless they say otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Most that it holds.
    pub max_size: u64,
    /// What it leaves free.
    pub min_free: u64,
    /// Inodes that it leaves free.
    pub min_free_inodes: u64,
    /// Most that `lost/` is meant to hold.
    pub lost_max: u64,
}

/// What is to be put on the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// Bytes.
    pub bytes: u64,
    /// Files that stay there, as those of versions do.
    pub files: u64,
}

/// The limits that new bytes must keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bound {
    /// Both: what is cached.
    Both,
    /// What is to stay free: what is being written, which nobody can fetch again.
    MinFree,
    /// The size alone: what is on the disk already.
    MaxSize,
}

/// Limits and use of a cache directory.
pub(super) struct Space {
    limits: Limits,
    accounts: Mutex<Accounts>,
}

struct Accounts {
    versions: Recency,
    staging: u64,
    /// By what [`LostRow::whose`] says.
    lost: HashMap<String, u64>,
    index: u64,
    /// Set aside for what is being fetched.
    rooms: u64,
    /// The part of `staging` that the file system does not count as taken yet.
    unwritten: u64,
    /// What was free at a moment, less what was set aside before and since.
    look: Option<(Instant, Free)>,
}

impl Accounts {
    fn lost(&self) -> u64 {
        self.lost.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    fn used(&self) -> u64 {
        let index = self.index.saturating_sub(INDEX_ALLOWANCE);
        [self.staging, self.lost(), index]
            .into_iter()
            .fold(self.versions.total(), u64::saturating_add)
    }
}

impl Space {
    /// An empty account with these limits.
    pub(super) fn new(limits: Limits) -> Self {
        let accounts = Accounts {
            versions: Recency::new(),
            staging: 0,
            lost: HashMap::new(),
            index: 0,
            rooms: 0,
            unwritten: 0,
            look: None,
        };
        Self { limits, accounts: Mutex::new(accounts) }
    }

    /// The limits.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Bytes that everything counted takes.
    pub(super) fn used(&self) -> u64 {
        self.accounts().used()
    }

    /// Bytes that staging files have reserved.
    pub(super) fn staging(&self) -> u64 {
        self.accounts().staging
    }

    /// Bytes in `lost/`, as last counted.
    pub(super) fn lost(&self) -> u64 {
        self.accounts().lost()
    }

    /// Whether `lost/` holds as much as it is meant to. Where there are `others`, nobody counts with more
    /// than half; who has that himself adds nothing, nor does who has something once there are three
    /// quarters: the last one is for those who have lost nothing.
    pub(super) fn lost_is_full(&self, whose: &str, others: bool) -> bool {
        let accounts = self.accounts();
        let most = self.limits.lost_max;
        if !others {
            return accounts.lost() >= most;
        }
        let own = accounts.lost.get(whose).copied().unwrap_or(0);
        let all = accounts.lost.values().map(|bytes| *bytes.min(&(most / 2)));
        let all = all.fold(0, u64::saturating_add);
        own >= most / 2 || all >= if own > 0 { most / 4 * 3 } else { most }
    }

    /// How many versions hold anything.
    pub(super) fn versions(&self) -> usize {
        self.accounts().versions.len()
    }

    /// Lets `with` look at, or change, the order of versions.
    pub(super) fn versions_mut<T>(&self, with: impl FnOnce(&mut Recency) -> T) -> T {
        with(&mut self.accounts().versions)
    }

    /// Notes what `lost/` takes.
    pub(super) fn set_lost(&self, bytes: HashMap<String, u64>) {
        self.accounts().lost = bytes;
    }

    /// Notes that something was put into `lost/`.
    pub(super) fn add_lost(&self, whose: &str, bytes: u64) {
        let mut accounts = self.accounts();
        let lost = accounts.lost.entry(whose.to_owned()).or_default();
        *lost = lost.saturating_add(bytes);
    }

    /// Notes the size of the index.
    pub(super) fn set_index(&self, bytes: u64) {
        self.accounts().index = bytes;
    }

    /// Bytes that may be added within all limits, without evicting anything.
    pub(super) fn available(&self, dir: &CacheDir) -> u64 {
        let mut accounts = self.accounts();
        match self.spare_inodes(&mut accounts, dir) {
            0 => 0,
            _ => self.room(&mut accounts, dir, Bound::Both),
        }
    }

    /// Bytes that there would be for what is being written if all versions gave way.
    pub(super) fn attainable(&self, dir: &CacheDir) -> u64 {
        let mut accounts = self.accounts();
        accounts.versions.total().saturating_add(self.room_by_disk(&mut accounts, dir))
    }

    /// Bytes for what is being written, taken and not: all but what gives way to nothing.
    pub(super) fn writable(&self, dir: &CacheDir) -> u64 {
        let mut accounts = self.accounts();
        let room = self.room_by_disk(&mut accounts, dir);
        accounts.versions.total().saturating_add(accounts.staging).saturating_add(room)
    }

    /// Whether more inodes are lacking than evictions can bring: others have them.
    pub(super) fn is_out_of_inodes(&self, dir: &CacheDir) -> bool {
        let mut accounts = self.accounts();
        let free = accounts.free(dir).inodes;
        let needed = self.limits.min_free_inodes.saturating_add(1);
        needed.saturating_sub(free) > accounts.versions.len() as u64
    }

    fn room(&self, accounts: &mut Accounts, dir: &CacheDir, bound: Bound) -> u64 {
        let by_size =
            self.limits.max_size.saturating_sub(accounts.used().saturating_add(accounts.rooms));
        match bound {
            Bound::MaxSize => by_size,
            Bound::MinFree => self.room_by_disk(accounts, dir),
            Bound::Both => by_size.min(self.room_by_disk(accounts, dir)),
        }
    }

    fn room_by_disk(&self, accounts: &mut Accounts, dir: &CacheDir) -> u64 {
        accounts.free(dir).bytes.saturating_sub(self.limits.min_free)
    }

    fn spare_inodes(&self, accounts: &mut Accounts, dir: &CacheDir) -> u64 {
        accounts.free(dir).inodes.saturating_sub(self.limits.min_free_inodes)
    }

    /// Sets aside what is needed for what is being fetched if the limits are then still kept.
    pub(super) fn reserve(&self, dir: &CacheDir, need: Need, bound: Bound) -> bool {
        let mut accounts = self.accounts();
        let fits = need.bytes <= self.room(&mut accounts, dir, bound)
            && (need.files == 0 || need.files <= self.spare_inodes(&mut accounts, dir));
        if fits {
            accounts.rooms += need.bytes;
            accounts.take(need);
        }
        fits
    }

    /// Counts that a version holds so many bytes more, and as many less of `left`, which were set
    /// aside by [`Space::reserve`]: at no moment both, or a cache that is nearly full would refuse
    /// what fits.
    pub(super) fn fill(&self, version: u64, bytes: i64, left: &AtomicU64) {
        let mut accounts = self.accounts();
        accounts.versions.change(version, bytes);
        let aside = left.load(Ordering::Relaxed).min(bytes.max(0).unsigned_abs());
        left.fetch_sub(aside, Ordering::Relaxed);
        accounts.rooms = accounts.rooms.saturating_sub(aside);
    }

    /// Gives back what was set aside by [`Space::reserve`].
    pub(super) fn unreserve(&self, bytes: u64) {
        let mut accounts = self.accounts();
        accounts.rooms = accounts.rooms.saturating_sub(bytes);
    }

    /// Gives a staging file `needed` bytes, and up to `step` where there is plenty. Says how many.
    pub(super) fn claim(
        &self,
        dir: &CacheDir,
        needed: u64,
        step: u64,
        bound: Bound,
    ) -> Option<u64> {
        let mut accounts = self.accounts();
        let room = self.room(&mut accounts, dir, bound);
        if needed > room {
            return None;
        }
        let given = match bound {
            // Others want steps, too.
            Bound::Both => needed.max(step.min(room / 8)),
            _ => needed,
        };
        accounts.staging += given;
        accounts.unwritten += given;
        accounts.take(Need { bytes: given, files: 0 });
        Some(given)
    }

    /// Notes how many of a staging file's bytes the file system does not count as taken yet.
    pub(super) fn set_unwritten(&self, before: u64, now: u64) {
        let mut accounts = self.accounts();
        accounts.unwritten = accounts.unwritten.saturating_sub(before).saturating_add(now);
    }

    /// Takes back bytes from a staging file, of which `unwritten` were not taken on the disk.
    pub(super) fn unclaim(&self, bytes: u64, unwritten: u64) {
        let mut accounts = self.accounts();
        accounts.staging = accounts.staging.saturating_sub(bytes);
        accounts.unwritten = accounts.unwritten.saturating_sub(unwritten);
        accounts.look = None;
    }

    /// Looks at the disk again at the next question, as after an eviction.
    pub(super) fn look_again(&self) {
        self.accounts().look = None;
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accounts {
    fn free(&mut self, dir: &CacheDir) -> Free {
        if let Some((at, free)) = self.look
            && at.elapsed() <= LOOK_EVERY
        {
            return free;
        }
        let aside = self.rooms.saturating_add(self.unwritten);
        let free = dir.free().unwrap_or(Free { bytes: 0, inodes: 0 });
        let free = Free { bytes: free.bytes.saturating_sub(aside), ..free };
        self.look = Some((Instant::now(), free));
        free
    }

    fn take(&mut self, need: Need) {
        if let Some((_, free)) = &mut self.look {
            free.bytes = free.bytes.saturating_sub(need.bytes);
            free.inodes = free.inodes.saturating_sub(need.files);
        }
    }
}
