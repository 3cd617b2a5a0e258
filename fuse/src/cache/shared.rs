//! What all versions on a disk share.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::commit::Committer;
use super::dir::CacheDir;
use super::health::DiskHealth;
use super::space::Space;
use crate::blocking::{Call, Turns};
use crate::metrics::Metrics;
use crate::sync::atomic::{AtomicI64, Ordering};

/// A disk that has not answered a call for so long counts as failing until it does.
const ANSWERS: Duration = Duration::from_secs(30);

/// What all versions on a disk share. The directory's lock goes with the last of them.
pub(super) struct Shared {
    pub(super) dir: CacheDir,
    pub(super) space: Space,
    pub(super) committer: Committer,
    pub(super) metrics: Arc<Metrics>,
    pub(super) epoch: u32,
    /// Number of the disk.
    pub(super) number: u8,
    pub(super) health: DiskHealth,
    /// Of tasks that read or write something small.
    pub(super) calls: Arc<Turns>,
    /// Of the engine's threads that may wait.
    pub(super) threads: Arc<Turns>,
    /// Of those who store what was fetched.
    pub(super) stores: Arc<Turns>,
    /// Bytes that the metric counts for it.
    pub(super) noted: AtomicI64,
}

impl Shared {
    /// Makes the metric follow what is used.
    pub(super) fn note_use(&self) {
        let used = i64::try_from(self.space.used()).unwrap_or(i64::MAX);
        let before = self.noted.swap(used, Ordering::Relaxed);
        self.metrics.cache_bytes.add(used - before);
    }

    /// Notes how a call of the disk ended.
    pub(super) fn note_disk(&self, done: Result<(), &io::Error>) {
        if self.health.note(self.dir.root(), done) {
            self.show_health();
        }
    }

    /// A call of the disk begins.
    pub(super) fn call(&self) -> Call<'_> {
        self.dir.folder().call()
    }

    /// Whether the disk does not answer.
    pub(super) fn is_silent(&self) -> bool {
        self.silence() > ANSWERS
    }

    /// How long a call of the disk has lasted that is not answered yet.
    pub(super) fn silence(&self) -> Duration {
        self.dir.folder().unanswered().longest()
    }

    /// Whether the disk works.
    pub(super) fn works(&self) -> bool {
        self.health.works() && !self.is_silent()
    }

    /// What is wrong with the disk, if anything is: it fails, or does not answer.
    pub(super) fn problem(&self) -> Option<String> {
        self.health.problem().or_else(|| {
            let longest = self.silence();
            let (dir, secs) = (self.dir.root().display(), longest.as_secs());
            (longest > ANSWERS)
                .then(|| format!("the cache's disk at {dir} has not answered for {secs} s"))
        })
    }

    /// Makes the metric follow the disk's health.
    pub(super) fn show_health(&self) {
        let dir = self.dir.root().display().to_string();
        let fails = i64::from(!self.works());
        self.metrics.cache_disk_failing.with_label_values(&[&dir]).set(fails);
    }
}
