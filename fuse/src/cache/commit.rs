//! Makes the index follow the files: first the bytes onto the medium, then one commit.
//!
//! The rows of a batch are taken before their bytes are synced, so that the index never names a
//! block whose bytes that did not cover. What the index does not take stays queued.

pub(super) mod batch;

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::index::Index;
use super::records::{ListingRow, UploadRow};
use super::shared::Shared;
use super::version::CachedVersion;
use crate::blocking::MayBlock;
use crate::model::version::BucketId;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// Longest time that a change waits for its commit.
const EVERY: Duration = Duration::from_millis(500);
/// A commit comes earlier once so many bytes wait for it.
const BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Listings that wait for an index that takes nothing; what is more is only forgotten there.
const LISTINGS_MAX: usize = 4096;
/// How long an index that failed is left alone: doubled each time, between these.
const BACKOFF: Range<Duration> = Duration::from_millis(500)..Duration::from_secs(8);

/// Collects changes; a thread makes them durable in batches.
#[derive(Default)]
pub(super) struct Committer {
    queue: Mutex<Queue>,
    wake: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    changes: Changes,
    /// Of what is being committed, listings that say nothing, or nothing any more: that somebody is
    /// refused counts from when it is said.
    without_names: HashMap<Vec<u8>, Option<ListingRow>>,
    bytes: u64,
    /// Batches asked for by [`Committer::flush`] and by closing, and batches made.
    asked: u64,
    made: u64,
    /// Whether the index took the last batch.
    failing: bool,
    closing: bool,
    closed: bool,
}

/// What the index is to be told.
#[derive(Default)]
struct Changes {
    versions: HashMap<u64, (Arc<CachedVersion>, BTreeSet<u32>)>,
    removed: BTreeSet<u64>,
    listings: HashMap<Vec<u8>, Option<ListingRow>>,
    uploads: HashMap<String, Option<UploadRow>>,
    verdicts: HashMap<BucketId, Vec<u8>>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.versions.is_empty()
            && self.removed.is_empty()
            && self.listings.is_empty()
            && self.uploads.is_empty()
            && self.verdicts.is_empty()
    }

    /// Listings without names, and those that are to be forgotten.
    fn without_names(&self) -> HashMap<Vec<u8>, Option<ListingRow>> {
        let says_nothing = |row: &Option<ListingRow>| row.iter().all(|row| row.entries.is_empty());
        let listings = self.listings.iter().filter(|(_, row)| says_nothing(row));
        listings.map(|(name, row)| (name.clone(), row.clone())).collect()
    }

    /// Adds what came before these.
    fn add_older(&mut self, older: Self) {
        for (id, (version, segments)) in older.versions {
            self.versions
                .entry(id)
                .or_insert_with(|| (version, BTreeSet::new()))
                .1
                .extend(segments);
        }
        self.removed.extend(older.removed);
        for (name, row) in older.listings {
            self.listings.entry(name).or_insert(row);
        }
        for (id, row) in older.uploads {
            self.uploads.entry(id).or_insert(row);
        }
        for (bucket, row) in older.verdicts {
            self.verdicts.entry(bucket).or_insert(row);
        }
        let more = self.listings.len().saturating_sub(LISTINGS_MAX);
        self.listings
            .values_mut()
            .filter(|row| row.is_some())
            .take(more)
            .for_each(|row| *row = None);
    }
}

impl Committer {
    pub(super) fn version_changed(
        &self,
        version: &Arc<CachedVersion>,
        segments: impl IntoIterator<Item = u32>,
        bytes: u64,
    ) {
        let mut queue = self.lock();
        if queue.closed {
            // Nobody will take it out; and it would keep the cache directory, which keeps it.
            return;
        }
        let entry = queue.changes.versions.entry(version.id);
        entry.or_insert_with(|| (version.clone(), BTreeSet::new())).1.extend(segments);
        queue.bytes += bytes;
        if queue.bytes > BYTES_MAX {
            self.wake.notify_one();
        }
    }

    pub(super) fn removed(&self, id: u64) {
        self.lock().changes.removed.insert(id);
    }

    pub(super) fn listing(&self, name: Vec<u8>, row: Option<ListingRow>) {
        self.lock().changes.listings.insert(name, row);
    }

    pub(super) fn upload(&self, id: String, row: Option<UploadRow>) {
        self.lock().changes.uploads.insert(id, row);
    }

    pub(super) fn verdicts(&self, bucket: BucketId, row: Vec<u8>) {
        self.lock().changes.verdicts.insert(bucket, row);
    }

    /// A listing that is not committed yet.
    pub(super) fn pending_listing(&self, name: &[u8]) -> Option<Option<ListingRow>> {
        let queue = self.lock();
        let later = queue.changes.listings.get(name);
        later.or_else(|| queue.without_names.get(name)).cloned()
    }

    /// Waits until everything queued so far is durable, or its commit failed (which is logged).
    pub(super) fn flush(&self, _: &MayBlock) {
        let (mut queue, target) = self.ask();
        while queue.made < target && !queue.closed {
            queue = self.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Like [`Committer::flush`], but waits no longer than `patience`. Says whether it is done.
    pub(super) fn flush_within(&self, _: &MayBlock, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let (mut queue, target) = self.ask();
        while queue.made < target && !queue.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.done.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Asks for batches that cover all that is queued; says the number of the last of them.
    fn ask(&self) -> (MutexGuard<'_, Queue>, u64) {
        let mut queue = self.lock();
        // A batch may be under way without what was queued last: that makes two.
        queue.asked = queue.asked.max(queue.made + 2);
        let target = queue.asked;
        self.wake.notify_one();
        (queue, target)
    }

    /// While the index takes nothing: forgets what waits for it and is not used by anybody else.
    /// The files are evicted like others, or removed at the next start.
    pub(super) fn let_go(&self) {
        let mut queue = self.lock();
        if queue.failing {
            queue.changes.versions.retain(|_, (version, _)| Arc::strong_count(version) > 1);
        }
    }

    /// Whether the last batch was made: then the index is closed for good.
    fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Asks the thread to make its last batch and end.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
    }

    /// The thread's work. Calls `committed` with the ids whose removal is durable.
    pub(super) fn run(
        &self,
        may: &MayBlock,
        shared: &Shared,
        index: &Index,
        committed: impl Fn(&BTreeSet<u64>),
    ) {
        let mut trouble = Trouble::default();
        loop {
            let closing = self.wait();
            if closing || trouble.may_try() {
                let mut changes = self.take();
                if closing || !changes.is_empty() {
                    let done = batch::commit(may, shared, index, &mut changes, closing);
                    trouble.note(shared, &done);
                    match done {
                        Ok(()) => committed(&changes.removed),
                        Err(_) => self.lock().changes.add_older(changes),
                    }
                }
            }
            let mut queue = self.lock();
            queue.made += 1;
            queue.without_names.clear();
            queue.failing = trouble.is_there();
            queue.closed = closing;
            if closing {
                queue.changes = Changes::default();
            }
            self.done.notify_all();
            if closing {
                return;
            }
        }
    }

    fn take(&self) -> Changes {
        let mut queue = self.lock();
        let changes = std::mem::take(&mut queue.changes);
        queue.without_names = changes.without_names();
        changes
    }

    /// Waits until a batch is due; says whether it is the last.
    fn wait(&self) -> bool {
        let mut queue = self.lock();
        while !queue.closing && queue.asked <= queue.made && queue.bytes <= BYTES_MAX {
            let (back, wait) =
                self.wake.wait_timeout(queue, EVERY).unwrap_or_else(PoisonError::into_inner);
            queue = back;
            if wait.timed_out() && !queue.changes.is_empty() {
                break;
            }
        }
        queue.bytes = 0;
        queue.closing
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What keeps the index from taking anything, and when it is tried again.
#[derive(Default)]
struct Trouble {
    again: Option<(Instant, Duration)>,
}

impl Trouble {
    fn is_there(&self) -> bool {
        self.again.is_some()
    }

    fn may_try(&self) -> bool {
        self.again.is_none_or(|(at, _)| Instant::now() >= at)
    }

    fn note(&mut self, shared: &Shared, done: &Result<(), redb::Error>) {
        let problem = done.as_ref().err().map(|error| {
            let dir = shared.dir.root().display();
            format!("the index of the cache at {dir} takes nothing: {error}")
        });
        if shared.health.note_index(problem.clone()) {
            shared.show_health();
            match &problem {
                Some(problem) => tracing::error!("{problem}"),
                None => tracing::info!("the index of the cache is written again"),
            }
        }
        self.again = problem.map(|_| {
            let wait = self.again.map_or(BACKOFF.start, |(_, wait)| (wait * 2).min(BACKOFF.end));
            (Instant::now() + wait, wait)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocking::MAY;
    use crate::cache::dir::CacheDir;
    use crate::cache::index::Batch;
    use crate::cache::records::ListingEntry;

    /// Whom the origin has refused must not be shown what it had listed to him.
    #[test]
    fn what_is_to_be_forgotten_is_not_there_while_it_is_being_committed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::own(MAY, temp.path(), 0).unwrap();
        let index = Index::open(MAY, &dir).unwrap();
        let (committer, name) = (Committer::default(), b"listing".to_vec());
        let entry = ListingEntry { name: "f".into(), file: None };
        let row = ListingRow { fetched_ms: 1, pages: 1, marker: false, entries: vec![entry] };
        let shown = || match committer.pending_listing(&name) {
            Some(pending) => pending,
            None => index.listing(MAY, &name),
        };
        committer.listing(name.clone(), Some(row.clone()));
        let batch = committer.take();
        let listings = batch.listings.iter().map(|(name, row)| (&name[..], row.as_ref()));
        index.apply(MAY, &Batch { listings: listings.collect(), ..Batch::default() }).unwrap();
        committer.lock().without_names.clear();
        assert_eq!(shown(), Some(row));
        committer.listing(name.clone(), None);
        assert_eq!(shown(), None);
        let _under_way = committer.take();
        assert_eq!(shown(), None);
        index.close(MAY);
    }
}
