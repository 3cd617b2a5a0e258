//! Opening for writing, creating, and what is left to do after the last writer's close.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;

use super::admission::{Admission, Inode, Name, Refusal, Request, admission, creation};
use super::handles::Opener;
use super::modes::{LockedModes, Mode, OpenInode};
use super::open::{IoMode, OpenCall, OpenFile, OpenRequest};
use super::session::{Attr, Session, file_attr};
use crate::blocking::aside;
use crate::model::version::ObjectInfo;
use crate::namespace::file::FileNode;
use crate::namespace::{LookupError, Node};
use crate::origin::Condition;
use crate::write::draft::{Beginning, Draft};

/// An answer of the origin so young was given to the lookup of the very open that asks.
const JUST_NOW: Duration = Duration::from_millis(100);

impl Session {
    /// Opens for writing; `None` while what an earlier writer left is still being stored.
    pub(super) async fn open_writable(
        self: &Arc<Self>,
        call: &OpenCall<'_>,
    ) -> Option<Result<OpenFile, Errno>> {
        if self.settings.read_only {
            return Some(Err(Errno::ROFS));
        }
        let (dir, _) = call.node.place();
        let _dirs = match self.writer.enter(&dir).await {
            Ok(dirs) => dirs,
            Err(error) => return Some(Err(error.errno())),
        };
        let name = match self.name_of(call).await {
            Ok(name) => name,
            Err(errno) => return Some(Err(errno)),
        };
        if let Err(errno) = self.check_access(call).await {
            return Some(Err(errno));
        }
        self.open_for_writing(call, name)
    }

    /// Where the name leads. Who empties the file needs no byte of it: he replaces what is there
    /// now, and must not lose to what was there before he opened it.
    async fn name_of(&self, call: &OpenCall<'_>) -> Result<Name, Errno> {
        let node = call.node;
        let (dir, name) = node.place();
        let known = call.request != Request::Truncate
            || dir.is_writing(&name)
            || dir.asked_within(&name, JUST_NOW);
        let current = match known {
            true => self.names.is_current(node).await,
            false => self.names.is_current_at_origin(node).await,
        };
        current.map(Name::of).map_err(|error| error.errno())
    }

    fn open_for_writing(
        self: &Arc<Self>,
        call: &OpenCall<'_>,
        name: Name,
    ) -> Option<Result<OpenFile, Errno>> {
        let modes = self.modes.lock();
        let present = modes.present(call.node.ino);
        let inode = Inode::of(call.node, present.as_ref(), false);
        Some(match (admission((name, inode), call.request, call.attempt), present) {
            (Admission::Wait, _) => return None,
            (Admission::Refuse(refusal), _) => Err(self.refuse(call.node, refusal)),
            (Admission::Begin, _) => self.begin_draft(modes, call),
            (Admission::Join, Some(Mode::Draft(draft))) if inode == Inode::Draft => {
                return self.join_draft(modes, call, draft);
            }
            (Admission::Join, _) => self.open_over_bytes(modes, call),
        })
    }

    fn join_draft(
        self: &Arc<Self>,
        mut modes: LockedModes<'_>,
        call: &OpenCall<'_>,
        draft: Arc<Draft>,
    ) -> Option<Result<OpenFile, Errno>> {
        let node = call.node;
        match draft.join() {
            Ok(true) => {}
            Ok(false) => return None,
            // Somebody else was faster, just now.
            Err(_) => return Some(Err(self.refuse(node, Refusal::Stale))),
        }
        let inode = modes.join(node.ino, Mode::Draft(draft.clone()), true);
        drop(modes);
        if call.request == Request::Truncate
            && let Err(error) = draft.truncate(0)
        {
            if let Some(ended) = self.modes.close(node.ino, true) {
                let session = self.clone();
                self.engine.runtime.spawn(async move { session.finish(&ended).await });
            }
            return Some(Err(error.errno()));
        }
        Some(Ok(self.writer_of(node, inode, &draft, call.process)))
    }

    fn begin_draft(
        &self,
        mut modes: LockedModes<'_>,
        call: &OpenCall<'_>,
    ) -> Result<OpenFile, Errno> {
        let node = call.node;
        // Emptying what is empty changes nothing.
        let beginning = Beginning {
            seen: seen_of(node),
            exclusive: false,
            dirty: node.size_and_mtime().0 > 0,
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
        Ok(self.writer_of(node, inode, &draft, call.process))
    }

    /// A handle of a file under change.
    fn writer_of(
        &self,
        node: &Arc<FileNode>,
        inode: Arc<OpenInode>,
        draft: &Draft,
        process: u32,
    ) -> OpenFile {
        self.engine.metrics.opens.with_label_values(&["writing"]).inc();
        let opener = Some(Opener::new(process));
        let opened = self.file_handle(node, inode, None, IoMode::DropCache, opener);
        draft.handle(opened.fh);
        opened
    }

    /// Opens for writing what is not emptied. Changing what is there needs its bytes in the
    /// staging file first, which is not supported yet; emptying it through the handle is. Never
    /// by passthrough: the kernel would write into the cached version.
    fn open_over_bytes(
        &self,
        mut modes: LockedModes<'_>,
        call: &OpenCall<'_>,
    ) -> Result<OpenFile, Errno> {
        let node = call.node;
        let key = self.names.version_key(node).ok_or(Errno::STALE)?;
        let inode = modes.join(node.ino, Mode::Streaming, true);
        drop(modes);
        let source = self.source(&key);
        let opener = Some(Opener::new(call.process));
        Ok(self.file_handle(node, inode, Some(source), IoMode::KeepCache, opener))
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
        if let Some(Mode::Draft(draft)) = modes.present(node.ino)
            && !draft.is_sealed()
        {
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

    fn begin(&self, node: &Arc<FileNode>, beginning: Beginning) -> Result<Arc<Draft>, Errno> {
        let begun = self.writer.begin(node, &self.preference(), beginning);
        begun.map_err(|error| error.errno())
    }

    /// The process of a thread that opens for writing; 0 when unknown.
    pub(super) async fn process_of(&self, thread: u32) -> u32 {
        let processes = self.engine.processes.clone();
        aside(move |may| processes.process_of(may, thread)).await
    }

    /// Creates a file and opens it for writing.
    ///
    /// # Errors
    /// The errno for the process.
    pub async fn create(
        self: &Arc<Self>,
        parent: u64,
        name: &str,
        flags: &OpenRequest,
    ) -> Result<(Attr, OpenFile), Errno> {
        let result = self.create_file(parent, name, flags).await;
        if !matches!(result, Err(Errno::STALE)) {
            self.retries.end(flags.thread);
            self.reservations.redeem(|| (parent, name.into()));
        }
        result
    }

    async fn create_file(
        self: &Arc<Self>,
        parent: u64,
        name: &str,
        flags: &OpenRequest,
    ) -> Result<(Attr, OpenFile), Errno> {
        if self.settings.read_only {
            return Err(Errno::ROFS);
        }
        let dir = self.dir(parent)?;
        self.handles.check_room()?;
        self.writer.check_new(&dir, name).map_err(|error| error.errno())?;
        let _dirs = self.writer.enter(&dir).await.map_err(|error| error.errno())?;
        let taken = match self.names.lookup(&dir, name).await {
            Ok(_) => true,
            Err(LookupError::Absent) => false,
            Err(error) => return Err(super::session::lookup_errno(&error)),
        };
        if let Admission::Refuse(refusal) = creation(taken, flags.exclusive) {
            return Err(refusal.errno());
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
            exclusive: flags.exclusive,
            dirty: true,
            writers: 1,
        };
        let asks = flags.truncate && !flags.exclusive && !dir.asked_within(name, JUST_NOW);
        let process = self.process_of(flags.thread).await;
        // The name leads to the node from its beginning on: nobody is to find it without a mode.
        let mut modes = self.modes.lock();
        let draft = self.begin(&node, beginning)?;
        let inode = modes.join(node.ino, Mode::Draft(draft.clone()), true);
        drop(modes);
        if asks {
            self.writer.inquire(&draft);
        }
        self.names.inodes.referenced(node.ino, Node::File(node.clone()));
        let opened = self.writer_of(&node, inode, &draft, process);
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
