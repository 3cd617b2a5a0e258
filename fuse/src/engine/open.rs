//! Opening files for reading, and closing them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;

use super::access::Proof;
use super::admission::{Admission, Attempt, Inode, Name, Refusal, Request, admission};
use super::backing::Backing;
use super::handles::{FileHandle, Handle, Opener};
use super::modes::{LockedModes, Mode, OpenInode};
use super::retries::place_of;
use super::session::Session;
use super::{PASSTHROUGH_MIN, SMALL_MAX};
use crate::blocking::{MayBlock, Turns};
use crate::cache::CachedVersion;
use crate::logged::LoggedName;
use crate::model::version::VersionKey;
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

/// An open file, as the kernel is told of it.
pub struct OpenFile {
    /// Number of the handle.
    pub fh: u64,
    /// How the kernel reads and writes it.
    pub io_mode: IoMode,
}

/// How the kernel reads and writes an open file.
pub enum IoMode {
    /// Through its page cache; what it has of the inode stays valid.
    KeepCache,
    /// Through its page cache, which is emptied first.
    DropCache,
    /// By itself, from this file.
    Passthrough(Arc<Backing>),
}

/// An open under way.
pub(super) struct OpenCall<'a> {
    pub(super) node: &'a Arc<FileNode>,
    pub(super) flags: &'a OpenRequest,
    pub(super) request: Request,
    pub(super) attempt: Attempt,
    /// The process that asks, where it is to write.
    pub(super) process: u32,
}

/// What an open came to without waiting.
pub enum OpenNow {
    /// It is done, or refused.
    Done(Result<OpenFile, Errno>),
    /// The kernel is to be told of a file first: [`Session::open_telling`], by one of the engine's
    /// threads that has one of these turns.
    Tell(Arc<Turns>),
    /// The origin may have to be asked: [`Session::open`].
    Ask,
}

/// How far an open for reading has come.
enum Step {
    Done(Result<OpenFile, Errno>),
    /// The kernel does not know the file of a version at this disk.
    Tell(Arc<Turns>),
    /// The whole of this small version is to be fetched first.
    Fetch(Source),
    /// The version that the name shows is to be looked for.
    Find,
}

/// The kernel's id of a version.
enum Known {
    As(Arc<Backing>),
    /// It is to be told first.
    NotYet,
    /// It cannot be told.
    Never,
}

impl From<Option<Arc<Backing>>> for Known {
    fn from(told: Option<Arc<Backing>>) -> Self {
        told.map_or(Self::Never, Self::As)
    }
}

impl Session {
    /// Opens for reading if neither the origin nor the kernel must be waited for.
    pub fn open_now(self: &Arc<Self>, may: &MayBlock, ino: u64, flags: &OpenRequest) -> OpenNow {
        self.open_here(may, ino, flags, |version| self.known(version))
    }

    /// As [`Session::open_now`]; tells the kernel of the file where it does not know it.
    pub fn open_telling(
        self: &Arc<Self>,
        may: &MayBlock,
        ino: u64,
        flags: &OpenRequest,
    ) -> OpenNow {
        self.open_here(may, ino, flags, |version| self.register(may, version).into())
    }

    fn open_here(
        self: &Arc<Self>,
        may: &MayBlock,
        ino: u64,
        flags: &OpenRequest,
        backing: impl FnOnce(&Arc<CachedVersion>) -> Known,
    ) -> OpenNow {
        if Request::of(flags) != Request::Read {
            return OpenNow::Ask;
        }
        let node = match self.file(ino).and_then(|node| self.handles.check_room().map(|()| node)) {
            Ok(node) => node,
            Err(errno) => return OpenNow::Done(Err(errno)),
        };
        let call = self.open_call(&node, flags);
        if call.request.heeds_reservations() && self.reservations.is_reserved(|| place_of(&node)) {
            return OpenNow::Ask;
        }
        let Some(current) = self.names.is_current_now(&node) else { return OpenNow::Ask };
        if self.proof(&node) == Proof::Needed {
            return OpenNow::Ask;
        }
        let find = |key: &VersionKey| Some(self.source(may, key));
        match self.try_reading(&call, Name::of(current), false, find, backing) {
            Step::Done(result) => OpenNow::Done(self.end_open(&call, result)),
            Step::Tell(threads) => OpenNow::Tell(threads),
            Step::Fetch(_) | Step::Find => OpenNow::Ask,
        }
    }

    /// Opens a file.
    ///
    /// # Errors
    /// The errno for the process. ESTALE makes the kernel look the name up again and retry.
    pub async fn open(self: &Arc<Self>, ino: u64, flags: &OpenRequest) -> Result<OpenFile, Errno> {
        let process = match Request::of(flags) {
            Request::Read => 0,
            _ => self.process_of(flags.thread).await,
        };
        self.open_as(ino, flags, process).await
    }

    /// As [`Session::open`]; who is to write is this process, or 0 where that is unknown.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub(super) async fn open_as(
        self: &Arc<Self>,
        ino: u64,
        flags: &OpenRequest,
        process: u32,
    ) -> Result<OpenFile, Errno> {
        let node = self.file(ino)?;
        self.handles.check_room()?;
        let call = OpenCall { process, ..self.open_call(&node, flags) };
        let result = self.open_node(&call).await;
        self.end_open(&call, result)
    }

    fn open_call<'a>(&self, node: &'a Arc<FileNode>, flags: &'a OpenRequest) -> OpenCall<'a> {
        let attempt = self.retries.attempt(flags.thread, node);
        OpenCall { node, flags, request: Request::of(flags), attempt, process: 0 }
    }

    /// Notes how an open ended: whether the kernel comes back, or its process is answered.
    fn end_open<T>(&self, call: &OpenCall<'_>, result: Result<T, Errno>) -> Result<T, Errno> {
        match (&result, call.attempt) {
            (Err(Errno::STALE), Attempt::First) => {
                self.retries.expect(call.flags.thread, call.node);
            }
            _ => {
                self.retries.end(call.flags.thread);
                if call.request != Request::Read {
                    self.reservations.redeem(|| place_of(call.node));
                }
            }
        }
        result
    }

    async fn open_node(self: &Arc<Self>, call: &OpenCall<'_>) -> Result<OpenFile, Errno> {
        let node = call.node;
        if call.request.heeds_reservations() {
            self.reservations.until_free(|| place_of(node)).await;
        }
        if call.request == Request::Read {
            let current = self.names.is_current(node).await.map_err(|error| error.errno())?;
            self.check_access(call).await?;
            return self.open_for_reading(call, Name::of(current)).await;
        }
        loop {
            match self.open_writable(call).await {
                Some(result) => return result,
                None => self.until_finished(node.ino).await,
            }
        }
    }

    async fn open_for_reading(
        self: &Arc<Self>,
        call: &OpenCall<'_>,
        name: Name,
    ) -> Result<OpenFile, Errno> {
        let mut fetched = false;
        let mut found: Option<Source> = None;
        loop {
            let _registered = match &found {
                Some(source) => self.registered(&source.version).await,
                None => None,
            };
            // What is not known now is served without.
            let known = |version: &Arc<CachedVersion>| self.backings.get(version).into();
            let find = |key: &VersionKey| found.take_if(|source| source.version.key == *key);
            match self.try_reading(call, name, fetched, find, known) {
                Step::Done(result) => return result,
                Step::Tell(_) => return Err(Errno::IO),
                Step::Find => {
                    let key = self.names.version_key(call.node).ok_or(Errno::STALE)?;
                    found = Some(self.source_in_turn(&key).await);
                }
                // It changed again while it was.
                Step::Fetch(_) if fetched => return Err(Errno::IO),
                Step::Fetch(source) => {
                    self.fetch_whole(&source).await?;
                    (fetched, found) = (true, Some(source));
                }
            }
        }
    }

    async fn fetch_whole(&self, source: &Source) -> Result<(), Errno> {
        self.engine.metrics.cache_misses.inc();
        self.engine.reader.fetch_whole(source).await.map_err(|error| {
            let key = LoggedName(&source.version.key.key);
            tracing::warn!(session = self.names.session(), %key, %error, "open failed");
            error.errno()
        })
    }

    /// Makes the kernel know a version, where it may read that by itself.
    async fn registered(self: &Arc<Self>, version: &Arc<CachedVersion>) -> Option<Arc<Backing>> {
        if !self.is_passable(version) {
            return None;
        }
        match self.backings.get(version) {
            Some(backing) => Some(backing),
            None => {
                let (session, version) = (self.clone(), version.clone());
                let turn = version.threads().take().await;
                let register = move |may: &MayBlock| {
                    let registered = session.register(may, &version);
                    drop(turn);
                    registered
                };
                self.engine.waiting.work(&self.engine.runtime, register).await
            }
        }
    }

    fn known(&self, version: &CachedVersion) -> Known {
        self.backings.get(version).map_or(Known::NotYet, Known::As)
    }

    fn register(&self, may: &MayBlock, version: &Arc<CachedVersion>) -> Option<Arc<Backing>> {
        self.backings
            .register(may, version)
            .inspect_err(|error| tracing::warn!(%error, "no passthrough for this file"))
            .ok()
    }

    /// Whether the kernel may read a version by itself.
    fn is_passable(&self, version: &CachedVersion) -> bool {
        version.size() >= PASSTHROUGH_MIN && version.is_trusted() && self.backings.is_connected()
    }

    /// Opens for reading with what is here. `find` gives a version, where it has it, and `backing` the
    /// kernel's id of one.
    fn try_reading(
        self: &Arc<Self>,
        call: &OpenCall<'_>,
        name: Name,
        fetched: bool,
        find: impl FnOnce(&VersionKey) -> Option<Source>,
        backing: impl FnOnce(&Arc<CachedVersion>) -> Known,
    ) -> Step {
        let node = call.node;
        let modes = self.modes.lock();
        if let Err(errno) = self.admit(&modes, call, name, false) {
            return Step::Done(Err(errno));
        }
        if let Some(Mode::Draft(draft)) = modes.present(node.ino) {
            return Step::Done(Ok(self.join_mode(modes, node, Mode::Draft(draft), None)));
        }
        drop(modes);
        let Some(key) = self.names.version_key(node) else {
            return Step::Done(Err(Errno::STALE));
        };
        let Some(source) = find(&key) else { return Step::Find };
        let small = source.version.size() <= SMALL_MAX;
        if small && !fetched && !self.is_here(&source.version) {
            return Step::Fetch(source);
        }
        // Before the modes are locked: it may take a while.
        let backing = match self.is_passable(&source.version).then(|| backing(&source.version)) {
            Some(Known::NotYet) => return Step::Tell(source.version.threads().clone()),
            Some(Known::As(backing)) => Some(backing),
            Some(Known::Never) | None => None,
        };
        if !fetched {
            self.count_open(&source.version);
        }
        let result = self.open_version(call, name, source, backing);
        if result.is_ok() && small {
            self.follow_files(node, fetched);
        }
        Step::Done(result)
    }

    /// What the table says of an open for reading; an error where it opens nothing.
    fn admit(
        &self,
        modes: &LockedModes<'_>,
        call: &OpenCall<'_>,
        name: Name,
        passable: bool,
    ) -> Result<(), Errno> {
        let inode = Inode::of(call.node, modes.present(call.node.ino).as_ref(), passable);
        match admission((name, inode), call.request, call.attempt) {
            Admission::Refuse(refusal) => Err(self.refuse(call.node, refusal)),
            // Readers join what is there, whatever becomes of it.
            Admission::Join | Admission::Begin | Admission::Wait => Ok(()),
        }
    }

    /// Does what belongs to the refusal of an open. The lock of the modes is held.
    pub(super) fn refuse(&self, node: &Arc<FileNode>, refusal: Refusal) -> Errno {
        let (dir, name) = node.place();
        match refusal {
            Refusal::NewInode => dir.detach(&name, node),
            Refusal::Reservation => {
                self.reservations.reserve((dir.ino, name.clone()));
                dir.detach(&name, node);
            }
            Refusal::Stale | Refusal::Busy | Refusal::Unsupported | Refusal::Exists => {}
        }
        refusal.errno()
    }

    fn open_version(
        self: &Arc<Self>,
        call: &OpenCall<'_>,
        name: Name,
        source: Source,
        backing: Option<Arc<Backing>>,
    ) -> Result<OpenFile, Errno> {
        if source.version.is_complete() && !source.version.is_trusted() {
            self.engine.reader.verify(&source);
        }
        let passable = self.is_passable(&source.version);
        let modes = self.modes.lock();
        self.admit(&modes, call, name, passable)?;
        let mode = match modes.present(call.node.ino) {
            Some(mode) => mode,
            None => backing.map_or(Mode::Streaming, Mode::Cached),
        };
        self.engine.cache.used(&source.version);
        Ok(self.join_mode(modes, call.node, mode, Some(source)))
    }

    /// Adds a reader to an inode that is, or comes to be, in this mode.
    fn join_mode(
        &self,
        mut modes: LockedModes<'_>,
        node: &Arc<FileNode>,
        mode: Mode,
        source: Option<Source>,
    ) -> OpenFile {
        let inode = modes.join(node.ino, mode.clone(), false);
        drop(modes);
        let (io_mode, label) = match mode {
            Mode::Cached(backing) => (IoMode::Passthrough(backing), "passthrough"),
            Mode::Streaming => {
                let reader = &self.engine.reader;
                let drops = |source: &Source| reader.has_doubtful_pages(&source.version);
                let drops = source.as_ref().is_some_and(drops);
                (if drops { IoMode::DropCache } else { IoMode::KeepCache }, "streaming")
            }
            Mode::Draft(_) => (IoMode::DropCache, "staging"),
        };
        self.engine.metrics.opens.with_label_values(&[label]).inc();
        self.file_handle(node, inode, source, io_mode, None)
    }

    pub(super) fn file_handle(
        &self,
        node: &Arc<FileNode>,
        inode: Arc<OpenInode>,
        source: Option<Source>,
        io_mode: IoMode,
        writer: Option<Opener>,
    ) -> OpenFile {
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
        OpenFile { fh: self.handles.add(Handle::File(handle)), io_mode }
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
            None if self.left_file(fh).is_some() => false,
            _ => {
                let ended = self.close_handle(fh);
                debug_assert!(ended.is_none(), "a reader ends no change");
                true
            }
        }
    }

    /// Takes a handle out. Returns a file under change whose last writer it was.
    pub(super) fn close_handle(&self, fh: u64) -> Option<Arc<Draft>> {
        let handle = self.handles.remove(fh)?;
        let Handle::File(open) = &*handle else { return None };
        if let Some(source) = &open.source {
            self.engine.cache.used(&source.version);
        }
        self.modes.close(open.node.ino, open.writer.is_some())
    }

    /// The file of a handle that an earlier engine left, if something is known of that.
    fn left_file(&self, fh: u64) -> Option<PathBuf> {
        self.engine.leftovers.file_of(&self.settings.names.mount, fh)
    }

    /// Closes a handle for good. For the last writer of a file this stores what is still dirty.
    pub async fn release(self: &Arc<Self>, fh: u64) {
        if let Some(file) = self.left_file(fh) {
            let (engine, mount) = (&self.engine, &self.settings.names.mount);
            let forget = |may: &_| engine.leftovers.forget_handle(may, mount, fh);
            engine.cache.at_disk_of(&file, forget).await;
        }
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
