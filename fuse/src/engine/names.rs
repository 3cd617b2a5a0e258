//! Changes to names and attributes.

use std::sync::Arc;

use rustix::io::Errno;

use super::modes::Mode;
use super::session::{Session, Shown, lookup_errno};
use crate::namespace::file::FileNode;
use crate::namespace::inode::Node;
use crate::namespace::{Found, LookupError};
use crate::write::WriteError;
use crate::write::rename::Place;

/// A change of attributes; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttrChange {
    /// New size.
    pub size: Option<u64>,
    /// New permission bits.
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// Whether a time is set.
    pub times: bool,
}

impl Session {
    fn may_change(&self) -> Result<(), Errno> {
        if self.settings.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// The errno for the process.
    pub async fn mkdir(&self, parent: u64, name: &str) -> Result<Shown, Errno> {
        self.may_change()?;
        let dir = self.dir(parent)?;
        self.logged("mkdir", name, self.writer.mkdir(&dir, name).await)?;
        self.lookup(parent, name).await
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// The errno for the process.
    pub async fn rmdir(&self, parent: u64, name: &str) -> Result<(), Errno> {
        self.may_change()?;
        let dir = self.dir(parent)?;
        self.logged("rmdir", name, self.writer.rmdir(&dir, name).await)
    }

    /// Removes a file; descriptors that are open go on reading and writing what they have.
    ///
    /// # Errors
    /// The errno for the process.
    pub async fn unlink(self: &Arc<Self>, parent: u64, name: &str) -> Result<(), Errno> {
        self.may_change()?;
        let dir = self.dir(parent)?;
        let Some(node) = self.file_named(parent, name).await? else {
            return Err(if dir.has(name) { Errno::ISDIR } else { Errno::NOENT });
        };
        self.stop_writing(node.ino).await;
        self.logged("unlink", name, self.writer.unlink(&dir, name).await)?;
        if let Some(key) = self.names.version_key(&node) {
            self.engine.cache.discard(&key);
        }
        Ok(())
    }

    /// Lets a file that is being written end in nothing.
    async fn stop_writing(&self, ino: u64) {
        let Some(staging) = self.modes.staging(ino) else { return };
        // After a store that is under way, so that it does not bring the object back.
        let _gate = staging.gate.lock().await;
        if let Some(upload) = staging.unlink() {
            self.writer.abort(&staging.node.key(), &upload).await;
        }
    }

    /// Renames a file or a directory.
    ///
    /// # Errors
    /// The errno for the process; EXDEV for a directory too large, which `mv` then copies.
    pub async fn rename(
        self: &Arc<Self>,
        parent: u64,
        name: &str,
        new_parent: u64,
        new_name: &str,
        no_replace: bool,
    ) -> Result<(), Errno> {
        self.may_change()?;
        let (from, to) = (self.dir(parent)?, self.dir(new_parent)?);
        if let Some(node) = self.file_named(parent, name).await?
            && let Some(staging) = self.modes.staging(node.ino)
        {
            self.store(&staging).await?;
        }
        let replaced = self.file_named(new_parent, new_name).await?;
        let places = (Place { dir: &from, name }, Place { dir: &to, name: new_name });
        let done = self.writer.rename(places.0, places.1, no_replace).await;
        self.logged("rename", name, done)?;
        if let Some(replaced) = replaced
            && !to.shows(new_name, &replaced)
        {
            self.stop_writing(replaced.ino).await;
        }
        Ok(())
    }

    /// Changes attributes, as far as that is supported: sizes of files being written, emptying,
    /// and changes that change nothing.
    ///
    /// # Errors
    /// EOPNOTSUPP for chmod, chown, utimes of stored files, and sizes other than 0.
    pub async fn setattr(self: &Arc<Self>, ino: u64, change: &AttrChange) -> Result<Shown, Errno> {
        self.may_change()?;
        let is_dir = match self.names.inodes.get(ino) {
            Some(Node::Dir(_)) => true,
            Some(Node::File(_)) => false,
            None => return Err(Errno::STALE),
        };
        let owned = &self.settings.ownership;
        let mode = u32::from(if is_dir { owned.dir_mode } else { owned.file_mode });
        let writing = self.modes.lock().has_writer(ino);
        let same_mode = change.mode.is_none_or(|new| new & 0o7777 == mode);
        let same_owner = change.uid.is_none_or(|uid| uid == owned.uid)
            && change.gid.is_none_or(|gid| gid == owned.gid);
        if !same_mode || !same_owner || (change.times && !writing) {
            return Err(Errno::OPNOTSUPP);
        }
        if let Some(size) = change.size {
            self.resize(ino, size).await?;
        }
        self.getattr(ino)
    }

    async fn resize(self: &Arc<Self>, ino: u64, size: u64) -> Result<(), Errno> {
        let node = self.file(ino)?;
        let staging = match self.modes.lock().present(ino) {
            Some(Mode::Staging(staging)) if !staging.is_sealed() => Some(staging.clone()),
            _ => None,
        };
        if let Some(staging) = staging {
            return staging.truncate(size).map_err(|error| error.errno());
        }
        match size {
            _ if node.size_and_mtime().0 == size => Ok(()),
            0 => self.empty(&node).await,
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// The node under a name, where it is a file.
    async fn file_named(&self, parent: u64, name: &str) -> Result<Option<Arc<FileNode>>, Errno> {
        let dir = self.dir(parent)?;
        match self.names.lookup(&dir, name).await {
            Ok(Found::File(node)) => Ok(Some(node)),
            Ok(Found::Dir(_)) | Err(LookupError::Absent) => Ok(None),
            Err(error) => Err(lookup_errno(&error)),
        }
    }

    fn logged(&self, what: &str, name: &str, done: Result<(), WriteError>) -> Result<(), Errno> {
        done.map_err(|error| {
            let expected =
                matches!(error, WriteError::Exists | WriteError::Absent | WriteError::NotEmpty);
            if !expected {
                tracing::warn!(what, name, %error, "change refused");
            }
            error.errno()
        })
    }
}
