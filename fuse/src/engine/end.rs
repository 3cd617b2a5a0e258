//! The end of a session: what is still to be stored, within one deadline for all of it, and what
//! could not be.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::session::Session;
use crate::write::staging::Staging;

/// Files given up that are remembered by name; more are not told apart.
const GIVEN_UP_MAX: usize = 1000;

/// A file whose bytes are not at the origin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnstoredFile {
    /// Its key.
    pub key: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Why, in words.
    pub cause: String,
    /// Whether it was given up: its bytes are in `lost/` of the cache directory.
    pub is_given_up: bool,
}

/// What a session knows of files that were not stored.
#[derive(Default)]
pub(super) struct Unstored {
    /// By staging file.
    given_up: Mutex<Vec<(PathBuf, UnstoredFile)>>,
    /// Staging files that an end takes care of, so that a repeated end does not.
    ending: Mutex<HashSet<PathBuf>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Waits for closes that are being stored, until `until`; what is open stays open, and is not
    /// stored. Says whether everything was.
    pub async fn rest(&self, until: Instant) -> bool {
        while self.finishing.load(Ordering::Acquire) > 0 && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            let _ =
                tokio::time::timeout(left.min(Duration::from_millis(50)), self.finished.notified())
                    .await;
        }
        self.finishing.load(Ordering::Acquire) == 0
    }

    /// Tries to store everything that is not, all files at once, and waits until `until`. To be
    /// called when nobody can write any more; it may be repeated. Says whether all is stored; what
    /// is not is told by [`Session::unstored`].
    pub async fn store_all(self: &Arc<Self>, until: Instant) -> bool {
        let dirty = self.modes.writing().into_iter().filter(|staging| staging.is_dirty());
        let stores = dirty.map(|staging| {
            let session = self.clone();
            self.engine.runtime.spawn(async move { session.store(&staging).await })
        });
        let until = tokio::time::Instant::from_std(until);
        // What is late goes on behind.
        let in_time = tokio::time::timeout_at(until, join_all(stores)).await.is_ok();
        in_time && self.rest(until.into_std()).await && self.unstored().is_empty()
    }

    /// Ends the session, by `until`: stores what is left, all files at once, keeps what cannot be
    /// stored, and gives back what it holds. Says whether everything was stored.
    pub async fn shut_down(self: &Arc<Self>, until: Instant) -> bool {
        let writing = self.modes.writing().into_iter();
        let ends =
            writing.filter(|staging| lock(&self.unstored.ending).insert(staging.path().to_owned()));
        // The kernel is gone without closing: as if every handle were closed now.
        let ends = ends.map(|staging| {
            let session = self.clone();
            self.engine.runtime.spawn(async move { session.finish(&staging).await })
        });
        let deadline = tokio::time::Instant::from_std(until);
        let in_time = tokio::time::timeout_at(deadline, join_all(ends)).await.is_ok();
        let stored = in_time && self.rest(until).await;
        self.backings.clear();
        stored && self.unstored().is_empty()
    }

    /// Files whose bytes are not at the origin: what is being written, and what was given up.
    pub fn unstored(&self) -> Vec<UnstoredFile> {
        let given_up = lock(&self.unstored.given_up).clone();
        let mut writing = self.modes.writing();
        writing.retain(|staging| {
            staging.is_dirty() && !given_up.iter().any(|(path, _)| path == staging.path())
        });
        let writing = writing.iter().map(|staging| unstored(staging, false));
        writing.chain(given_up.iter().map(|(_, file)| file.clone())).collect()
    }

    /// Notes whether the end of a file's writing has left its bytes here.
    pub(super) fn note_finished(&self, staging: &Staging) {
        let mut given_up = lock(&self.unstored.given_up);
        if staging.is_dirty() && given_up.len() < GIVEN_UP_MAX {
            given_up.push((staging.path().to_owned(), unstored(staging, true)));
        }
    }
}

fn unstored(staging: &Staging, is_given_up: bool) -> UnstoredFile {
    let cause = if is_given_up { "see the log" } else { "not stored yet" };
    UnstoredFile {
        key: staging.node.key(),
        bytes: staging.size(),
        cause: cause.into(),
        is_given_up,
    }
}
