//! Renames that were under way when their process died: undone, or gone on with.
//!
//! A removal by which this is done is that of the version meant, and of one end of the move alone:
//! the other end holds the same bytes then. Where somebody has changed one of the two since, both
//! are left as they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::{Mutex, OwnedRwLockWriteGuard};

use super::leftover::{Moved, RenameLeftover};
use crate::blocking::MayBlock;
use crate::logged::LoggedName;
use crate::model::version::{ETag, VersionKey};
use crate::namespace::Node;
use crate::namespace::dir::Dir;
use crate::origin::{Condition, OriginError};
use crate::write::leftovers::Leftovers;
use crate::write::{WriteError, Writer};

/// Objects at once.
const AT_ONCE: usize = 16;
/// Failures after which the rest of a rename is left to the next session.
const FAILURES_MAX: usize = 100;
/// How many may fail to end a rename before it is left as it is.
const TRIES_MAX: u32 = 5;

/// Renames of one owner.
pub(in crate::write) type Renames = Arc<Mutex<Vec<RenameLeftover>>>;

/// Keeps every name of a mount as it is until the renames of earlier processes have ended: who is
/// asked again for one of them must not come between.
pub struct NamesHeld {
    renames: Vec<Renames>,
    _gate: Option<OwnedRwLockWriteGuard<()>>,
}

impl Writer {
    /// Holds the mount's names, where an earlier process left renames. To be called before the
    /// mount answers anything, and given to [`Writer::work_off`].
    pub fn hold_names(&self, leftovers: &Leftovers) -> Option<NamesHeld> {
        let renames = leftovers.renames(&self.owners());
        if renames.is_empty() {
            return None;
        }
        // Nobody else can have it before the mount answers.
        let gate = self.names.root().names_gate.clone().try_write_owned().ok();
        Some(NamesHeld { renames, _gate: gate })
    }

    /// Ends the renames that earlier processes left, or waits until another mount has.
    pub(in crate::write) async fn end_renames(&self, leftovers: &Leftovers, held: NamesHeld) {
        for renames in &held.renames {
            for left in renames.lock().await.drain(..) {
                self.end_rename(&left).await;
            }
        }
        // Another mount may have ended them: this one has seen what was there before, too.
        for (dir, name) in self.known_names(&leftovers.renamed_keys(&self.owners())) {
            dir.forget(&name);
            self.names.drop_kept(&dir);
        }
    }

    async fn end_rename(&self, left: &RenameLeftover) {
        tracing::info!(
            from = %LoggedName(left.objects.first().map_or("", |moved| &*moved.from)),
            objects = left.objects.len(),
            forward = left.forward,
            "a rename of an earlier run is ended"
        );
        let work = left.objects.iter().map(|moved| self.end_move(left, moved).boxed());
        let work: Vec<BoxFuture<'_, _>> = work.collect();
        let mut running = stream::iter(work).buffer_unordered(AT_ONCE);
        let mut failures = 0;
        while let Some((moved, done)) = running.next().await {
            let Err(error) = done else { continue };
            failures += 1;
            tracing::warn!(
                from = %LoggedName(&moved.from), to = %LoggedName(&moved.to), forward = left.forward, %error,
                "a rename of an earlier run is not ended"
            );
            if error.is_transient() || failures >= FAILURES_MAX {
                break;
            }
        }
        drop(running);
        self.names.cache.at_disk_of(left.path(), |may| note_end(may, left, failures)).await;
    }

    async fn end_move<'a>(
        &self,
        left: &RenameLeftover,
        moved: &'a Moved,
    ) -> (&'a Moved, Result<(), WriteError>) {
        let done = match left.forward {
            true => self.complete_move(left, moved).await,
            false => self.undo_move(left, moved).await,
        };
        // Later uploads of the key are other people's.
        if moved.begun && moved.copied.is_none() && left.tries == 0 {
            // A copy by parts is an upload; what cannot be aborted is logged there.
            let _ = self.abort_begun(&moved.to, left.began).await;
        }
        (moved, done)
    }

    async fn undo_move(&self, left: &RenameLeftover, moved: &Moved) -> Result<(), WriteError> {
        // Where something is replaced, the copy is the point of no return.
        if !moved.begun || moved.over != Condition::Absent {
            return Ok(());
        }
        let Some(copy) = self.present(&moved.to).await? else { return Ok(()) };
        let Some(source) = self.present(&moved.from).await? else {
            stays(moved, "its source is gone");
            return Ok(());
        };
        if !moved.is_source(&source) || !moved.is_copy(&copy, &source, left.began) {
            stays(moved, "somebody has changed it since");
            return Ok(());
        }
        self.remove_unless_changed(&moved.to, copy.etag).await
    }

    async fn complete_move(&self, left: &RenameLeftover, moved: &Moved) -> Result<(), WriteError> {
        let Some(source) = self.present(&moved.from).await? else { return Ok(()) };
        if !moved.is_source(&source) {
            stays(moved, "somebody has changed its source since");
            return Ok(());
        }
        let target = self.present(&moved.to).await?;
        let is_copied =
            target.as_ref().is_some_and(|info| moved.is_copy(info, &source, left.began));
        if !is_copied {
            let over = moved.may_replace(target.as_ref());
            let Some(over) = over.filter(|_| left.tries == 0) else {
                stays(moved, "somebody has changed its target since");
                return Ok(());
            };
            let bucket = self.names.bucket().clone();
            let key = moved.from.as_str().into();
            let old = VersionKey { bucket, key, version: moved.version.clone() };
            match self.copy(&old, &moved.to, &over).await {
                Ok(_) => {}
                Err(WriteError::Origin(OriginError::Changed | OriginError::Conflict)) => {
                    stays(moved, "somebody changes it");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.remove_unless_changed(&moved.from, Some(moved.version.etag.clone())).await
    }

    async fn remove_unless_changed(&self, key: &str, etag: Option<ETag>) -> Result<(), WriteError> {
        let Some(etag) = etag else { return Ok(()) };
        match self.remove_version(key, &etag).await {
            Err(error) if error.is_conflict() => Ok(()),
            done => done,
        }
    }

    /// The names on the way to these keys, as far as their directories are known.
    fn known_names(&self, keys: &[String]) -> Vec<(Arc<Dir>, String)> {
        let root = self.names.root();
        let mut found = BTreeMap::new();
        for key in keys {
            let Some(below) = key.strip_prefix(root.prefix().as_str()) else { continue };
            let mut dir = root.clone();
            for name in below.split('/').filter(|name| !name.is_empty()) {
                found.insert((dir.ino, name.to_owned()), dir.clone());
                match self.names.present(&dir, name) {
                    Some(Ok(Node::Dir(child))) => dir = child,
                    _ => break,
                }
            }
        }
        found.into_iter().map(|((_, name), dir)| (dir, name)).collect()
    }
}

/// Notes how the end of a rename came out.
fn note_end(may: &MayBlock, left: &RenameLeftover, failures: usize) {
    match failures {
        0 => left.forget(may),
        _ if left.tries + 1 >= TRIES_MAX => {
            tracing::error!(
                from = %LoggedName(left.objects.first().map_or("", |moved| &*moved.from)),
                tries = TRIES_MAX,
                "a rename of an earlier run stays half done: look at both names"
            );
            left.forget(may);
        }
        _ => left.note_try(may),
    }
}

fn stays(moved: &Moved, why: &str) {
    tracing::info!(from = %LoggedName(&moved.from), to = %LoggedName(&moved.to), why, "an object of a rename is left as it is");
}
