//! Changes to names and attributes.

use std::sync::Arc;

use rustix::io::Errno;

use super::handles::{FileHandle, Handle};
use super::session::{Entry, Session};
use crate::logged::LoggedName;
use crate::namespace::Node;
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
    /// The open file through which it is asked for, as by ftruncate(2).
    pub handle: Option<u64>,
}

impl Session {
    fn may_change(&self) -> Result<(), Errno> {
        if self.settings.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// The errno for the process.
    pub async fn mkdir(self: &Arc<Self>, parent: u64, name: &str) -> Result<Entry, Errno> {
        self.may_change()?;
        let (session, dir, new) = (self.clone(), self.dir(parent)?, name.to_owned());
        self.task(async move {
            let done = session.writer.mkdir(&dir, &new).await;
            session.logged("mkdir", &new, done)
        })
        .await?;
        self.lookup(parent, name).await
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// The errno for the process.
    pub async fn rmdir(self: &Arc<Self>, parent: u64, name: &str) -> Result<(), Errno> {
        self.may_change()?;
        let (session, dir, name) = (self.clone(), self.dir(parent)?, name.to_owned());
        self.task(async move {
            let done = session.writer.rmdir(&dir, &name).await;
            session.logged("rmdir", &name, done)
        })
        .await
    }

    /// Removes a file; descriptors that are open go on reading and writing what they have.
    ///
    /// # Errors
    /// The errno for the process.
    pub async fn unlink(self: &Arc<Self>, parent: u64, name: &str) -> Result<(), Errno> {
        self.may_change()?;
        let (session, dir, name) = (self.clone(), self.dir(parent)?, name.to_owned());
        self.task(async move {
            let done = session.writer.unlink(&dir, &name).await;
            session.logged("unlink", &name, done)
        })
        .await
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
        let (session, name, new_name) = (self.clone(), name.to_owned(), new_name.to_owned());
        self.task(async move {
            let places = (Place { dir: &from, name: &name }, Place { dir: &to, name: &new_name });
            let done = session.writer.rename(places.0, places.1, no_replace).await;
            session.logged("rename", &name, done)
        })
        .await
    }

    /// Changes attributes, as far as that is supported: sizes of files being written, emptying,
    /// and changes that change nothing.
    ///
    /// # Errors
    /// EOPNOTSUPP for chmod, chown, utimes of stored files, and sizes other than 0.
    pub async fn setattr(self: &Arc<Self>, ino: u64, change: &AttrChange) -> Result<Entry, Errno> {
        self.may_change()?;
        let is_dir = match self.names.inodes.get(ino) {
            Some(Node::Dir(_)) => true,
            Some(Node::File(_)) => false,
            None => return Err(Errno::STALE),
        };
        let owned = &self.settings.ownership;
        let mode = u32::from(if is_dir { owned.dir_mode } else { owned.file_mode });
        let writing = self.modes.lock().writable(ino) > 0;
        let same_mode = change.mode.is_none_or(|new| new & 0o7777 == mode);
        let same_owner = change.uid.is_none_or(|uid| uid == owned.uid)
            && change.gid.is_none_or(|gid| gid == owned.gid);
        if !same_mode || !same_owner || (change.times && !writing) {
            return Err(Errno::OPNOTSUPP);
        }
        if let Some(size) = change.size {
            self.resize(ino, size, change.handle).await?;
        }
        self.getattr(ino)
    }

    async fn resize(
        self: &Arc<Self>,
        ino: u64,
        size: u64,
        handle: Option<u64>,
    ) -> Result<(), Errno> {
        let node = self.file(ino)?;
        loop {
            let draft = self.writer.draft(ino).filter(|draft| !draft.is_sealed());
            match draft {
                Some(draft) if draft.is_finishing() => self.until_finished(ino).await,
                Some(draft) => return self.truncate(&draft, size).await,
                None => break,
            }
        }
        let session = self.clone();
        match size {
            _ if node.size_and_mtime().0 == size => Ok(()),
            0 if self.is_writable(handle) => self.empty_through_handle(&node).await,
            0 => self.task(async move { session.empty(&node).await }).await,
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn is_writable(&self, handle: Option<u64>) -> bool {
        let handle = handle.and_then(|fh| self.handles.get(fh));
        matches!(handle.as_deref(), Some(Handle::File(FileHandle { writer: Some(_), .. })))
    }

    fn logged(&self, what: &str, name: &str, done: Result<(), WriteError>) -> Result<(), Errno> {
        done.map_err(|error| {
            let expected =
                matches!(error, WriteError::Exists | WriteError::Absent | WriteError::NotEmpty);
            if !expected {
                tracing::warn!(session = self.names.session(), what, name = %LoggedName(name), %error, "change refused");
            }
            error.errno()
        })
    }
}
