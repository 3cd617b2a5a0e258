//! Opening for writing, creating, and what is left to do after the last writer's close.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use rustix::io::Errno;

use super::SMALL_MAX;
use super::handles::{Handle, WriteHandle};
use super::modes::{Closed, Locked, Mode};
use super::open::{How, OpenRequest, Opened};
use super::session::{Attr, Session, file_attr};
use crate::model::version::ObjectInfo;
use crate::namespace::LookupError;
use crate::namespace::file::FileNode;
use crate::namespace::inode::Node;
use crate::origin::Condition;
use crate::read::Source;
use crate::write::WriteError;
use crate::write::staging::Staging;

impl Session {
    /// Opens for writing; `None` while what an earlier writer left is still being stored.
    pub(super) fn open_for_writing(
        self: &Arc<Self>,
        node: &Arc<FileNode>,
        current: bool,
        request: &OpenRequest,
    ) -> Option<Result<Opened, Errno>> {
        if self.settings.read_only {
            return Some(Err(Errno::ROFS));
        }
        let modes = self.modes.lock();
        if modes.is_finishing(node.ino) {
            return None;
        }
        if !current {
            return Some(Err(Errno::STALE));
        }
        let (size, _) = node.size_and_mtime();
        Some(match modes.present(node.ino) {
            Some(Mode::Staging(staging)) if staging.is_overtaken() => Err(Errno::STALE),
            Some(Mode::Staging(staging)) if !staging.is_sealed() => {
                let staging = staging.clone();
                self.join_staging(modes, node, staging, request)
            }
            // Readers of a large version keep it, on this inode; the writer gets a new one.
            Some(Mode::Cached(_)) => self.split(modes, node, request),
            Some(_) if size > SMALL_MAX && request.truncate => self.split(modes, node, request),
            _ if !request.truncate && size > 0 => self.open_over_bytes(modes, node, request),
            _ => self.begin_staging(modes, node, size, request),
        })
    }

    fn join_staging(
        self: &Arc<Self>,
        mut modes: Locked<'_>,
        node: &Arc<FileNode>,
        staging: Arc<Staging>,
        request: &OpenRequest,
    ) -> Result<Opened, Errno> {
        modes.join(node.ino, Mode::Staging(staging.clone()), true);
        drop(modes);
        if request.truncate
            && let Err(error) = staging.truncate(0)
        {
            self.close_writer(node.ino);
            return Err(error.errno());
        }
        Ok(self.write_handle(node, staging, request.thread))
    }

    fn begin_staging(
        &self,
        mut modes: Locked<'_>,
        node: &Arc<FileNode>,
        size: u64,
        request: &OpenRequest,
    ) -> Result<Opened, Errno> {
        let condition = node.version().map_or(Condition::Always, |v| Condition::Matches(v.etag));
        // Emptying what is empty changes nothing.
        let staging = self.new_staging(node, condition, size > 0)?;
        modes.become_staging(node.ino, staging.clone());
        drop(modes);
        let (dir, name) = node.place();
        dir.begin_writing(&name, node);
        node.set_size(0);
        Ok(self.write_handle(node, staging, request.thread))
    }

    /// Opens for writing what is not emptied. Changing what is there needs its bytes in the
    /// staging file first, which is not supported yet; emptying it through the handle is. Never
    /// by passthrough: the kernel would write into the cached version.
    fn open_over_bytes(
        &self,
        mut modes: Locked<'_>,
        node: &Arc<FileNode>,
        request: &OpenRequest,
    ) -> Result<Opened, Errno> {
        if request.append {
            return Err(Errno::OPNOTSUPP);
        }
        let key = self.names.version_key(node).ok_or(Errno::STALE)?;
        modes.join(node.ino, Mode::Streaming, false);
        drop(modes);
        let version = self.engine.cache.acquire(&key, &self.preference());
        let source = Source { origin: self.names.origin.clone(), version };
        Ok(self.read_handle(node, Some(source), How::KeepCache, true))
    }

    /// Gives the name a new nodeid, so that it can be written while readers keep the old one. The
    /// writer comes back for it; new readers wait until he did, lest they hold that one, too.
    fn split(
        &self,
        modes: Locked<'_>,
        node: &Arc<FileNode>,
        request: &OpenRequest,
    ) -> Result<Opened, Errno> {
        drop(modes);
        if !self.told.may_tell(request.thread, node) {
            return Err(Errno::BUSY);
        }
        let (dir, name) = node.place();
        self.coming.expect(node);
        dir.detach(&name, node);
        Err(Errno::STALE)
    }

    pub(super) fn new_staging(
        &self,
        node: &Arc<FileNode>,
        condition: Condition,
        dirty: bool,
    ) -> Result<Arc<Staging>, Errno> {
        let path = self.engine.cache.staging_path(&self.preference());
        Staging::create(node.clone(), path, *self.writer.plan(), condition, dirty)
            .map_err(|error| WriteError::Staging(error).errno())
    }

    fn write_handle(&self, node: &Arc<FileNode>, staging: Arc<Staging>, thread: u32) -> Opened {
        self.engine.metrics.opens.with_label_values(&["writing"]).inc();
        let handle = WriteHandle {
            node: node.clone(),
            staging,
            opener: self.engine.processes.process_of(thread),
            opener_closed: AtomicBool::new(false),
        };
        Opened { fh: self.handles.add(Handle::Write(handle)), how: How::DropCache }
    }

    /// Creates a file and opens it for writing.
    ///
    /// # Errors
    /// The errno for the process.
    pub async fn create(
        self: &Arc<Self>,
        parent: u64,
        name: &str,
        request: &OpenRequest,
    ) -> Result<(Attr, Opened), Errno> {
        if self.settings.read_only {
            return Err(Errno::ROFS);
        }
        let dir = self.dir(parent)?;
        self.writer.check_new(&dir, name).map_err(|error| error.errno())?;
        match self.names.lookup(&dir, name).await {
            Ok(_) if request.exclusive => return Err(Errno::EXIST),
            // Somebody was faster: the kernel looks again and opens what is there.
            Ok(_) => return Err(Errno::STALE),
            Err(LookupError::Absent) => {}
            Err(error) => return Err(super::session::lookup_errno(&error)),
        }
        let info = ObjectInfo {
            size: 0,
            etag: None,
            mtime: SystemTime::now(),
            version_id: None,
            writer: None,
        };
        let node = FileNode::new(self.names.inodes.next_ino(), dir.clone(), name, &info);
        let condition = if request.exclusive { Condition::Absent } else { Condition::Always };
        let staging = self.new_staging(&node, condition, true)?;
        self.names.inodes.referenced(node.ino, Node::File(node.clone()));
        self.modes.lock().become_staging(node.ino, staging.clone());
        dir.begin_writing(name, &node);
        Ok((file_attr(&node), self.write_handle(&node, staging, request.thread)))
    }

    fn close_writer(self: &Arc<Self>, ino: u64) {
        if let Closed::LastWriter(staging) = self.modes.close(ino, true) {
            let session = self.clone();
            self.engine.runtime.spawn(async move { session.finish(&staging).await });
        }
    }

    /// The work after the last writer's close.
    pub(super) async fn finish(&self, staging: &Arc<Staging>) {
        self.finishing(async {
            self.writer.finish(staging).await;
            self.note_finished(staging);
            self.modes.finished(staging.node.ino);
        })
        .await;
    }

    /// Waits while what an earlier writer of this file left is being stored.
    pub(super) async fn until_finished(&self, ino: u64) {
        loop {
            let one_finished = self.one_finished();
            tokio::pin!(one_finished);
            one_finished.as_mut().enable();
            if !self.modes.lock().is_finishing(ino) {
                return;
            }
            one_finished.await;
        }
    }

    /// Empties a file that is not being written here, as truncate(2) does.
    pub(super) async fn empty(self: &Arc<Self>, node: &Arc<FileNode>) -> Result<(), Errno> {
        let stored = self.finishing(self.writer.store_empty(node)).await;
        let info = stored.map_err(|error| error.errno())?;
        let (dir, name) = node.place();
        // Readers whom the kernel serves keep this node and its bytes; the name gets a new one.
        let keep = matches!(self.modes.lock().present(node.ino), Some(Mode::Cached(_)));
        if !keep {
            node.set_size(0);
            node.set_stored(&info);
        }
        dir.insert_file(&name, info, (!keep).then_some(node));
        self.names.drop_kept(&dir);
        Ok(())
    }
}
