//! A node without a kernel, over an origin in memory.
#![allow(dead_code, reason = "each test program uses its part")]

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tempfile::TempDir;
use weir_fuse::blocking::{MayBlock, in_place};
use weir_fuse::cache::{CacheSettings, NodeCache};
use weir_fuse::engine::io::ReadNow;
use weir_fuse::engine::open::OpenRequest;
use weir_fuse::engine::owner::Proc;
use weir_fuse::engine::{Engine, Session, SessionSettings};
use weir_fuse::metrics::Metrics;
use weir_fuse::model::attr::Ownership;
use weir_fuse::model::key::DirPrefix;
use weir_fuse::model::ttl::MetadataTtl;
use weir_fuse::namespace::{AccessSettings, NamespaceSettings, first_ino};
use weir_fuse::origin::faulty::Faulty;
use weir_fuse::origin::memory::MemoryOrigin;
use weir_fuse::origin::{Origin, OriginError};

pub(crate) const ROOT: u64 = 1;
pub(crate) const MIB: usize = 1 << 20;

/// Does what may wait, for a test that runs as a task.
pub(crate) fn off_task<T: Send>(work: impl FnOnce(&MayBlock) -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(|| work(&MayBlock::own_thread())).join().unwrap())
}

/// An engine, and the bucket that its mounts show.
pub(crate) struct Node {
    pub(crate) memory: Arc<MemoryOrigin>,
    /// The bucket as [`Node::session`] sees it.
    pub(crate) faulty: Arc<Faulty>,
    pub(crate) engine: Arc<Engine>,
    _dir: TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::over(Arc::new(MemoryOrigin::new("bucket")), tempfile::tempdir().unwrap())
    }

    pub(crate) fn over(memory: Arc<MemoryOrigin>, dir: TempDir) -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        let settings = CacheSettings::one(dir.path(), u64::MAX, 0);
        let cache = in_place(|may| NodeCache::open(may, &settings, metrics.clone())).unwrap();
        let runtime = tokio::runtime::Handle::current();
        let engine = in_place(|may| {
            Engine::new(may, cache, 128 << 20, metrics, runtime, 1 << 20, Arc::new(Proc))
        })
        .unwrap();
        let faulty = Arc::new(Faulty::new(memory.clone()));
        Self { memory, faulty, engine, _dir: dir }
    }

    pub(crate) fn staging(&self) -> std::path::PathBuf {
        self.engine.cache.dirs().next().unwrap().join("staging")
    }

    /// How many records of files under change there are.
    pub(crate) fn records(&self) -> usize {
        self.staged().iter().filter(|path| path.extension().is_some()).count()
    }

    /// What is in the staging folder, but for the files of records to come.
    pub(crate) fn staged(&self) -> Vec<std::path::PathBuf> {
        let files = std::fs::read_dir(self.staging()).unwrap().flatten();
        let is_spare = |path: &std::path::Path| {
            path.extension().is_some_and(|of| of == "record") && path.metadata().unwrap().len() == 0
        };
        files.map(|file| file.path()).filter(|path| !is_spare(path)).collect()
    }

    /// What the next process finds in the cache directory when this one is killed now.
    pub(crate) fn killed(&self) -> Self {
        let next = tempfile::tempdir().unwrap();
        let staging = next.path().join("staging");
        std::fs::create_dir_all(&staging).unwrap();
        for entry in std::fs::read_dir(self.staging()).unwrap().flatten() {
            std::fs::copy(entry.path(), staging.join(entry.file_name())).unwrap();
        }
        let tag = "CACHEDIR.TAG";
        let dir = staging.parent().unwrap();
        std::fs::copy(self.staging().with_file_name(tag), dir.join(tag)).unwrap();
        Self::over(self.memory.clone(), next)
    }

    /// A mount of this origin, which believes what it was told for so many seconds.
    pub(crate) fn mount(&self, origin: Arc<dyn Origin>, ttl_secs: u64) -> Arc<Session> {
        self.mount_of(origin, ttl_secs, "", 0)
    }

    /// A mount with these credentials, which believes for a minute what it was told, and its origin.
    pub(crate) fn session_as(&self, access: AccessSettings) -> (Arc<Faulty>, Arc<Session>) {
        let faulty = Arc::new(Faulty::new(self.memory.clone()));
        let session = self.mount_as(faulty.clone(), 60, "", 0, access);
        (faulty, session)
    }

    fn mount_of(
        &self,
        origin: Arc<dyn Origin>,
        ttl_secs: u64,
        mount: &str,
        engine: u16,
    ) -> Arc<Session> {
        self.mount_as(origin, ttl_secs, mount, engine, AccessSettings::default())
    }

    pub(crate) fn mount_as(
        &self,
        origin: Arc<dyn Origin>,
        ttl_secs: u64,
        mount: &str,
        engine: u16,
        access: AccessSettings,
    ) -> Arc<Session> {
        let ttl = MetadataTtl::For(Duration::from_secs(ttl_secs));
        let names = NamespaceSettings {
            prefix: DirPrefix::root(),
            ttl,
            negative_ttl: ttl,
            first_ino: first_ino(engine),
            mount: mount.into(),
            access,
            feed: false,
        };
        let settings = SessionSettings {
            names,
            ownership: Ownership { uid: 0, gid: 0, file_mode: 0o644, dir_mode: 0o755 },
            read_only: false,
            passthrough: true,
            write_part: 5 << 20,
        };
        let engine = self.engine.clone();
        let runtime = tokio::runtime::Handle::current();
        let make = || runtime.block_on(Session::new(engine, origin, settings, ""));
        std::thread::scope(|scope| scope.spawn(make).join().unwrap())
    }

    /// A mount whose origin misbehaves on command.
    pub(crate) fn faulty(&self, ttl_secs: u64) -> (Arc<Faulty>, Arc<Session>) {
        let faulty = Arc::new(Faulty::new(self.memory.clone()));
        let session = self.mount(faulty.clone(), ttl_secs);
        (faulty, session)
    }

    /// A mount that believes for a minute what it was told.
    pub(crate) fn session(&self) -> Arc<Session> {
        self.mount(self.faulty.clone(), 60)
    }

    /// As [`Node::session`]; the engine of this number that serves the mount `mount`.
    pub(crate) fn session_of(&self, mount: &str, engine: u16) -> Arc<Session> {
        self.mount_of(self.faulty.clone(), 60, mount, engine)
    }
}

pub(crate) async fn read(
    session: &Arc<Session>,
    fh: u64,
    offset: u64,
    len: u64,
) -> Result<Vec<u8>, Errno> {
    match session.read_now(fh, offset, len)? {
        ReadNow::Data(data) => Ok(data.to_vec()),
        ReadNow::Disk(waits) | ReadNow::Origin(waits) => {
            session.read(waits).await.map(|data| data.to_vec())
        }
    }
}

pub(crate) async fn open(session: &Arc<Session>, parent: u64, name: &str) -> u64 {
    let ino = session.lookup(parent, name).await.unwrap().attr.ino;
    session.open(ino, &OpenRequest::default()).await.unwrap().fh
}

pub(crate) async fn create(session: &Arc<Session>, name: &str, exclusive: bool) -> u64 {
    let request = OpenRequest { write: true, exclusive, ..OpenRequest::default() };
    session.create(ROOT, name, &request).await.unwrap().1.fh
}

pub(crate) fn unavailable() -> OriginError {
    OriginError::Unavailable("503 SlowDown".into())
}

pub(crate) fn denied() -> OriginError {
    OriginError::Denied("AccessDenied".into())
}

/// What a thread that may wait asks of a session, asked by a task.
pub(crate) trait InPlace {
    /// Writes through a handle.
    fn put(&self, fh: u64, offset: u64, data: &[u8]) -> Result<u32, Errno>;
}

impl InPlace for Arc<Session> {
    fn put(&self, fh: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        in_place(|may| self.write(may, fh, offset, data))
    }
}
