//! Making and removing names.

use std::sync::Arc;

use super::draft::{Draft, Operation};
use super::gates::{DirGates, PATIENCE};
use super::{WriteError, Writer, new_nonce};
use crate::model::key::{self, KEY_MAX_BYTES};
use crate::namespace::Node;
use crate::namespace::dir::Dir;
use crate::namespace::file::FileNode;
use crate::namespace::pages;
use crate::origin::{Condition, OriginError, UploadBody, WriteIntent};

/// How often a removal follows a name that others replace meanwhile.
const CHASES_MAX: u32 = 3;

/// A file's gate, held.
pub(super) type FileGate<'a> = tokio::sync::MutexGuard<'a, ()>;

impl Writer {
    /// Checks that a file or directory of this name can be made.
    ///
    /// # Errors
    /// [`WriteError::BadName`].
    pub fn check_new(&self, dir: &Dir, name: &str) -> Result<(), WriteError> {
        key::check_name(name).map_err(WriteError::BadName)?;
        if dir.prefix().as_str().len() + name.len() + 1 > KEY_MAX_BYTES {
            return Err(WriteError::BadName(key::BadName::KeyTooLong));
        }
        Ok(())
    }

    /// Makes a directory: a marker object, as other S3 tools make them.
    ///
    /// # Errors
    /// [`WriteError::Exists`], or what the origin reports.
    pub async fn mkdir(&self, dir: &Arc<Dir>, name: &str) -> Result<(), WriteError> {
        self.check_new(dir, name)?;
        let _dirs = DirGates::take(&[dir], None).await?;
        match self.names.lookup(dir, name).await {
            Ok(_) => return Err(WriteError::Exists),
            Err(crate::namespace::LookupError::Absent) => {}
            Err(error) => return Err(error.into()),
        }
        let marker = dir.prefix().child(name);
        match self.put_marker(marker.as_str()).await {
            Err(OriginError::Conflict) => return Err(WriteError::Exists),
            other => other?,
        }
        dir.insert_dir(name);
        self.names.drop_kept(dir);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`WriteError::NotEmpty`], or what the origin reports.
    pub async fn rmdir(&self, dir: &Arc<Dir>, name: &str) -> Result<(), WriteError> {
        let Node::Dir(child) = self.names.lookup(dir, name).await? else {
            return Err(WriteError::NotDir);
        };
        let _dirs = DirGates::take(&[dir], Some(&child)).await?;
        self.check_empty(&child).await?;
        self.keep_parent(dir, name).await?;
        self.names.origin.delete(child.prefix().as_str(), &Condition::Always).await?;
        dir.remove(name);
        self.names.drop_kept(dir);
        self.names.drop_kept(&child);
        Ok(())
    }

    /// Whether nothing but its marker is in a directory: nothing at the origin, and nothing
    /// that is being written here.
    pub(super) async fn check_empty(&self, dir: &Arc<Dir>) -> Result<(), WriteError> {
        if dir.has_writers() {
            return Err(WriteError::NotEmpty);
        }
        match pages::has_below(&*self.names.origin, &dir.prefix(), true).await? {
            true => Err(WriteError::NotEmpty),
            false => Ok(()),
        }
    }

    /// Removes a file. Descriptors that are open go on with what they have.
    ///
    /// # Errors
    /// What the origin reports; then nothing has changed.
    pub async fn unlink(&self, dir: &Arc<Dir>, name: &str) -> Result<(), WriteError> {
        let _dirs = DirGates::take(&[dir], None).await?;
        let mut last = WriteError::Busy;
        for _ in 0..CHASES_MAX {
            let node = match self.names.lookup(dir, name).await? {
                Node::File(node) => node,
                Node::Dir(_) => return Err(WriteError::IsDir),
            };
            let draft = self.draft(node.ino);
            let gate = self.held(draft.as_deref(), Operation::Unlink).await;
            if !dir.shows(name, &node) {
                // It went another way while its gate was waited for.
                continue;
            }
            let _gate = gate?;
            self.keep_parent(dir, name).await?;
            match self.remove_object(&node, draft.as_deref()).await {
                Ok(()) => {
                    self.note_unlinked(dir, name, draft.as_deref()).await;
                    if let Some(key) = self.names.version_key(&node) {
                        self.names.cache.discard(&key).await;
                    }
                    return Ok(());
                }
                // Somebody stored another version under the name: that is what rm removes now.
                Err(error) if error.is_conflict() => {
                    self.lose_name(dir, name, draft.as_deref()).await;
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The gate of a file under change, once an operation on it can be carried out. `None`: it is
    /// not under change.
    pub(super) async fn held<'a>(
        &self,
        draft: Option<&'a Draft>,
        operation: Operation,
    ) -> Result<Option<FileGate<'a>>, WriteError> {
        let Some(draft) = draft else { return Ok(None) };
        let gate = tokio::time::timeout(PATIENCE, draft.gate.lock()).await;
        let gate = gate.map_err(|_| WriteError::Busy)?;
        self.settled(draft, operation).await?;
        Ok(Some(gate))
    }

    /// Removes the object that a node shows, if the origin has it from anybody. Nothing that
    /// others stored meanwhile.
    async fn remove_object(
        &self,
        node: &FileNode,
        draft: Option<&Draft>,
    ) -> Result<(), WriteError> {
        let seen = match (draft, node.version()) {
            (Some(draft), _) => draft.seen(),
            (None, Some(version)) => Condition::Matches(version.etag),
            (None, None) => Condition::Always,
        };
        if seen == Condition::Absent {
            // Nothing of it was ever stored; what others stored meanwhile is not what was removed.
            return Ok(());
        }
        if let Some(draft) = draft {
            draft.removing();
        }
        self.delete(&node.key(), &seen, draft).await
    }

    async fn delete(
        &self,
        key: &str,
        seen: &Condition,
        draft: Option<&Draft>,
    ) -> Result<(), WriteError> {
        let unchanged = || draft.map_or((), Draft::unchanged);
        let error = match self.names.origin.delete(key, seen).await {
            Ok(()) | Err(OriginError::NotFound) => return Ok(()),
            Err(error) => error,
        };
        if !error.is_transient() {
            unchanged();
            return Err(error.into());
        }
        // It may have been removed all the same.
        match self.names.origin.head(key).await {
            Err(OriginError::NotFound) => Ok(()),
            Ok(_) => {
                unchanged();
                Err(error.into())
            }
            Err(_) => Err(error.into()),
        }
    }

    /// Notes that a name leads to what somebody else stored.
    pub(super) async fn lose_name(&self, dir: &Dir, name: &str, draft: Option<&Draft>) {
        match draft {
            Some(draft) => self.give_name_up(draft).await,
            None => dir.forget(name),
        }
    }

    /// Takes a name away whose object is gone.
    async fn note_unlinked(&self, dir: &Arc<Dir>, name: &str, draft: Option<&Draft>) {
        dir.remove(name);
        self.names.drop_kept(dir);
        if let Some(draft) = draft {
            self.note_replaced(draft).await;
        }
    }

    /// As the settling of a doubt finds it: the removal took effect.
    pub(super) async fn note_removed(&self, draft: &Draft) {
        let (dir, name) = draft.node.place();
        self.note_unlinked(&dir, &name, Some(draft)).await;
    }

    /// Ends what was written under a name that is gone, or that another file has taken.
    pub(super) async fn note_replaced(&self, draft: &Draft) {
        draft.unlink();
        draft.note_down().await;
        self.abandon(draft).await;
    }

    /// Writes a marker for a directory that is about to lose its last name, so that it stays.
    pub(super) async fn keep_parent(&self, dir: &Arc<Dir>, name: &str) -> Result<(), WriteError> {
        if dir.place().is_none() || dir.has_marker() || !dir.is_empty_but_for(name) {
            return Ok(());
        }
        match self.put_marker(dir.prefix().as_str()).await {
            // It has one already.
            Ok(()) | Err(OriginError::Conflict) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn put_marker(&self, key: &str) -> Result<(), OriginError> {
        let write = WriteIntent { condition: Condition::Absent, writer: new_nonce() };
        match self.names.origin.put(key, UploadBody::empty(), &write).await {
            Ok(_) => Ok(()),
            // A first try whose answer was lost.
            Err(OriginError::Conflict)
                if self.names.origin.head(key).await?.writer.as_deref() == Some(&write.writer) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
