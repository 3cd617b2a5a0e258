//! One mount: names, attributes and directories.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use tokio::sync::{Notify, Semaphore};

use super::access::Access;
use super::ahead::Walkers;
use super::backing::BackingPool;
use super::end::UnstoredFiles;
use super::expiry::KernelNames;
use super::handles::{Handle, Handles};
use super::kernel::KernelPort;
use super::modes::Modes;
use super::reservations::Reservations;
use super::retries::Retries;
use super::{Engine, SessionSettings};
use crate::blocking::MayBlock;
use crate::cache::{CachedVersion, Preference};
use crate::logged::LoggedName;
use crate::model::version::{BucketId, VersionKey};
use crate::namespace::dir::Dir;
use crate::namespace::dir::kernel_cache::{CacheUse, DirView, Snapshot};
use crate::namespace::file::FileNode;
use crate::namespace::hidden::HiddenKeys;
use crate::namespace::inode::KernelNodes;
use crate::namespace::refresh::DirNames;
use crate::namespace::stream::StreamedName;
use crate::namespace::{AccessSettings, LookupError, Namespace, Node};
use crate::origin::Origin;
use crate::origin::aliases::Aliases;
use crate::origin::announced::Announced;
use crate::origin::conditional::Conditional;
use crate::read::Source;
use crate::read::lane::Lane;
use crate::write::Writer;
use crate::write::draft::{LoneUploads, Owner};

/// What every directory begins with.
const DOTS: [&str; 2] = [".", ".."];
/// Names that a buffer of the kernel's may take, and more.
const NAMES_MAX: usize = 1024;

/// One mount.
pub struct Session {
    pub(crate) engine: Arc<Engine>,
    pub(crate) names: Arc<Namespace>,
    pub(super) writer: Arc<Writer>,
    pub(crate) settings: SessionSettings,
    pub(super) access: Access,
    pub(super) modes: Modes,
    pub(super) handles: Handles,
    pub(super) backings: Arc<BackingPool>,
    pub(super) kernel_names: Arc<KernelNames>,
    pub(super) walkers: Walkers,
    pub(super) retries: Retries,
    pub(super) reservations: Reservations,
    /// Which disks of the cache are near to its readers.
    preference: RwLock<Preference>,
    started: SystemTime,
    /// Device number of the mount, as `major:minor`.
    device: OnceLock<String>,
    /// Last closes that are being finished.
    pub(super) finishing: AtomicUsize,
    pub(super) finished: Notify,
    pub(super) unstored: UnstoredFiles,
    /// What its origin may have of what all mounts share.
    lane: Arc<Lane>,
    /// Closes that ask about processes side by side: who closes much holds up nobody else.
    pub(super) closes: Semaphore,
}

/// See [`Session::closes`].
const CLOSES_MAX: usize = 8;

/// Attributes of a node.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Nodeid.
    pub ino: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Size in bytes.
    pub size: u64,
    /// Last modification.
    pub mtime: SystemTime,
}

/// What a directory entry shows.
pub struct Entry {
    /// Its attributes.
    pub attr: Attr,
    /// How long the kernel may believe them.
    pub ttl: Duration,
}

impl Session {
    /// A mount of what `origin` holds, for a tenant, whose name is empty where there is no other one.
    /// Uploads that an earlier run left are aborted in the background.
    pub async fn new(
        engine: Arc<Engine>,
        origin: Arc<dyn Origin>,
        mut settings: SessionSettings,
        tenant: &str,
    ) -> Arc<Self> {
        let access = Access::new(&mut settings.names, &engine, origin.bucket_id()).await;
        let hidden = HiddenKeys::new(engine.metrics.clone());
        let verdicts = engine.verdicts.clone();
        let owner = Owner {
            bucket: origin.bucket_id().as_str().to_owned(),
            identity: settings.names.access.identity.clone(),
        };
        let live = engine.live_uploads.clone();
        let uploads = Arc::new(LoneUploads::new(engine.cache.clone(), owner, live.clone()));
        let origin = Conditional::new(origin, &settings.names.prefix, verdicts, uploads);
        let origin: Arc<dyn Origin> = Arc::new(Aliases::new(Arc::new(origin)));
        let hearing = engine.hearing_of(origin.bucket_id(), &settings.names);
        let origin = match &hearing {
            Some(hearing) => Arc::new(Announced::new(origin, hearing.clone())),
            None => origin,
        };
        let memory = engine.name_memory.clone();
        let (cache, shown) = (engine.cache.clone(), settings.names.clone());
        let names = Namespace::new(origin, cache, memory, hidden, shown, hearing.clone());
        let writer = Writer::new(
            names.clone(),
            engine.metrics.clone(),
            engine.runtime.clone(),
            settings.write_part,
            live,
            engine.cache.share(tenant),
        );
        let handles = Handles::new(settings.names.first_ino, engine.name_memory.clone());
        let lane = engine.reader.lane(names.bucket());
        let session = Arc::new(Self {
            engine,
            access,
            names,
            writer,
            settings,
            modes: Modes::default(),
            handles,
            backings: Arc::default(),
            kernel_names: Arc::default(),
            walkers: Walkers::default(),
            retries: Retries::default(),
            reservations: Reservations::default(),
            preference: RwLock::new(Arc::new([])),
            started: SystemTime::now(),
            device: OnceLock::new(),
            finishing: AtomicUsize::new(0),
            finished: Notify::new(),
            unstored: UnstoredFiles::default(),
            lane,
            closes: Semaphore::new(CLOSES_MAX),
        });
        session.start();
        if let Some(hearing) = hearing {
            let listener: Weak<Self> = Arc::downgrade(&session);
            hearing.listen(listener);
        }
        session
    }

    fn start(self: &Arc<Self>) {
        self.show_staleness();
        let pool: Weak<BackingPool> = Arc::downgrade(&self.backings);
        self.engine.cache.on_pressure(pool);
        if !self.settings.read_only {
            let (writer, engine) = (self.writer.clone(), self.engine.clone());
            let held = writer.hold_names(&engine.leftovers);
            let work = async move { writer.work_off(&engine.leftovers, held).await };
            self.engine.runtime.spawn(work);
        }
        let weak = Arc::downgrade(self);
        self.engine.runtime.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(10)).await;
                let Some(session) = weak.upgrade() else { return };
                session.backings.sweep();
                session.show_staleness();
            }
        });
    }

    /// Makes passthrough possible, once the kernel has agreed to it.
    pub fn connect_kernel(&self, port: Arc<dyn KernelPort>) {
        // No other process reaches the files of a spare cache.
        if self.settings.passthrough && !self.engine.cache.is_spare() {
            self.backings.connect(port);
        }
    }

    /// From now on the kernel can be asked to forget nodes, for as long as this is there.
    pub fn connect_nodes(&self, kernel: &Arc<dyn KernelNodes>) {
        self.names.inodes.connect(kernel);
    }

    /// Prefers these disks of the cache for what is first used from now on.
    pub fn prefer(&self, preference: Preference) {
        *self.preference.write().unwrap_or_else(PoisonError::into_inner) = preference;
    }

    pub(super) fn preference(&self) -> Preference {
        self.preference.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where a version's bytes are to be had.
    pub(super) fn source(&self, may: &MayBlock, key: &VersionKey) -> Source {
        self.source_of(self.engine.cache.acquire(may, key, &self.preference()))
    }

    fn source_of(&self, version: Arc<CachedVersion>) -> Source {
        Source { origin: self.names.origin.clone(), lane: self.lane.clone(), version }
    }

    /// As [`Session::source`], for a task.
    pub(super) async fn source_in_turn(&self, key: &VersionKey) -> Source {
        let version = self.engine.cache.acquire_in_turn(key, &self.preference()).await;
        self.source_of(version)
    }

    /// Notes the device number that the kernel gave the mount.
    pub fn set_device(&self, device: &str) {
        let _ = self.device.set(device.to_owned());
    }

    /// Device number of the mount, as `major:minor`; empty before it is mounted.
    pub(super) fn device(&self) -> &str {
        self.device.get().map_or("", String::as_str)
    }

    /// How this mount behaves.
    pub fn settings(&self) -> &SessionSettings {
        &self.settings
    }

    /// The bucket that it shows.
    pub fn bucket(&self) -> &BucketId {
        self.names.bucket()
    }

    /// The engine that it belongs to.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(super) fn dir(&self, ino: u64) -> Result<Arc<Dir>, Errno> {
        match self.names.inodes.get(ino) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => Err(Errno::NOTDIR),
            None => Err(Errno::STALE),
        }
    }

    pub(super) fn file(&self, ino: u64) -> Result<Arc<FileNode>, Errno> {
        match self.names.inodes.get(ino) {
            Some(Node::File(node)) => Ok(node),
            Some(Node::Dir(_)) => Err(Errno::ISDIR),
            None => Err(Errno::STALE),
        }
    }

    /// Answers a lookup from what is known; `None` when the origin must be asked.
    pub fn lookup_now(&self, parent: u64, name: &str) -> Option<Result<Entry, Errno>> {
        let dir = match self.dir(parent) {
            Ok(dir) => dir,
            Err(errno) => return Some(Err(errno)),
        };
        let found = self.names.lookup_now(&dir, name)?;
        Some(self.show(&dir, name, found))
    }

    /// Answers a lookup.
    ///
    /// # Errors
    /// The errno for the process; ENOENT may be remembered for the negative lifetime.
    pub async fn lookup(&self, parent: u64, name: &str) -> Result<Entry, Errno> {
        let dir = self.dir(parent)?;
        let found = self.names.lookup(&dir, name).await;
        self.show(&dir, name, found)
    }

    fn show(
        &self,
        dir: &Arc<Dir>,
        name: &str,
        found: Result<Node, LookupError>,
    ) -> Result<Entry, Errno> {
        let found = found.map_err(|error| {
            if let LookupError::Origin(refusal) = &error
                && refusal.is_refusal()
            {
                let (session, name) = (self.names.session(), LoggedName(name));
                tracing::warn!(session, %name, error = %refusal, "look-up refused");
            }
            lookup_errno(&error)
        })?;
        let attr = self.refer(found);
        Ok(Entry { attr, ttl: self.names.kernel_ttl(dir, name) })
    }

    /// Counts a reference that the kernel is about to get.
    pub(super) fn refer(&self, found: Node) -> Attr {
        let attr = match &found {
            Node::Dir(dir) => self.dir_attr(dir.ino),
            Node::File(file) => file_attr(file),
        };
        self.names.inodes.referenced(attr.ino, found);
        attr
    }

    /// Takes references of the kernel back.
    pub fn forget(&self, ino: u64, count: u64) {
        self.names.inodes.forget(ino, count);
    }

    /// How long the absence of a name may be believed.
    pub fn negative_ttl(&self) -> Duration {
        self.settings.names.negative_ttl.duration()
    }

    /// Attributes of a node, without asking the origin: a node is one version.
    ///
    /// # Errors
    /// ESTALE for a nodeid that is not known.
    pub fn getattr(&self, ino: u64) -> Result<Entry, Errno> {
        match self.names.inodes.get(ino) {
            Some(Node::Dir(dir)) => {
                Ok(Entry { attr: self.dir_attr(dir.ino), ttl: self.names.ttl() })
            }
            Some(Node::File(node)) => {
                let (dir, name) = node.place();
                Ok(Entry { attr: file_attr(&node), ttl: self.names.kernel_ttl(&dir, &name) })
            }
            None => Err(Errno::STALE),
        }
    }

    fn dir_attr(&self, ino: u64) -> Attr {
        Attr { ino, is_dir: true, size: 0, mtime: self.started }
    }

    /// Opens a directory. The second value says what the descriptor has to do with the names that
    /// the kernel remembers of it.
    ///
    /// # Errors
    /// The errno for the process.
    pub async fn opendir(self: &Arc<Self>, ino: u64) -> Result<(u64, CacheUse), Errno> {
        let dir = self.dir(ino)?;
        self.handles.check_room()?;
        self.follow_listings(&dir);
        match self.names.read_dir(&dir).await.map_err(|error| error.errno())? {
            DirNames::Whole(names) => Ok(self.dir_handle(dir, names)),
            DirNames::Streamed(stream) => {
                let stream = tokio::sync::Mutex::new(*stream);
                Ok((self.handles.add(Handle::DirStream(stream)), CacheUse::Bypass))
            }
        }
    }

    /// Like [`Session::opendir`], if nothing must be waited for.
    pub fn opendir_now(self: &Arc<Self>, ino: u64) -> Option<Result<(u64, CacheUse), Errno>> {
        let dir = match self.dir(ino).and_then(|dir| self.handles.check_room().map(|()| dir)) {
            Ok(dir) => dir,
            Err(errno) => return Some(Err(errno)),
        };
        let names = self.names.read_dir_now(&dir)?;
        self.follow_listings(&dir);
        Some(Ok(self.dir_handle(dir, names)))
    }

    fn dir_handle(&self, dir: Arc<Dir>, names: Snapshot) -> (u64, CacheUse) {
        let view = DirView::open(dir, names);
        let cache_use = view.cache_use();
        (self.handles.add(Handle::Dir(view)), cache_use)
    }

    /// Names of an open directory from `offset` on. For each, `add` gets the offset after it, the
    /// name, and its attributes if they are known and `plus` is set; it says whether to go on.
    /// `false`: they have to be waited for, see [`Session::stream_names`].
    ///
    /// # Errors
    /// EBADF for a handle that is none.
    pub fn readdir(
        &self,
        fh: u64,
        offset: u64,
        plus: bool,
        mut add: impl FnMut(u64, &str, bool, Option<Entry>) -> bool,
    ) -> Result<bool, Errno> {
        let handle = self.handles.get(fh).ok_or(Errno::BADF)?;
        let open = match &*handle {
            Handle::Dir(open) => open,
            Handle::DirStream(_) if offset >= DOTS.len() as u64 => return Ok(false),
            // The dots alone: what comes then is asked for.
            Handle::DirStream(_) => {
                for (at, name) in DOTS.iter().enumerate().skip(offset as usize) {
                    add(at as u64 + 1, name, true, None);
                }
                return Ok(true);
            }
            Handle::File(_) => return Err(Errno::NOTDIR),
        };
        let dots = DOTS.into_iter().map(|name| (name, true));
        let names = open.read().iter().map(|entry| (&*entry.name, entry.is_dir));
        let all = dots.chain(names).enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        for (at, (name, is_dir)) in all {
            let dot = at < DOTS.len();
            let found = if plus && !dot { self.names.present(open.dir(), name) } else { None };
            let shown = match found {
                Some(Ok(found)) => {
                    let ttl = self.names.kernel_ttl(open.dir(), name);
                    Some(Entry { attr: self.refer(found), ttl })
                }
                _ => None,
            };
            let referred = shown.as_ref().map(|shown| shown.attr.ino);
            if !add(at as u64 + 1, name, is_dir, shown) {
                // The kernel did not get this one.
                if let Some(ino) = referred {
                    self.forget(ino, 1);
                }
                break;
            }
        }
        Ok(true)
    }

    /// Names of an open directory that is read page by page: some from `offset` on, or none at the
    /// end.
    ///
    /// # Errors
    /// EBADF for a handle that is none; what the origin reports.
    pub async fn stream_names(&self, fh: u64, offset: u64) -> Result<Vec<StreamedName>, Errno> {
        let handle = self.handles.get(fh).ok_or(Errno::BADF)?;
        let Handle::DirStream(stream) = &*handle else { return Err(Errno::NOTDIR) };
        let mut stream = stream.lock().await;
        let at = offset.saturating_sub(DOTS.len() as u64);
        let names = stream.read(&self.names, at).await.map_err(|error| error.errno())?;
        Ok(names[..names.len().min(NAMES_MAX)].to_vec())
    }

    /// Notes that the kernel is about to be told of one of these names, and gives its attributes;
    /// [`Session::forget`] where it was not told.
    pub fn show_streamed(&self, parent: u64, name: &StreamedName) -> Option<Entry> {
        let dir = self.dir(parent).ok()?;
        let found = self.names.show_streamed(&dir, name)?;
        let ttl = self.names.kernel_ttl(&dir, &name.name);
        Some(Entry { attr: self.refer(found), ttl })
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: u64) {
        self.handles.remove(fh);
    }

    /// Runs the end of a write so that the session waits for it.
    pub(super) async fn finishing<T>(&self, work: impl Future<Output = T>) -> T {
        self.finishing.fetch_add(1, Ordering::AcqRel);
        let done = work.await;
        self.finishing.fetch_sub(1, Ordering::AcqRel);
        self.finished.notify_waiters();
        done
    }

    /// The end of one piece of such work; to be enabled before the state is looked at.
    pub(super) fn one_finished(&self) -> tokio::sync::futures::Notified<'_> {
        self.finished.notified()
    }

    /// Notes that the origin is asked with other credentials from now on, which have replaced those
    /// before.
    pub async fn credentials_changed(&self, access: &AccessSettings) {
        self.names.origin.credentials_changed();
        self.access.replace(&self.engine.cache, self.names.bucket(), access).await;
    }
}

pub(super) fn file_attr(node: &FileNode) -> Attr {
    let (size, mtime) = node.size_and_mtime();
    Attr { ino: node.ino, is_dir: false, size, mtime }
}

pub(super) fn lookup_errno(error: &LookupError) -> Errno {
    match error {
        LookupError::Absent => Errno::NOENT,
        LookupError::BadName(_) => Errno::NAMETOOLONG,
        LookupError::Origin(error) => error.errno(),
    }
}
