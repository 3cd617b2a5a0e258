//! Opening for writing, creating, and what is left to do after the last writer's close.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use tokio::sync::oneshot;

use super::admission::{Admission, Inode, Name, Refusal, Request, admission, creation};
use super::handles::Opener;
use super::modes::{LockedModes, Mode, OpenInode};
use super::open::{IoMode, OpenCall, OpenFile, OpenRequest};
use super::session::{Attr, Session, file_attr};
use crate::blocking::aside;
use crate::cache::StagingFile;
use crate::model::version::{ObjectInfo, VersionKey};
use crate::namespace::file::FileNode;
use crate::namespace::{LookupError, Node};
use crate::origin::Condition;
use crate::read::Source;
use crate::write::draft::{Beginning, Draft};

/// An answer of the origin so young was given to the lookup of the very open that asks.
const JUST_NOW: Duration = Duration::from_millis(100);

/// What an open for writing came to.
enum Opening {
    Done(Result<OpenFile, Errno>),
    /// What an earlier writer left is still being stored.
    Wait,
    /// It shares a change that is under way.
    Joined(Arc<OpenInode>, Arc<Draft>),
    /// A change begins.
    Begun(Arc<OpenInode>, Arc<Draft>),
    /// It needs a file for bytes. That is made without the lock of the modes, which nobody holds who
    /// waits for a disk; then it is tried again.
    LacksStaging,
    /// It needs this version, likewise.
    LacksSource(VersionKey),
}

/// What an open for writing may need of the disk.
#[derive(Default)]
struct Ready {
    staging: Option<StagingFile>,
    source: Option<Source>,
}

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
        let mut ready = Ready::default();
        let opening = loop {
            match self.open_for_writing(call, name, &mut ready) {
                Opening::LacksStaging => match self.writer.stage(&self.preference()).await {
                    Ok(staging) => ready.staging = Some(staging),
                    Err(error) => break Opening::Done(Err(error.errno())),
                },
                Opening::LacksSource(key) => ready.source = Some(self.source_in_turn(&key).await),
                opening => break opening,
            }
        };
        self.give_back(ready.staging);
        match opening {
            Opening::Joined(inode, draft) => {
                let empties = call.request == Request::Truncate;
                Some(self.join_in_task(call, inode, draft, empties).await)
            }
            Opening::Begun(inode, draft) => {
                Some(self.join_in_task(call, inode, draft, false).await)
            }
            Opening::Done(result) => Some(result),
            Opening::Wait | Opening::LacksStaging | Opening::LacksSource(_) => None,
        }
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
        ready: &mut Ready,
    ) -> Opening {
        let modes = self.modes.lock();
        let present = modes.present(call.node.ino);
        let inode = Inode::of(call.node, present.as_ref(), false);
        match (admission((name, inode), call.request, call.attempt), present) {
            (Admission::Wait, _) => Opening::Wait,
            (Admission::Refuse(refusal), _) => Opening::Done(Err(self.refuse(call.node, refusal))),
            (Admission::Begin, _) => self.begin_draft(modes, call, ready),
            (Admission::Join, Some(Mode::Draft(draft))) if inode == Inode::Draft => {
                self.join_draft(modes, call, draft)
            }
            (Admission::Join, _) => self.open_over_bytes(modes, call, ready),
        }
    }

    fn join_draft(
        &self,
        mut modes: LockedModes<'_>,
        call: &OpenCall<'_>,
        draft: Arc<Draft>,
    ) -> Opening {
        let node = call.node;
        match draft.join() {
            Ok(true) => {}
            Ok(false) => return Opening::Wait,
            // Somebody else was faster, just now.
            Err(_) => return Opening::Done(Err(self.refuse(node, Refusal::Stale))),
        }
        let inode = modes.join(node.ino, Mode::Draft(draft.clone()), true);
        Opening::Joined(inode, draft)
    }

    /// Removes a file for bytes that was not needed after all.
    fn give_back(&self, staging: Option<StagingFile>) {
        if let Some(staging) = staging {
            self.engine.runtime.spawn(async move {
                staging.calls().in_place(|may| staging.remove(may)).await;
            });
        }
    }

    /// As [`Session::joined`], to its end whether or not somebody waits for it so long: it is a writer
    /// already, whom the last close of the file waits for.
    async fn join_in_task(
        self: &Arc<Self>,
        call: &OpenCall<'_>,
        inode: Arc<OpenInode>,
        draft: Arc<Draft>,
        empties: bool,
    ) -> Result<OpenFile, Errno> {
        let (tell, told) = oneshot::channel();
        let (session, node, process) = (self.clone(), call.node.clone(), call.process);
        self.engine.runtime.spawn(async move {
            let joined = session.joined(&node, inode, &draft, (empties, process)).await;
            if let Err(Ok(opened)) = tell.send(joined) {
                session.release(opened.fh).await;
            }
        });
        told.await.unwrap_or(Err(Errno::IO))
    }

    /// What is left to do of an open that has joined a file under change.
    async fn joined(
        self: &Arc<Self>,
        node: &Arc<FileNode>,
        inode: Arc<OpenInode>,
        draft: &Arc<Draft>,
        (empties, process): (bool, u32),
    ) -> Result<OpenFile, Errno> {
        if empties && let Err(errno) = self.truncate(draft, 0).await {
            if let Some(ended) = self.modes.close(node.ino, true) {
                let session = self.clone();
                self.engine.runtime.spawn(async move { session.finish(&ended).await });
            }
            return Err(errno);
        }
        Ok(self.writer_of(node, inode, draft, process).await)
    }

    /// Cuts or extends a file under change.
    pub(super) async fn truncate(&self, draft: &Draft, size: u64) -> Result<(), Errno> {
        let done = draft.calls().in_place(|may| draft.truncate(may, size)).await;
        done.map_err(|error| error.errno())
    }

    fn begin_draft(
        &self,
        mut modes: LockedModes<'_>,
        call: &OpenCall<'_>,
        ready: &mut Ready,
    ) -> Opening {
        let Some(staging) = ready.staging.take() else { return Opening::LacksStaging };
        let node = call.node;
        // Emptying what is empty changes nothing.
        let beginning = Beginning {
            seen: seen_of(node),
            exclusive: false,
            dirty: node.size_and_mtime().0 > 0,
            writers: modes.writable(node.ino) + 1,
        };
        let others = beginning.writers > 1;
        let draft = self.writer.begin(node, staging, beginning);
        let inode = modes.join(node.ino, Mode::Draft(draft.clone()), true);
        modes.turn(node.ino, draft.clone());
        drop(modes);
        if others {
            self.note_writers(&draft);
        }
        Opening::Begun(inode, draft)
    }

    /// A handle of a file under change.
    async fn writer_of(
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
        draft.note_down().await;
        opened
    }

    /// Opens for writing what is not emptied. Changing what is there needs its bytes in the
    /// staging file first, which is not supported yet; emptying it through the handle is. Never
    /// by passthrough: the kernel would write into the cached version.
    fn open_over_bytes(
        &self,
        mut modes: LockedModes<'_>,
        call: &OpenCall<'_>,
        ready: &mut Ready,
    ) -> Opening {
        let node = call.node;
        let Some(key) = self.names.version_key(node) else {
            return Opening::Done(Err(Errno::STALE));
        };
        let source = match ready.source.take() {
            Some(source) if source.version.key == key => source,
            _ => return Opening::LacksSource(key),
        };
        let inode = modes.join(node.ino, Mode::Streaming, true);
        drop(modes);
        let opener = Some(Opener::new(call.process));
        Opening::Done(Ok(self.file_handle(node, inode, Some(source), IoMode::KeepCache, opener)))
    }

    /// Empties a stored file through a handle for writing: from here on its handles write a new
    /// version, which their close stores. The bytes that are there stay until then.
    pub(super) async fn empty_through_handle(
        self: &Arc<Self>,
        node: &Arc<FileNode>,
    ) -> Result<(), Errno> {
        let (dir, _) = node.place();
        let _dirs = self.writer.enter(&dir).await.map_err(|error| error.errno())?;
        let staging = self.writer.stage(&self.preference()).await.map_err(|error| error.errno())?;
        let (draft, spare) = self.draft_of_empty(node, staging);
        if spare.is_none() {
            draft.note_down().await;
            return Ok(());
        }
        // Another handle was faster.
        self.give_back(spare);
        self.truncate(&draft, 0).await
    }

    /// The change that an inode with writers is under; the file comes back where it has one already.
    fn draft_of_empty(
        &self,
        node: &Arc<FileNode>,
        staging: StagingFile,
    ) -> (Arc<Draft>, Option<StagingFile>) {
        let mut modes = self.modes.lock();
        if let Some(Mode::Draft(draft)) = modes.present(node.ino)
            && !draft.is_sealed()
        {
            return (draft, Some(staging));
        }
        let writers = modes.writable(node.ino);
        let beginning = Beginning { seen: seen_of(node), exclusive: false, dirty: true, writers };
        let draft = self.writer.begin(node, staging, beginning);
        modes.turn(node.ino, draft.clone());
        drop(modes);
        self.note_writers(&draft);
        (draft, None)
    }

    /// Notes the handles that were there before the change: it is theirs, too.
    fn note_writers(&self, draft: &Draft) {
        self.handles.writers_of(draft.node.ino).into_iter().for_each(|fh| draft.handle(fh));
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
        let staging = self.writer.stage(&self.preference()).await.map_err(|error| error.errno())?;
        // The name leads to the node from its beginning on: nobody is to find it without a mode.
        let (inode, draft) = {
            let mut modes = self.modes.lock();
            let draft = self.writer.begin(&node, staging, beginning);
            (modes.join(node.ino, Mode::Draft(draft.clone()), true), draft)
        };
        if asks {
            self.writer.inquire(&draft);
        }
        self.names.inodes.referenced(node.ino, Node::File(node.clone()));
        let opened = self.writer_of(&node, inode, &draft, process).await;
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
