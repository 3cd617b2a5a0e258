//! Renaming a file: a copy on the server, then a removal.
//!
//! The point of no return is the copy where it takes the place of another file, else the removal.
//! Before it, what this rename made is undone; after it the rename goes on.

use std::sync::Arc;

use super::draft::{Draft, Operation};
use super::gates::DirGates;
use super::names::FileGate;
use super::renaming::RenameRecord;
use super::{WriteError, Writer};
use crate::logged::LoggedName;
use crate::model::version::{ETag, ObjectInfo, Version, VersionKey};
use crate::namespace::dir::Dir;
use crate::namespace::file::FileNode;
use crate::namespace::{LookupError, Node};
use crate::origin::{Condition, CopySource, OriginError, Stored, retry};

/// How often a rename follows names that others change meanwhile.
const CHASES_MAX: u32 = 4;

/// A place in the tree.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The directory.
    pub dir: &'a Arc<Dir>,
    /// The name in it.
    pub name: &'a str,
}

/// The file that is renamed, and the one that it takes the place of.
struct Pair {
    node: Arc<FileNode>,
    draft: Option<Arc<Draft>>,
    replaced: Option<Arc<FileNode>>,
    replaced_draft: Option<Arc<Draft>>,
}

/// A try to rename.
#[derive(Clone, Copy)]
struct Step<'a> {
    pair: &'a Pair,
    from: Place<'a>,
    to: Place<'a>,
    record: &'a RenameRecord,
}

/// How one try ended.
enum Try {
    Done,
    /// A name leads to something else by now.
    Again(WriteError),
}

impl Writer {
    /// Renames a file or a directory.
    ///
    /// # Errors
    /// [`WriteError`]. Then the names are as they were or, where the origin refuses a removal
    /// after the point of no return, both are there.
    pub async fn rename(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        no_replace: bool,
    ) -> Result<(), WriteError> {
        self.check_new(to.dir, to.name)?;
        match self.names.lookup(from.dir, from.name).await? {
            Node::Dir(source) => self.rename_dir(&source, from, to, no_replace).await,
            Node::File(_) => self.rename_file(from, to, no_replace).await,
        }
    }

    async fn rename_file(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        no_replace: bool,
    ) -> Result<(), WriteError> {
        let _dirs = DirGates::take(&[from.dir, to.dir], None).await?;
        let mut last = WriteError::Busy;
        for _ in 0..CHASES_MAX {
            let Some(pair) = self.pair(from, to, no_replace).await? else {
                if Arc::ptr_eq(from.dir, to.dir) && from.name == to.name {
                    return Ok(());
                }
                // Another rename came between the looks at the two names.
                continue;
            };
            let gates = self.gates_of(&pair).await;
            let replaced_there =
                pair.replaced.as_ref().is_none_or(|node| to.dir.shows(to.name, node));
            if !from.dir.shows(from.name, &pair.node) || !replaced_there {
                continue;
            }
            let _gates = gates?;
            if let Some(draft) = &pair.draft {
                // Under its old key, so that its parts count.
                self.commit_held(draft).await?;
            }
            match self.move_object(&pair, from, to, no_replace).await? {
                Try::Done => return Ok(()),
                Try::Again(error) => last = error,
            }
        }
        Err(last)
    }

    /// What is renamed onto what. `None`: both names led to one file.
    async fn pair(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        no_replace: bool,
    ) -> Result<Option<Pair>, WriteError> {
        let Node::File(node) = self.names.lookup(from.dir, from.name).await? else {
            return Err(WriteError::Busy);
        };
        let replaced = match self.names.lookup(to.dir, to.name).await {
            Ok(_) if no_replace => return Err(WriteError::Exists),
            Ok(Node::Dir(_)) => return Err(WriteError::IsDir),
            Ok(Node::File(other)) => Some(other),
            Err(LookupError::Absent) => None,
            Err(error) => return Err(error.into()),
        };
        if replaced.as_ref().is_some_and(|other| Arc::ptr_eq(&node, other)) {
            return Ok(None);
        }
        let draft = self.draft(node.ino);
        let replaced_draft = replaced.as_ref().and_then(|node| self.draft(node.ino));
        Ok(Some(Pair { node, draft, replaced, replaced_draft }))
    }

    /// The gates of both files, in the order of their keys.
    async fn gates_of<'a>(&self, pair: &'a Pair) -> Result<[Option<FileGate<'a>>; 2], WriteError> {
        let both = (pair.draft.as_deref(), Operation::Move);
        let other = (pair.replaced_draft.as_deref(), Operation::Unlink);
        let key = |of: Option<&Draft>| of.map(Draft::key);
        let (first, second) =
            if key(both.0) <= key(other.0) { (both, other) } else { (other, both) };
        let first = self.held(first.0, first.1).await?;
        Ok([first, self.held(second.0, second.1).await?])
    }

    async fn move_object(
        &self,
        pair: &Pair,
        from: Place<'_>,
        to: Place<'_>,
        no_replace: bool,
    ) -> Result<Try, WriteError> {
        let Some(old) = self.names.version_key(&pair.node) else { return Err(WriteError::Busy) };
        let new_key = to.dir.prefix().key_of(to.name);
        let target = seen_of(pair.replaced.as_deref(), pair.replaced_draft.as_deref());
        let object = (&old, &*new_key, &target);
        let record = self.note_rename(std::iter::once(object)).await;
        let step = Step { pair, from, to, record: &record };
        let done = match self.copy_noted(&step, object).await {
            Ok(copy) => self.leave_source(&step, &old, copy).await,
            Err(error) => self.not_copied(&step, no_replace, error).await,
        };
        record.end().await;
        done
    }

    /// Copies; where that takes the place of another file, it is the point of no return.
    async fn copy_noted(
        &self,
        step: &Step<'_>,
        (old, new_key, target): (&VersionKey, &str, &Condition),
    ) -> Result<Stored, WriteError> {
        if step.pair.replaced.is_some() {
            self.keep_parent(step.from.dir, step.from.name).await?;
            step.record.pass_point(false).await;
        }
        step.record.copying(0, &old.version).await;
        let copy = self.copy(old, new_key, target).await?;
        step.record.copied(0, &copy).await;
        Ok(copy)
    }

    async fn not_copied(
        &self,
        step: &Step<'_>,
        no_replace: bool,
        error: WriteError,
    ) -> Result<Try, WriteError> {
        let Step { pair, from, to, record } = *step;
        match error {
            WriteError::Origin(OriginError::Changed) => {
                self.lose_name(from.dir, from.name, pair.draft.as_deref()).await;
                Ok(Try::Again(OriginError::Changed.into()))
            }
            WriteError::Origin(OriginError::Conflict | OriginError::NotFound) => {
                self.lose_name(to.dir, to.name, pair.replaced_draft.as_deref()).await;
                match no_replace {
                    true => Err(WriteError::Exists),
                    false => Ok(Try::Again(OriginError::Conflict.into())),
                }
            }
            error => {
                if error.is_transient() {
                    // It may be there after all.
                    record.leave();
                }
                to.dir.forget(to.name);
                Err(error)
            }
        }
    }

    /// Removes what was copied; nothing that was stored there since.
    async fn leave_source(
        &self,
        step: &Step<'_>,
        old: &VersionKey,
        copy: Stored,
    ) -> Result<Try, WriteError> {
        let Step { pair, from, to, record } = *step;
        let removed = match pair.replaced.is_some() {
            true => Ok(()),
            false => self.keep_parent(from.dir, from.name).await,
        };
        let removed = match removed {
            Ok(()) => {
                record.pass_point(false).await;
                self.remove_version(&old.key, &old.version.etag).await
            }
            error => error,
        };
        let info = copy.into_info(old.version.size, None);
        match removed {
            Ok(()) => {
                self.note_renamed(pair, from, to, info).await;
                Ok(Try::Done)
            }
            Err(error) => self.after_refusal(step, old, info, error).await,
        }
    }

    /// Removes a version, again where the origin does not answer.
    pub(super) async fn remove_version(&self, key: &str, etag: &ETag) -> Result<(), WriteError> {
        let origin = &self.names.origin;
        let mut tries = 0;
        loop {
            tries += 1;
            match origin.delete(key, &Condition::Matches(etag.clone())).await {
                Ok(()) | Err(OriginError::NotFound) => return Ok(()),
                Err(error) if error.is_transient() && tries < retry::BODY_TRIES => {
                    tokio::time::sleep(retry::backoff(tries)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The copy is there, and its source could not be removed.
    async fn after_refusal(
        &self,
        step: &Step<'_>,
        old: &VersionKey,
        copy: ObjectInfo,
        error: WriteError,
    ) -> Result<Try, WriteError> {
        let Step { pair, from, to, record } = *step;
        let changed = error.is_conflict();
        if pair.replaced.is_none() && !changed {
            match self.present(&old.key).await {
                // It was removed all the same.
                Ok(None) => {
                    self.note_renamed(pair, from, to, copy).await;
                    return Ok(Try::Done);
                }
                // Nothing was replaced: as if it had not been tried.
                Ok(Some(_)) => self.take_back(step, copy.etag).await,
                Err(_) => record.leave(),
            }
            to.dir.forget(to.name);
            return Err(error);
        }
        to.dir.insert_file(to.name, copy, None);
        self.names.drop_kept(to.dir);
        if let Some(draft) = &pair.replaced_draft {
            self.note_replaced(draft).await;
        }
        if changed {
            // The newer version belongs under the new name, too.
            self.lose_name(from.dir, from.name, pair.draft.as_deref()).await;
            return Ok(Try::Again(WriteError::Busy));
        }
        record.leave();
        Err(error)
    }

    /// Removes the copy again.
    async fn take_back(&self, step: &Step<'_>, copy: Option<ETag>) {
        step.record.turn_back().await;
        let Some(etag) = copy else { return };
        let key = step.to.dir.prefix().key_of(step.to.name);
        if let Err(error) = self.remove_version(&key, &etag).await
            && !error.is_conflict()
        {
            tracing::warn!(key = %LoggedName(&key), %error, "the copy of a rename that failed stays");
            step.record.leave();
        }
    }

    async fn note_renamed(&self, pair: &Pair, from: Place<'_>, to: Place<'_>, info: ObjectInfo) {
        let node = &pair.node;
        // The kernel keeps the inode under the new name: the bytes are the same, so may we.
        node.set_stored(&info);
        node.moved(to.dir, to.name);
        from.dir.remove(from.name);
        match pair.draft.as_ref().filter(|draft| !draft.is_sealed()) {
            Some(draft) => {
                draft.moved(&info);
                draft.note_down().await;
                to.dir.begin_writing(to.name, node);
            }
            None => to.dir.insert_file(to.name, info, Some(node)),
        }
        self.names.drop_kept(from.dir);
        self.names.drop_kept(to.dir);
        // After the names: whoever is dropped here leaves none that leads to what was replaced.
        if let Some(draft) = &pair.replaced_draft {
            self.note_replaced(draft).await;
        }
    }

    /// Copies an object over `target`, and what is cached of it; the tag of the copy is known
    /// afterwards.
    pub(super) async fn copy(
        &self,
        old: &VersionKey,
        new_key: &str,
        target: &Condition,
    ) -> Result<Stored, WriteError> {
        let origin = &self.names.origin;
        let Version { etag, size } = &old.version;
        let source = CopySource { key: old.key.to_string(), etag: etag.clone(), size: *size };
        let mut stored = match origin.copy(&source, new_key, target).await {
            Ok(stored) => stored,
            Err(error) => self.copied_after_all(&source, new_key, target, error).await?,
        };
        if stored.etag.is_none() {
            stored = stored_of(origin.head(new_key).await?);
        }
        if let Some(etag) = &stored.etag {
            let version = Version { etag: etag.clone(), size: *size };
            let new = VersionKey { bucket: old.bucket.clone(), key: new_key.into(), version };
            self.names.cache.moved(old, &new).await;
        }
        Ok(stored)
    }

    /// After an error of a copy: whether it was made all the same. A copy carries the metadata of
    /// its source, its writer's nonce with it.
    async fn copied_after_all(
        &self,
        source: &CopySource,
        new_key: &str,
        target: &Condition,
        error: OriginError,
    ) -> Result<Stored, OriginError> {
        if !error.is_transient() && !matches!(error, OriginError::Conflict) {
            return Err(error);
        }
        let origin = &self.names.origin;
        let (Ok(from), Ok(copy)) = (origin.head(&source.key).await, origin.head(new_key).await)
        else {
            return Err(error);
        };
        let is_new = match target {
            Condition::Matches(before) => copy.etag.as_ref() != Some(before),
            Condition::Absent | Condition::Always => true,
        };
        let alike = copy.size == source.size && copy.writer == from.writer;
        let same = copy.writer.is_some() || copy.etag.as_ref() == Some(&source.etag);
        let is_source = from.etag.as_ref() == Some(&source.etag);
        if is_new && alike && same && is_source { Ok(stored_of(copy)) } else { Err(error) }
    }
}

/// What is known to be under a name: a rename replaces that, and nothing else.
fn seen_of(node: Option<&FileNode>, draft: Option<&Draft>) -> Condition {
    match (node, draft) {
        (None, _) => Condition::Absent,
        (_, Some(draft)) => draft.seen(),
        (Some(node), None) => {
            node.version().map_or(Condition::Always, |v| Condition::Matches(v.etag))
        }
    }
}

fn stored_of(info: ObjectInfo) -> Stored {
    Stored { etag: info.etag, version_id: info.version_id, mtime: info.mtime }
}
