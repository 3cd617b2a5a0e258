//! Opening for writing, creating, and what is left to do after the last writer's close.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;

use super::SMALL_MAX;
use super::handles::Opener;
use super::modes::{Locked, Mode};
use super::open::{How, OpenRequest, Opened};
use super::session::{Attr, Session, file_attr};
use crate::model::version::ObjectInfo;
use crate::namespace::LookupError;
use crate::namespace::file::FileNode;
use crate::namespace::inode::Node;
use crate::origin::Condition;
use crate::read::Source;
use crate::write::draft::{Beginning, Draft};

/// An answer of the origin so young was given to the lookup of the very open that asks.
const JUST_NOW: Duration = Duration::from_millis(100);

impl Session {
    /// Opens for writing; `None` while what an earlier writer left is still being stored.
    pub(super) async fn open_writable(
        self: &Arc<Self>,
        node: &Arc<FileNode>,
        request: &OpenRequest,
    ) -> Option<Result<Opened, Errno>> {
        if self.settings.read_only {
            return Some(Err(Errno::ROFS));
        }
        let (dir, _) = node.place();
        let _dirs = match self.writer.enter(&dir).await {
            Ok(dirs) => dirs,
            Err(error) => return Some(Err(error.errno())),
        };
        let current = match self.is_current_for(node, request).await {
            Ok(current) => current,
            Err(errno) => return Some(Err(errno)),
        };
        if let Err(errno) = self.check_access(node, request).await {
            return Some(Err(errno));
        }
        self.open_for_writing(node, current, request)
    }

    /// Whether the node still is what its name shows. Who empties the file needs no byte of it: he
    /// replaces what is there now, and must not lose to what was there before he opened it.
    async fn is_current_for(
        &self,
        node: &Arc<FileNode>,
        request: &OpenRequest,
    ) -> Result<bool, Errno> {
        let (dir, name) = node.place();
        let known = !request.truncate || dir.is_writing(&name) || dir.asked_within(&name, JUST_NOW);
        let current = match known {
            true => self.names.is_current(node).await,
            false => self.names.is_current_at_origin(node).await,
        };
        current.map_err(|error| error.errno())
    }

    fn open_for_writing(
        self: &Arc<Self>,
        node: &Arc<FileNode>,
        current: bool,
        request: &OpenRequest,
    ) -> Option<Result<Opened, Errno>> {
        let modes = self.modes.lock();
        let present = modes.present(node.ino);
        if let Some(Mode::Draft(draft)) = &present
            && draft.is_finishing()
        {
            return None;
        }
        if !current {
            return Some(Err(Errno::STALE));
        }
        let (size, _) = node.size_and_mtime();
        Some(match present {
            Some(Mode::Draft(draft)) if !draft.is_sealed() => {
                self.join_draft(modes, node, draft, request)
            }
            // Readers of a large version keep it, on this inode; the writer gets a new one.
            Some(Mode::Cached(_)) => self.split(modes, node, request),
            Some(_) if size > SMALL_MAX && request.truncate => self.split(modes, node, request),
            _ if !request.truncate && size > 0 => self.open_over_bytes(modes, node, request),
            _ => self.begin_draft(modes, node, size, request),
        })
    }

    fn join_draft(
        self: &Arc<Self>,
        mut modes: Locked<'_>,
        node: &Arc<FileNode>,
        draft: Arc<Draft>,
        request: &OpenRequest,
    ) -> Result<Opened, Errno> {
        // Its last writer does not close meanwhile: that needs the lock, too.
        match draft.join() {
            Ok(true) => {}
            Ok(false) => return Err(Errno::BUSY),
            Err(_) => return Err(Errno::STALE),
        }
        let inode = modes.join(node.ino, Mode::Draft(draft.clone()), true);
        drop(modes);
        if request.truncate
            && let Err(error) = draft.truncate(0)
        {
            if let Some(ended) = self.modes.close(node.ino, true) {
                let session = self.clone();
                self.engine.runtime.spawn(async move { session.finish(&ended).await });
            }
            return Err(error.errno());
        }
        self.engine.metrics.opens.with_label_values(&["writing"]).inc();
        let opener = Some(self.opener(request));
        let opened = self.file_handle(node, inode, None, How::DropCache, opener);
        draft.handle(opened.fh);
        Ok(opened)
    }

    fn begin_draft(
        &self,
        mut modes: Locked<'_>,
        node: &Arc<FileNode>,
        size: u64,
        request: &OpenRequest,
    ) -> Result<Opened, Errno> {
        // Emptying what is empty changes nothing.
        let beginning = Beginning {
            seen: seen_of(node),
            exclusive: false,
            dirty: size > 0,
            writers: modes.writable(node.ino) + 1,
        };
        let others = beginning.writers > 1;
        let draft = self.begin(node, beginning)?;
        let inode = modes.join(node.ino, Mode::Draft(draft.clone()), true);
        modes.turn(node.ino, draft.clone());
        drop(modes);
        if others {
            self.note_writers(&draft);
        }
        self.engine.metrics.opens.with_label_values(&["writing"]).inc();
        let opener = Some(self.opener(request));
        let opened = self.file_handle(node, inode, None, How::DropCache, opener);
        draft.handle(opened.fh);
        Ok(opened)
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
        let inode = modes.join(node.ino, Mode::Streaming, true);
        drop(modes);
        let version = self.engine.cache.acquire(&key, &self.preference());
        let source = Source { origin: self.names.origin.clone(), version };
        let opener = Some(self.opener(request));
        Ok(self.file_handle(node, inode, Some(source), How::KeepCache, opener))
    }

    /// Empties a stored file through a handle for writing: from here on its handles write a new
    /// version, which their close stores. The bytes that are there stay until then.
    pub(super) async fn empty_through_handle(
        self: &Arc<Self>,
        node: &Arc<FileNode>,
    ) -> Result<(), Errno> {
        let (dir, _) = node.place();
        let _dirs = self.writer.enter(&dir).await.map_err(|error| error.errno())?;
        let mut modes = self.modes.lock();
        if let Some(Mode::Draft(draft)) = modes.present(node.ino) {
            // Another handle was faster.
            return draft.truncate(0).map_err(|error| error.errno());
        }
        let writers = modes.writable(node.ino);
        let beginning = Beginning { seen: seen_of(node), exclusive: false, dirty: true, writers };
        let draft = self.begin(node, beginning)?;
        modes.turn(node.ino, draft.clone());
        drop(modes);
        self.note_writers(&draft);
        Ok(())
    }

    /// Notes the handles that were there before the change: it is theirs, too.
    fn note_writers(&self, draft: &Draft) {
        self.handles.writers_of(draft.node.ino).into_iter().for_each(|fh| draft.handle(fh));
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

    fn begin(&self, node: &Arc<FileNode>, beginning: Beginning) -> Result<Arc<Draft>, Errno> {
        let begun = self.writer.begin(node, &self.preference(), beginning);
        begun.map_err(|error| error.errno())
    }

    fn opener(&self, request: &OpenRequest) -> Opener {
        Opener {
            process: self.engine.processes.process_of(request.thread),
            has_closed: AtomicBool::new(false),
        }
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
        let _dirs = self.writer.enter(&dir).await.map_err(|error| error.errno())?;
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
        let beginning = Beginning {
            seen: Condition::Absent,
            exclusive: request.exclusive,
            dirty: true,
            writers: 1,
        };
        let asks = request.truncate && !request.exclusive && !dir.asked_within(name, JUST_NOW);
        let draft = self.begin(&node, beginning)?;
        if asks {
            self.writer.inquire(&draft);
        }
        self.names.inodes.referenced(node.ino, Node::File(node.clone()));
        let inode = self.modes.lock().join(node.ino, Mode::Draft(draft.clone()), true);
        self.engine.metrics.opens.with_label_values(&["writing"]).inc();
        let opener = Some(self.opener(request));
        let opened = self.file_handle(&node, inode, None, How::DropCache, opener);
        draft.handle(opened.fh);
        Ok((file_attr(&node), opened))
    }

    /// The work after the last writer's close.
    pub(super) async fn finish(&self, draft: &Arc<Draft>) {
        self.finishing(async {
            if let Some(cause) = self.writer.finish(draft).await {
                self.note_given_up(draft, &cause);
            }
            self.modes.finished(draft.node.ino);
        })
        .await;
    }

    /// Waits while what an earlier writer of this file left is being stored.
    pub(super) async fn until_finished(&self, ino: u64) {
        loop {
            let one_finished = self.one_finished();
            tokio::pin!(one_finished);
            one_finished.as_mut().enable();
            let finishing = match self.modes.lock().present(ino) {
                Some(Mode::Draft(draft)) => draft.is_finishing(),
                _ => false,
            };
            if !finishing {
                return;
            }
            one_finished.await;
        }
    }

    /// Empties a file that is not open for writing here, as truncate(2) does.
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

fn seen_of(node: &FileNode) -> Condition {
    node.version().map_or(Condition::Always, |version| Condition::Matches(version.etag))
}
