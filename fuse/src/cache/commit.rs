//! Makes the index follow the files: first the bytes onto the medium, then one commit.
//!
//! The rows of a batch are taken before syncfs, so that the index never names a block whose
//! bytes that syncfs did not cover.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::index::{self, Batch, Index};
use super::records::{ListingRow, UploadRow};
use super::version::{CachedVersion, Shared};
use crate::model::version::VersionKey;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// Longest time that a change waits for its commit.
const EVERY: Duration = Duration::from_millis(500);
/// A commit comes earlier once so many bytes wait for it.
const BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Collects changes; a thread makes them durable in batches.
#[derive(Default)]
pub struct Committer {
    queue: Mutex<Queue>,
    wake: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    versions: HashMap<u64, (Arc<CachedVersion>, BTreeSet<u32>)>,
    removed: Vec<(u64, VersionKey)>,
    listings: HashMap<Vec<u8>, Option<ListingRow>>,
    uploads: HashMap<String, Option<UploadRow>>,
    bytes: u64,
    /// Batches asked for by [`Committer::flush`] and by closing, and batches made.
    asked: u64,
    made: u64,
    closing: bool,
    closed: bool,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.versions.is_empty()
            && self.removed.is_empty()
            && self.listings.is_empty()
            && self.uploads.is_empty()
    }
}

impl Committer {
    pub(super) fn version_changed(
        &self,
        version: &Arc<CachedVersion>,
        segments: Range<u32>,
        bytes: u64,
    ) {
        let mut queue = self.lock();
        if queue.closed {
            // Nobody will take it out; and it would keep the cache directory, which keeps it.
            return;
        }
        let entry = queue.versions.entry(version.id);
        entry.or_insert_with(|| (version.clone(), BTreeSet::new())).1.extend(segments);
        queue.bytes += bytes;
        if queue.bytes > BYTES_MAX {
            self.wake.notify_one();
        }
    }

    pub(super) fn removed(&self, id: u64, key: VersionKey) {
        let mut queue = self.lock();
        queue.versions.remove(&id);
        queue.removed.push((id, key));
    }

    pub(super) fn listing(&self, name: Vec<u8>, row: Option<ListingRow>) {
        self.lock().listings.insert(name, row);
    }

    pub(super) fn upload(&self, id: String, row: Option<UploadRow>) {
        self.lock().uploads.insert(id, row);
    }

    /// A listing that is not committed yet.
    pub(super) fn pending_listing(&self, name: &[u8]) -> Option<Option<ListingRow>> {
        self.lock().listings.get(name).cloned()
    }

    /// Waits until everything queued so far is durable, or its commit failed (which is logged).
    pub fn flush(&self) {
        let mut queue = self.lock();
        // A batch may be under way without what was queued last: that makes two.
        queue.asked = queue.asked.max(queue.made + 2);
        let target = queue.asked;
        self.wake.notify_one();
        while queue.made < target && !queue.closed {
            queue = self.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks the thread to make its last batch and end.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
    }

    /// The thread's work. Calls `committed` with the ids whose removal is durable.
    pub(super) fn run(&self, shared: &Shared, index: &Index, committed: impl Fn(&[u64])) {
        loop {
            let mut queue = self.lock();
            while !queue.closing && queue.asked <= queue.made && queue.bytes <= BYTES_MAX {
                let (back, wait) =
                    self.wake.wait_timeout(queue, EVERY).unwrap_or_else(PoisonError::into_inner);
                queue = back;
                if wait.timed_out() && !queue.is_empty() {
                    break;
                }
            }
            let closing = queue.closing;
            let taken = Queue {
                versions: std::mem::take(&mut queue.versions),
                removed: std::mem::take(&mut queue.removed),
                listings: std::mem::take(&mut queue.listings),
                uploads: std::mem::take(&mut queue.uploads),
                ..Queue::default()
            };
            queue.bytes = 0;
            drop(queue);
            let removed: Vec<u64> = taken.removed.iter().map(|(id, _)| *id).collect();
            if !taken.is_empty() || closing {
                commit(shared, index, taken, closing);
                committed(&removed);
            }
            let mut queue = self.lock();
            queue.made += 1;
            queue.closed = closing;
            if closing {
                queue.versions.clear();
            }
            self.done.notify_all();
            if closing {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn commit(shared: &Shared, index: &Index, taken: Queue, closing: bool) {
    let mut batch = Batch { closing, ..Batch::default() };
    for (id, (version, segments)) in &taken.versions {
        batch.objects.push((*id, version.key.to_bytes(), version.row()));
        for segment in segments {
            batch.segments.push((*id, *segment, version.segment(*segment)));
        }
    }
    for (id, key) in taken.removed {
        batch.removed.push((id, key.to_bytes(), index::segment_count(key.version.size)));
    }
    batch.listings.extend(taken.listings);
    batch.uploads.extend(taken.uploads);
    // A failed sync means that the bytes may be missing: then they are not to be named. They
    // stay usable for this process only.
    if !batch.segments.is_empty() {
        // That it succeeds says nothing: there may have been nothing to write.
        if let Err(error) = shared.dir.sync() {
            shared.note_disk(Err(&error));
            tracing::error!(%error, "cache disk does not sync; the index is not updated");
            return;
        }
    }
    if let Err(error) = index.apply(&batch) {
        tracing::error!(%error, "index not updated; what is new in the cache is for this run only");
    }
}
