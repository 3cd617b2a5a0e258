//! Renaming a directory: all below it is copied, then removed. The point of no return is the
//! first removal.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};

use super::draft::{Draft, Operation, Phase};
use super::gates::{DirGates, PATIENCE};
use super::rename::Place;
use super::renaming::RenameRecord;
use super::{WriteError, Writer};
use crate::model::key::{BadName, KEY_MAX_BYTES};
use crate::model::version::{Version, VersionKey};
use crate::namespace::dir::Dir;
use crate::namespace::{LookupError, Node};
use crate::origin::{Condition, ListRequest, OriginError, Stored};

/// Most objects below a directory that is renamed.
const RENAME_MAX: usize = 10_000;
/// Copies, or removals, at once.
const AT_ONCE: usize = 16;
/// How often an object is followed that others replace meanwhile.
const CHASES_MAX: u32 = 3;

/// What a copy and a removal cost at this origin, as far as was seen.
pub(super) struct RenameRate {
    micros: AtomicU64,
}

impl Default for RenameRate {
    fn default() -> Self {
        // Between a server next door and one across a continent.
        Self { micros: AtomicU64::new(30_000) }
    }
}

impl RenameRate {
    fn note(&self, objects: usize, took: Duration) {
        let each = took.as_micros() as u64 * AT_ONCE as u64 / objects.max(AT_ONCE) as u64;
        let before = self.micros.load(Ordering::Relaxed);
        self.micros.store((before * 3 + each) / 4, Ordering::Relaxed);
    }

    fn time_of(&self, objects: usize) -> Duration {
        let rounds = objects.div_ceil(AT_ONCE) as u64;
        Duration::from_micros(self.micros.load(Ordering::Relaxed).saturating_mul(rounds))
    }
}

/// An object on its way to another key.
struct Passenger {
    /// In the order of the listing.
    number: usize,
    old: VersionKey,
    new_key: String,
    /// What it replaces there: nothing, but for the marker of an empty directory.
    over: Condition,
    copy: Option<Stored>,
    /// Whether the last copy asked for may have been made without an answer.
    in_doubt: bool,
}

impl Writer {
    pub(super) async fn rename_dir(
        &self,
        source: &Arc<Dir>,
        from: Place<'_>,
        to: Place<'_>,
        no_replace: bool,
    ) -> Result<(), WriteError> {
        let _dirs = DirGates::take(&[from.dir, to.dir], Some(source)).await?;
        // Another rename may have come between, also one of an earlier process that was ended
        // meanwhile.
        match self.names.lookup(from.dir, from.name).await? {
            Node::Dir(found) if Arc::ptr_eq(&found, source) => {}
            _ => return Err(WriteError::Absent),
        }
        let replaces = match self.names.lookup(to.dir, to.name).await {
            Ok(_) if no_replace => return Err(WriteError::Exists),
            Ok(Node::File(_)) => return Err(WriteError::NotDir),
            Ok(Node::Dir(target)) if Arc::ptr_eq(&target, source) => return Ok(()),
            Ok(Node::Dir(target)) => {
                self.check_empty(&target).await?;
                true
            }
            Err(LookupError::Absent) => false,
            Err(error) => return Err(error.into()),
        };
        let (old_prefix, new_prefix) = (source.prefix(), to.dir.prefix().child(to.name));
        if new_prefix.as_str().starts_with(old_prefix.as_str()) {
            return Err(OriginError::Invalid("a directory cannot move into itself".into()).into());
        }
        let drafts = self.drafts_below(source);
        let mut gates = Vec::new();
        for draft in &drafts {
            match self.held(Some(draft), Operation::Move).await {
                Ok(gate) => gates.push((draft, gate)),
                // It lost its name while its gate was waited for.
                Err(_) if !is_named(draft) => continue,
                Err(error) => return Err(error),
            }
            // Under its old key, so that its parts count.
            self.commit_held(draft).await?;
        }
        let mut objects = self.objects_below(old_prefix.as_str(), new_prefix.as_str()).await?;
        if replaces {
            self.see_marker(new_prefix.as_str(), &mut objects).await?;
        }
        let began = Instant::now();
        let planned = objects.iter().map(|of| (&of.old, &*of.new_key, &of.over));
        let record = self.note_rename(planned).await;
        let moved = self.move_all(&record, &mut objects, from).await;
        record.end().await;
        let removed = moved?;
        self.rename_rate.note(objects.len(), began.elapsed());
        let moved: Vec<_> = gates.iter().map(|(draft, _)| *draft).collect();
        self.note_moved(&moved, &objects, from, to).await;
        self.names.drop_kept(source);
        removed
    }

    /// Files under change below a directory, in the order of their keys.
    fn drafts_below(&self, above: &Arc<Dir>) -> Vec<Arc<Draft>> {
        let is_below = |draft: &Draft| {
            let (mut dir, _) = draft.node.place();
            loop {
                if Arc::ptr_eq(&dir, above) {
                    return true;
                }
                match dir.place() {
                    Some((parent, _)) => dir = parent,
                    None => return false,
                }
            }
        };
        let mut all: Vec<_> = self.drafts().values().cloned().collect();
        all.retain(|draft| is_named(draft) && is_below(draft));
        all.sort_by_cached_key(|draft| draft.key());
        all
    }

    async fn objects_below(&self, prefix: &str, new: &str) -> Result<Vec<Passenger>, WriteError> {
        let mut out = Vec::new();
        let mut request = ListRequest {
            prefix: prefix.to_owned(),
            delimited: false,
            token: None,
            max_keys: 1000,
        };
        loop {
            let page = self.names.origin.list(&request).await?;
            for (key, info) in page.objects {
                let etag = match info.etag {
                    Some(etag) => etag,
                    None => {
                        let head = self.names.origin.head(&key).await?;
                        head.etag.ok_or(OriginError::NotS3("an object without ETag".into()))?
                    }
                };
                let new_key = format!("{new}{}", &key[prefix.len()..]);
                if new_key.len() > KEY_MAX_BYTES {
                    return Err(WriteError::BadName(BadName::KeyTooLong));
                }
                let version = Version { etag, size: info.size };
                let bucket = self.names.bucket().clone();
                let old = VersionKey { bucket, key: key.into(), version };
                let number = out.len();
                let over = Condition::Absent;
                out.push(Passenger { number, old, new_key, over, copy: None, in_doubt: false });
            }
            if out.len() > RENAME_MAX || self.rename_rate.time_of(out.len()) > PATIENCE {
                return Err(WriteError::TooMuch);
            }
            request.token = page.next;
            if request.token.is_none() {
                return Ok(out);
            }
        }
    }

    /// An empty directory is replaced, and so is its marker, by that of the one that is moved.
    async fn see_marker(&self, marker: &str, objects: &mut [Passenger]) -> Result<(), WriteError> {
        let Some(object) = objects.iter_mut().find(|object| object.new_key == marker) else {
            return Ok(());
        };
        if let Some(present) = self.present(marker).await?
            && present.size == 0
        {
            object.over = present.etag.map_or(Condition::Absent, Condition::Matches);
        }
        Ok(())
    }

    /// The outer error: nothing has another name; the inner one: some have both.
    async fn move_all(
        &self,
        record: &RenameRecord,
        objects: &mut [Passenger],
        from: Place<'_>,
    ) -> Result<Result<(), WriteError>, WriteError> {
        self.copy_all(record, objects).await?;
        if let Err(error) = self.keep_parent(from.dir, from.name).await {
            self.undo(record, objects).await;
            return Err(error);
        }
        self.remove_all(record, objects).await
    }

    /// Copies all; after a failure only what was there before is there.
    async fn copy_all(
        &self,
        record: &RenameRecord,
        objects: &mut [Passenger],
    ) -> Result<(), WriteError> {
        let copies = objects.iter_mut().map(|object| self.copy_one(record, object).boxed());
        let Err(error) = all(copies.collect()).await else { return Ok(()) };
        self.undo(record, objects).await;
        // Somebody made a name below the new place.
        Err(if error.is_conflict() { WriteError::NotEmpty } else { error })
    }

    /// Removes the copies that this rename made; a marker that was replaced is as good as before.
    async fn undo(&self, record: &RenameRecord, objects: &[Passenger]) {
        if objects.iter().any(|object| object.in_doubt) {
            record.leave();
        }
        let made = objects.iter().filter(|object| object.over == Condition::Absent);
        let made = made.filter_map(|object| {
            let etag = object.copy.as_ref()?.etag.as_ref()?;
            Some(self.remove_version(&object.new_key, etag).boxed())
        });
        if let Err(error) = all(made.collect()).await {
            tracing::warn!(%error, "copies of a rename that failed stay");
            record.leave();
        }
    }

    async fn copy_one(
        &self,
        record: &RenameRecord,
        object: &mut Passenger,
    ) -> Result<(), WriteError> {
        for _ in 0..CHASES_MAX {
            let target = match object.copy.as_ref().and_then(|copy| copy.etag.clone()) {
                Some(etag) => Condition::Matches(etag),
                None => object.over.clone(),
            };
            record.copying(object.number, &object.old.version).await;
            let copied = self.copy(&object.old, &object.new_key, &target).await;
            object.in_doubt = copied.as_ref().is_err_and(WriteError::is_transient);
            match copied {
                Ok(copy) => {
                    record.copied(object.number, &copy).await;
                    object.copy = Some(copy);
                    return Ok(());
                }
                // Replaced since it was listed: the newer one goes along.
                Err(WriteError::Origin(OriginError::Changed)) => {
                    match self.names.origin.head(&object.old.key).await {
                        Ok(info) => {
                            let etag = info.etag.ok_or(OriginError::Changed)?;
                            object.old.version = Version { etag, size: info.size };
                        }
                        Err(OriginError::NotFound) => return Ok(()),
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(WriteError::Busy)
    }

    /// Removes all that was copied. The outer error: before the first removal, and undone.
    async fn remove_all(
        &self,
        record: &RenameRecord,
        objects: &mut [Passenger],
    ) -> Result<Result<(), WriteError>, WriteError> {
        let Some((first, rest)) = objects.split_first_mut() else { return Ok(Ok(())) };
        record.pass_point(true).await;
        if let Err(error) = self.remove_one(record, first).await {
            match self.present(&first.old.key).await {
                // It was removed all the same.
                Ok(None) => {}
                Ok(Some(_)) => {
                    record.turn_back().await;
                    self.undo(record, objects).await;
                    return Err(error);
                }
                Err(_) => {
                    record.leave();
                    return Err(error);
                }
            }
        }
        let removals = rest.iter_mut().map(|object| self.remove_one(record, object).boxed());
        let removed = all(removals.collect()).await;
        if removed.is_err() {
            record.leave();
        }
        Ok(removed)
    }

    async fn remove_one(
        &self,
        record: &RenameRecord,
        object: &mut Passenger,
    ) -> Result<(), WriteError> {
        for _ in 0..CHASES_MAX {
            match self.remove_version(&object.old.key, &object.old.version.etag).await {
                Err(error) if error.is_conflict() => self.copy_one(record, object).await?,
                other => return other,
            }
        }
        Err(WriteError::Busy)
    }

    /// The directory and all below it have another place now.
    async fn note_moved(
        &self,
        drafts: &[&Arc<Draft>],
        objects: &[Passenger],
        from: Place<'_>,
        to: Place<'_>,
    ) {
        let by_key: HashMap<&str, &Passenger> =
            objects.iter().map(|object| (&*object.old.key, object)).collect();
        let moved = drafts.iter().map(|draft| (*draft, by_key.get(&*draft.key()).copied()));
        let moved: Vec<_> = moved.collect();
        from.dir.move_dir(from.name, to.dir, to.name);
        for (draft, object) in moved {
            // Only of the version that was stored here the bytes are here.
            let its =
                object.filter(|of| draft.seen() == Condition::Matches(of.old.version.etag.clone()));
            match its.and_then(|object| Some((object, object.copy.as_ref()?))) {
                Some((object, copy)) => {
                    let info = copy.clone().into_info(object.old.version.size, None);
                    draft.node.set_stored(&info);
                    draft.moved(&info);
                    draft.note_down().await;
                }
                None => self.give_name_up(draft).await,
            }
        }
        self.names.drop_kept(from.dir);
        self.names.drop_kept(to.dir);
    }
}

/// Whether a file under change has a name, that can be moved.
fn is_named(draft: &Draft) -> bool {
    !matches!(draft.phase(), Phase::Unlinked | Phase::Superseded)
}

/// Runs all of the work, [`AT_ONCE`] at a time; returns the first failure, at the end.
async fn all(work: Vec<BoxFuture<'_, Result<(), WriteError>>>) -> Result<(), WriteError> {
    let mut running = stream::iter(work).buffer_unordered(AT_ONCE);
    let mut outcome = Ok(());
    while let Some(done) = running.next().await {
        outcome = outcome.and(done);
    }
    outcome
}
