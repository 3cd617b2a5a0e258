//! The end of a session: what is still to be stored, within one deadline for all of it, and what
//! could not be.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::session::Session;
use crate::write::WriteError;
use crate::write::draft::Draft;

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
pub(super) struct UnstoredFiles {
    given_up: Mutex<Vec<UnstoredFile>>,
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

    /// Waits until `until` for everything that was closed to be stored; may be repeated. Says
    /// whether all is stored; what is not is told by [`Session::unstored`].
    pub async fn store_all(self: &Arc<Self>, until: Instant) -> bool {
        self.rest(until).await && self.unstored().is_empty()
    }

    /// Ends the session, by `until`: stores what was closed, keeps in `lost/` what was not or
    /// cannot be stored, and gives back what it holds. Says whether everything was stored.
    pub async fn shut_down(self: &Arc<Self>, until: Instant) -> bool {
        let ends = self.writer.open_drafts().into_iter().map(|draft| {
            let session = self.clone();
            // The kernel is gone without closing it.
            self.engine.runtime.spawn(async move {
                let broken_off = session.finishing(session.writer.break_off(&draft)).await;
                if let Some(cause) = broken_off {
                    session.note_given_up(&draft, &cause);
                }
            })
        });
        let deadline = tokio::time::Instant::from_std(until);
        let in_time = tokio::time::timeout_at(deadline, join_all(ends)).await.is_ok();
        let stored = in_time && self.rest(until).await;
        self.backings.clear();
        let (engine, mount) = (&self.engine, &self.settings.names.mount);
        // A disk that does not answer keeps the end waiting no longer than anything else.
        let forget = engine.leftovers.forget_mount(&engine.cache, mount);
        let _ = tokio::time::timeout_at(deadline, forget).await;
        stored && self.unstored().is_empty()
    }

    /// Files whose bytes are not at the origin: what is being written, and what was given up.
    pub fn unstored(&self) -> Vec<UnstoredFile> {
        let mut all = lock(&self.unstored.given_up).clone();
        let writing = self.writer.all_drafts().into_iter().filter(|draft| draft.is_dirty());
        all.extend(writing.map(|draft| UnstoredFile {
            key: draft.key(),
            bytes: draft.size(),
            cause: "not stored yet".into(),
            is_given_up: false,
        }));
        all
    }

    /// Notes that the bytes of a file were left here at the end of its writing.
    pub(super) fn note_given_up(&self, draft: &Draft, cause: &WriteError) {
        let mut given_up = lock(&self.unstored.given_up);
        if given_up.len() < GIVEN_UP_MAX {
            given_up.push(UnstoredFile {
                key: draft.key(),
                bytes: draft.size(),
                cause: cause.to_string(),
                is_given_up: true,
            });
        }
    }
}
