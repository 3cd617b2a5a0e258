//! Opening files for reading, and closing them.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;

use super::backing::Backing;
use super::handles::{FileHandle, Handle, Opener};
use super::modes::{Mode, OpenInode};
use super::session::Session;
use super::{PASSTHROUGH_MIN, SMALL_MAX};
use crate::cache::CachedVersion;
use crate::namespace::file::FileNode;
use crate::read::window::Window;
use crate::read::{Purpose, Source};
use crate::write::draft::Draft;

/// How a file was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenRequest {
    /// For writing.
    pub write: bool,
    /// Emptied first.
    pub truncate: bool,
    /// Every write goes to the end.
    pub append: bool,
    /// Must be new (create only).
    pub exclusive: bool,
    /// The thread that asks.
    pub thread: u32,
}

/// How a file was opened.
pub struct Opened {
    /// Number of the handle.
    pub fh: u64,
    /// How the kernel is to treat it.
    pub how: How,
}

/// How the kernel treats an open file.
pub enum How {
    /// Through its page cache; what it has of the inode stays valid.
    KeepCache,
    /// Through its page cache, which is emptied first.
    DropCache,
    /// By itself, from this file.
    Passthrough(Arc<Backing>),
}

/// What stands between a request and an open file.
enum Step {
    Done(Result<Opened, Errno>),
    /// The whole of this small version is to be fetched first.
    Fetch(Source),
}

impl Session {
    /// Opens for reading if nothing must be waited for.
    pub fn open_now(
        self: &Arc<Self>,
        ino: u64,
        request: &OpenRequest,
    ) -> Option<Result<Opened, Errno>> {
        if request.write || request.truncate {
            return None;
        }
        let node = match self.file(ino) {
            Ok(node) => node,
            Err(errno) => return Some(Err(errno)),
        };
        if self.coming.is_expected(&node) {
            return None;
        }
        let current = self.names.is_current_now(&node)?;
        if self.access.must_ask(&node.key(), self.names.ttl()) {
            return None;
        }
        match self.try_open(&node, request, current, false) {
            Step::Done(result) => Some(self.open_ends(&node, request, result)),
            Step::Fetch(_) => None,
        }
    }

    /// Opens a file.
    ///
    /// # Errors
    /// The errno for the process. ESTALE makes the kernel look the name up again and retry.
    pub async fn open(self: &Arc<Self>, ino: u64, request: &OpenRequest) -> Result<Opened, Errno> {
        let node = self.file(ino)?;
        let result = self.open_node(&node, request).await;
        self.open_ends(&node, request, result)
    }

    /// Notes that the thread is told how its open ended.
    fn open_ends<T>(
        &self,
        node: &FileNode,
        request: &OpenRequest,
        result: Result<T, Errno>,
    ) -> Result<T, Errno> {
        if !matches!(result, Err(Errno::STALE)) {
            self.told.ended(request.thread);
            if request.write {
                self.coming.arrived(node);
            }
        }
        result
    }

    async fn open_node(
        self: &Arc<Self>,
        node: &Arc<FileNode>,
        request: &OpenRequest,
    ) -> Result<Opened, Errno> {
        loop {
            if !request.write {
                self.coming.until_arrived(node).await;
            }
            if request.write {
                match self.open_writable(node, request).await {
                    Some(opened) => return opened,
                    None => self.until_finished(node.ino).await,
                }
                continue;
            }
            let current = self.names.is_current(node).await.map_err(|error| error.errno())?;
            self.check_access(node, request).await?;
            return self.open_for_reading(node, request, current).await;
        }
    }

    /// What is cached is shown to those who could have fetched it.
    pub(super) async fn check_access(
        &self,
        node: &FileNode,
        request: &OpenRequest,
    ) -> Result<(), Errno> {
        let key = node.key();
        let shows_bytes = node.version().is_some() && !request.truncate;
        if !shows_bytes || !self.access.must_ask(&key, self.names.ttl()) {
            return Ok(());
        }
        self.access.ask(&*self.names.origin, &key).await.map_err(|error| error.errno())
    }

    async fn open_for_reading(
        self: &Arc<Self>,
        node: &Arc<FileNode>,
        request: &OpenRequest,
        current: bool,
    ) -> Result<Opened, Errno> {
        match self.try_open(node, request, current, false) {
            Step::Done(result) => result,
            Step::Fetch(source) => {
                self.engine.metrics.cache_misses.inc();
                self.engine.reader.fetch_whole(&source).await.map_err(|error| {
                    tracing::warn!(key = %source.version.key.key, %error, "open failed");
                    error.errno()
                })?;
                match self.try_open(node, request, true, true) {
                    Step::Done(result) => result,
                    Step::Fetch(_) => Err(Errno::IO),
                }
            }
        }
    }

    fn try_open(
        self: &Arc<Self>,
        node: &Arc<FileNode>,
        request: &OpenRequest,
        current: bool,
        fetched: bool,
    ) -> Step {
        if !current && self.told.may_tell(request.thread, node) {
            return Step::Done(Err(Errno::STALE));
        }
        if let Some(result) = self.join_writer(node) {
            return Step::Done(result);
        }
        let Some(key) = self.names.version_key(node) else {
            return Step::Done(Err(Errno::STALE));
        };
        let version = self.engine.cache.acquire(&key, &self.preference());
        let source = Source { origin: self.names.origin.clone(), version };
        let small = source.version.size() <= SMALL_MAX;
        if small && !fetched && !self.is_here(&source.version) {
            return Step::Fetch(source);
        }
        if !fetched {
            self.count_open(&source.version);
        }
        let result = self.open_version(node, request, source, small);
        if result.is_ok() && small {
            self.follow_files(node, fetched);
        }
        Step::Done(result)
    }

    /// All opens of a name that is being written see what is written.
    fn join_writer(self: &Arc<Self>, node: &Arc<FileNode>) -> Option<Result<Opened, Errno>> {
        let mut modes = self.modes.lock();
        let Some(Mode::Draft(draft)) = modes.present(node.ino) else { return None };
        if draft.is_superseded() {
            // Its name leads to what the faster one wrote.
            return Some(Err(Errno::STALE));
        }
        let inode = modes.join(node.ino, Mode::Draft(draft), false);
        drop(modes);
        self.engine.metrics.opens.with_label_values(&["staging"]).inc();
        Some(Ok(self.file_handle(node, inode, None, How::DropCache, None)))
    }

    fn open_version(
        self: &Arc<Self>,
        node: &Arc<FileNode>,
        request: &OpenRequest,
        source: Source,
        small: bool,
    ) -> Result<Opened, Errno> {
        let trusted = source.version.is_trusted();
        if source.version.is_complete() && !trusted {
            self.engine.reader.verify(&source);
        }
        let large_enough = source.version.size() >= PASSTHROUGH_MIN;
        let may_pass = large_enough && trusted && self.backings.is_connected();
        let mut modes = self.modes.lock();
        let mode = match modes.present(node.ino) {
            Some(Mode::Streaming)
                if may_pass && !small && self.told.may_tell(request.thread, node) =>
            {
                // A long-lived open holds this inode in streaming; a new one can be passthrough.
                // Not for small files: all opens of a lock file must meet in one inode.
                drop(modes);
                let (dir, name) = node.place();
                dir.detach(&name, node);
                return Err(Errno::STALE);
            }
            Some(mode) => mode,
            None if may_pass => match self.backings.get(&source.version) {
                Ok(backing) => Mode::Cached(backing),
                Err(error) => {
                    tracing::warn!(%error, "no passthrough for this file");
                    Mode::Streaming
                }
            },
            None => Mode::Streaming,
        };
        let inode = modes.join(node.ino, mode.clone(), false);
        drop(modes);
        let (how, label) = match mode {
            Mode::Cached(backing) => (How::Passthrough(backing), "passthrough"),
            Mode::Streaming => (How::KeepCache, "streaming"),
            Mode::Draft(_) => (How::DropCache, "staging"),
        };
        self.engine.metrics.opens.with_label_values(&[label]).inc();
        self.engine.cache.used(&source.version);
        Ok(self.file_handle(node, inode, Some(source), how, None))
    }

    pub(super) fn file_handle(
        &self,
        node: &Arc<FileNode>,
        inode: Arc<OpenInode>,
        source: Option<Source>,
        how: How,
        writer: Option<Opener>,
    ) -> Opened {
        // Several readers share the memory: none looks further ahead than half of it.
        let widest = (self.engine.buffers.total() / 2).min(64 << 20);
        let handle = FileHandle {
            node: node.clone(),
            inode,
            source,
            window: Mutex::new(Window::new(widest)),
            served: AtomicU64::new(0),
            writer,
        };
        Opened { fh: self.handles.add(Handle::File(handle)), how }
    }

    /// Whether all of a small version is on disk or in memory.
    fn is_here(&self, version: &Arc<CachedVersion>) -> bool {
        version.is_complete()
            || self.engine.reader.read_now(version, 0, version.size(), Purpose::Hold).is_some()
    }

    fn count_open(&self, version: &CachedVersion) {
        let metrics = &self.engine.metrics;
        match version.is_complete() {
            true => {
                metrics.cache_hits.inc();
                metrics.saved_bytes.inc_by(version.size());
            }
            false => metrics.cache_misses.inc(),
        }
    }

    /// Like [`Session::release`], if nothing must be waited for; says whether it is done.
    pub fn release_now(&self, fh: u64) -> bool {
        match self.handles.get(fh).as_deref() {
            Some(Handle::File(FileHandle { writer: Some(_), .. })) => false,
            _ => {
                let ended = self.close_handle(fh);
                debug_assert!(ended.is_none(), "a reader ends no change");
                true
            }
        }
    }

    /// Takes a handle out. Returns a file under change whose last writer it was.
    fn close_handle(&self, fh: u64) -> Option<Arc<Draft>> {
        let Some(handle) = self.handles.remove(fh) else {
            // An earlier engine's.
            self.engine.leftovers.forget_handle(&self.settings.names.mount, fh);
            return None;
        };
        let Handle::File(open) = &*handle else { return None };
        if let Some(source) = &open.source {
            self.engine.cache.used(&source.version);
        }
        self.modes.close(open.node.ino, open.writer.is_some())
    }

    /// Closes a handle for good. For the last writer of a file this stores what is still dirty.
    pub async fn release(self: &Arc<Self>, fh: u64) {
        if let Some(draft) = self.close_handle(fh) {
            let session = self.clone();
            self.task(async move {
                session.finish(&draft).await;
                Ok(())
            })
            .await
            .unwrap_or_default();
        }
    }
}
