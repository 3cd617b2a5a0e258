//! A node in this process: Weir's engine over an origin in memory that misbehaves on command.
//! With a kernel (real mounts) or without.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_fuse::adapter::{self, MountOptions, Mounted};
use weir_fuse::blocking::in_place;
use weir_fuse::cache::{CacheError, CacheSettings, DiskSettings, NodeCache};
use weir_fuse::engine::io::ReadNow;
use weir_fuse::engine::open::OpenRequest;
use weir_fuse::engine::owner::Proc;
use weir_fuse::engine::{Engine, Session, SessionSettings};
use weir_fuse::metrics::Metrics;
use weir_fuse::model::attr::Ownership;
use weir_fuse::model::key::DirPrefix;
use weir_fuse::model::ttl::MetadataTtl;
use weir_fuse::namespace::{AccessSettings, NamespaceSettings};
use weir_fuse::origin::faulty::Faulty;
use weir_fuse::origin::memory::MemoryOrigin;

use crate::{eventually, runtime};

/// How the node is set up.
#[derive(Clone, Copy, Debug)]
pub struct NodeSettings {
    /// Most bytes that the cache holds.
    pub cache_max: u64,
    /// Memory for bytes on their way, and for names.
    pub memory: u64,
    /// Most bytes of one GET.
    pub read_part: u64,
    /// Lifetime of metadata.
    pub ttl: MetadataTtl,
}

impl NodeSettings {
    /// What a node has where nothing else is said.
    pub const DEFAULT: Self = Self {
        cache_max: u64::MAX,
        memory: 32 << 20,
        read_part: 1 << 20,
        ttl: MetadataTtl::For(Duration::from_secs(60)),
    };
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// An engine, and what its mounts show.
pub struct Node {
    /// What S3 holds.
    pub memory: Arc<MemoryOrigin>,
    /// What stands before it.
    pub faulty: Arc<Faulty>,
    /// The engine.
    pub engine: Arc<Engine>,
    settings: NodeSettings,
}

impl Node {
    /// A node over this cache directory.
    pub fn new(cache: &Path, memory: Arc<MemoryOrigin>, settings: NodeSettings) -> Self {
        Self::on_disks(&[cache], memory, settings)
    }

    /// A node over several of them.
    pub fn on_disks(dirs: &[&Path], memory: Arc<MemoryOrigin>, settings: NodeSettings) -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        let disk = |dir: &&Path| DiskSettings::new(dir.to_path_buf(), settings.cache_max, 0);
        let cache = CacheSettings { disks: dirs.iter().map(disk).collect() };
        // What an earlier node of this process still has under way ends by itself.
        let mut opened = in_place(|may| NodeCache::open(may, &cache, metrics.clone()));
        eventually("the cache directory is free", || {
            if let Err(CacheError::InUse { .. }) = opened {
                opened = in_place(|may| NodeCache::open(may, &cache, metrics.clone()));
            }
            !matches!(opened, Err(CacheError::InUse { .. }))
        });
        let cache = opened.unwrap();
        let NodeSettings { memory: bytes, read_part, .. } = settings;
        let home = runtime().handle().clone();
        let engine = in_place(|may| {
            Engine::new(may, cache, bytes, metrics, home, read_part, Arc::new(Proc)).unwrap()
        });
        let faulty = Arc::new(Faulty::new(memory.clone()));
        Self { memory, faulty, engine, settings }
    }

    /// A session of this node.
    pub fn session(&self) -> Arc<Session> {
        self.session_of(self.faulty.clone(), AccessSettings::default())
    }

    /// A session of this node that asks `origin`, with credentials of its own.
    pub fn session_of(&self, origin: Arc<Faulty>, access: AccessSettings) -> Arc<Session> {
        let begins = self.begin(origin, access);
        // Who asks may be on a thread that runs tasks.
        std::thread::scope(|scope| scope.spawn(|| runtime().block_on(begins)).join().unwrap())
    }

    /// As [`Node::session_of`], for a task.
    pub fn begin(
        &self,
        origin: Arc<Faulty>,
        access: AccessSettings,
    ) -> impl Future<Output = Arc<Session>> + Send + use<> {
        let names = NamespaceSettings {
            prefix: DirPrefix::root(),
            ttl: self.settings.ttl,
            negative_ttl: self.settings.ttl,
            first_ino: 0,
            mount: String::new(),
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
        async move { Session::new(engine, origin, settings, "").await }
    }

    /// A real mount of this node.
    pub fn mount(&self, mountpoint: &Path) -> NodeMount {
        std::fs::create_dir_all(mountpoint).unwrap();
        let session = self.session();
        let options = MountOptions {
            source: "memory".into(),
            mountpoint: mountpoint.to_owned(),
            allow_other: false,
            read_only: false,
            selinux_context: None,
        };
        let mounted = adapter::mount(&session, &options).unwrap();
        NodeMount { session, mounted: Some(mounted), mountpoint: mountpoint.to_owned() }
    }

    /// Closes the cache in order.
    pub fn close(&self) {
        in_place(|may| self.engine.cache.close(may));
    }
}

/// Reads a file whole.
pub fn read(session: &Arc<Session>, name: &str) -> Vec<u8> {
    read_some(session, name, usize::MAX)
}

/// Reads the start of a file, a block at a time, as the kernel does without its page cache.
pub fn read_some(session: &Arc<Session>, name: &str, len: usize) -> Vec<u8> {
    let ino = runtime().block_on(session.lookup(1, name)).unwrap().attr.ino;
    let opened = runtime().block_on(session.open(ino, &OpenRequest::default())).unwrap();
    let mut all = Vec::new();
    while all.len() < len {
        let bytes = match session.read_now(opened.fh, all.len() as u64, 131_072).unwrap() {
            ReadNow::Data(bytes) => bytes,
            ReadNow::Disk(waits) | ReadNow::Origin(waits) => {
                runtime().block_on(session.read(waits)).unwrap()
            }
        };
        if bytes.is_empty() {
            break;
        }
        all.extend_from_slice(&bytes);
    }
    runtime().block_on(session.release(opened.fh));
    all
}

/// The names in a directory, each with whether it is a directory, without the dots.
pub fn list(session: &Arc<Session>, ino: u64) -> Vec<(String, bool)> {
    let (fh, _) = runtime().block_on(session.opendir(ino)).unwrap();
    let names = names_of(session, fh);
    session.releasedir(fh);
    names
}

/// The names that an open descriptor of a directory shows.
pub fn names_of(session: &Arc<Session>, fh: u64) -> Vec<(String, bool)> {
    let mut names = Vec::new();
    let whole = session.readdir(fh, 2, false, |_, name, is_dir, _| {
        names.push((name.to_owned(), is_dir));
        true
    });
    match whole.unwrap() {
        true => names,
        false => stream(session, fh, 2),
    }
}

/// Those from an offset on, of a descriptor that is read page by page.
pub fn stream(session: &Arc<Session>, fh: u64, mut offset: u64) -> Vec<(String, bool)> {
    let mut names = Vec::new();
    loop {
        let some = runtime().block_on(session.stream_names(fh, offset)).unwrap();
        if some.is_empty() {
            return names;
        }
        offset += some.len() as u64;
        names.extend(some.into_iter().map(|name| (name.name.into(), name.is_dir)));
    }
}

/// A real mount; unmounted when dropped.
pub struct NodeMount {
    /// Its session.
    pub session: Arc<Session>,
    mounted: Option<Mounted>,
    mountpoint: PathBuf,
}

impl Drop for NodeMount {
    fn drop(&mut self) {
        let _ = adapter::mount::unmount(&self.mountpoint, true);
        if let Some(mounted) = self.mounted.take() {
            let _ = mounted.join();
        }
        runtime().block_on(self.session.shut_down(Instant::now() + Duration::from_secs(30)));
    }
}
