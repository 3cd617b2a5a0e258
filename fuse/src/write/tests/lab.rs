//! Writers over an origin in memory and a real cache folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::poll::drive;
use super::stepped::Stepped;
use crate::blocking::MAY;
use crate::cache::{CacheSettings, NodeCache};
use crate::metrics::Metrics;
use crate::model::blocks::BLOCK;
use crate::model::key::DirPrefix;
use crate::model::ttl::MetadataTtl;
use crate::model::version::ObjectInfo;
use crate::namespace::dir::Dir;
use crate::namespace::file::FileNode;
use crate::namespace::hidden::HiddenKeys;
use crate::namespace::memory::NameMemory;
use crate::namespace::{self, AccessSettings, LookupError, Namespace, NamespaceSettings};
use crate::origin::faulty::Faulty;
use crate::origin::memory::{Behaviour, MemoryOrigin};
use crate::origin::{Condition, Origin};
use crate::write::draft::{Beginning, Draft};
use crate::write::leftovers::Leftovers;
use crate::write::parts::PartPlan;
use crate::write::rename::Place;
use crate::write::{WriteError, Writer};

/// Bytes that are kept cached, over all cases: a few files.
const CACHE_MAX: u64 = 8 << 20;

/// A cache folder, for many cases one after another.
pub(super) struct Lab {
    dir: TempDir,
    cache: Arc<NodeCache>,
    metrics: Arc<Metrics>,
    runtime: Runtime,
    buckets: AtomicU64,
}

/// A bucket.
pub(super) struct Bucket {
    pub(super) memory: Arc<MemoryOrigin>,
    pub(super) faulty: Arc<Faulty>,
    pub(super) stepped: Arc<Stepped>,
}

/// What one node knows of a bucket.
pub(super) struct Node {
    pub(super) names: Arc<Namespace>,
    pub(super) writer: Arc<Writer>,
}

impl Lab {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let settings = CacheSettings::one(dir.path(), CACHE_MAX, 0);
        let cache = NodeCache::open(MAY, &settings, metrics.clone()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        Self { dir, cache, metrics, runtime, buckets: AtomicU64::new(0) }
    }

    /// Timers and tasks of the calling thread belong to this lab while the result lives.
    pub(super) fn enter(&self) -> tokio::runtime::EnterGuard<'_> {
        self.runtime.enter()
    }

    /// Lets a future and its tasks run.
    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(super) fn bucket(&self) -> Bucket {
        let number = self.buckets.fetch_add(1, Ordering::Relaxed);
        let memory = Arc::new(MemoryOrigin::new(&format!("bucket-{number}")));
        memory.behave(Behaviour::default().with_part_min(BLOCK));
        let faulty = Arc::new(Faulty::new(memory.clone()));
        let stepped = Arc::new(Stepped::new(faulty.clone()));
        Bucket { memory, faulty, stepped }
    }

    pub(super) fn node(&self, bucket: &Bucket) -> Node {
        self.node_on(bucket.stepped.clone())
    }

    /// A node that reaches its bucket through `origin`.
    pub(super) fn node_on(&self, origin: Arc<dyn Origin>) -> Node {
        // Others change the bucket: every name is asked for at each use.
        let settings = NamespaceSettings {
            prefix: DirPrefix::root(),
            ttl: MetadataTtl::Minimal,
            negative_ttl: MetadataTtl::Minimal,
            first_ino: 0,
            mount: String::new(),
            access: AccessSettings::default(),
            feed: false,
        };
        let memory = NameMemory::new(1 << 24);
        let hidden = HiddenKeys::new(self.metrics.clone());
        let names = Namespace::new(origin, self.cache.clone(), memory, hidden, settings, None);
        let runtime = self.runtime.handle().clone();
        let (metrics, live) = (self.metrics.clone(), Arc::default());
        let share = self.cache.share("");
        let mut writer = Writer::new(names.clone(), metrics, runtime, BLOCK, live, share);
        Arc::get_mut(&mut writer).unwrap().plan = PartPlan::of_blocks(1);
        Node { names, writer }
    }

    /// Bytes and records of files under change, and what was left of earlier ones.
    pub(super) fn staged(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut staged = files(&self.dir.path().join("staging"));
        // Empty records are there for files to come.
        staged.retain(|path, bytes| !(bytes.is_empty() && path.extension().is_some()));
        staged
    }

    /// What is kept for a person; takes it away.
    pub(super) fn take_lost(&self) -> Vec<Bytes> {
        let mut lost = files(&self.dir.path().join("lost"));
        lost.keys().for_each(|path| fs::remove_file(path).unwrap());
        lost.retain(|path, _| path.extension().is_none());
        lost.into_values().map(Bytes::from).collect()
    }

    /// What a process that is killed now leaves of the file whose bytes are at `path` and, where
    /// `renames` says so, of renames, once all that it had under way is dropped: drops must not
    /// tidy up what a killed process would not.
    pub(super) fn kill(
        &self,
        path: Option<&Path>,
        renames: bool,
        dead: impl FnOnce(),
    ) -> Leftovers {
        let stem = path.and_then(|path| path.file_stem());
        let mut staged = self.staged();
        staged.retain(|path, _| {
            (stem.is_some() && path.file_stem() == stem) || (renames && is_rename(path))
        });
        dead();
        put(&staged);
        Leftovers::among(MAY, &self.cache, staged.into_keys().collect())
    }

    /// The end of a process that is killed now; what it leaves stays.
    pub(super) fn kill_all(&self, dead: impl FnOnce()) {
        let staged = self.staged();
        dead();
        put(&staged);
    }

    /// What a next process finds, where nobody has ended it.
    pub(super) fn leftovers(&self) -> Leftovers {
        Leftovers::among(MAY, &self.cache, self.staged().into_keys().collect())
    }

    /// Records of renames.
    pub(super) fn leftovers_of_renames(&self) -> Vec<PathBuf> {
        self.staged().into_keys().filter(|path| is_rename(path)).collect()
    }

    /// Forgets renames that were dropped in a process that goes on, as none does.
    pub(super) fn forget_renames(&self) {
        self.leftovers_of_renames().iter().for_each(|path| fs::remove_file(path).unwrap());
    }

    /// Removes what a case left that failed.
    pub(super) fn tidy(&self) {
        self.take_lost();
        self.staged().keys().for_each(|path| fs::remove_file(path).unwrap());
    }
}

fn put(files: &BTreeMap<PathBuf, Vec<u8>>) {
    for (path, bytes) in files {
        let _ = fs::remove_file(path);
        fs::write(path, bytes).unwrap();
    }
}

fn is_rename(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rename")
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

impl Bucket {
    /// What is in it but for the markers of directories.
    pub(super) fn objects(&self) -> BTreeMap<String, Bytes> {
        let mut all = self.memory.objects();
        all.retain(|key, _| !key.ends_with('/'));
        all
    }
}

impl Node {
    /// The directory `name` of the root, as the node knows it.
    pub(super) fn dir(&self, name: &str) -> Option<Arc<Dir>> {
        let (names, name) = (self.names.clone(), name.to_owned());
        match drive(async move { names.lookup(names.root(), &name).await }) {
            Ok(namespace::Node::Dir(dir)) => Some(dir),
            _ => None,
        }
    }

    /// Opens a file for writing it anew, as a session does.
    pub(super) fn open(&self, dir: &Arc<Dir>, name: &str) -> Result<Arc<Draft>, WriteError> {
        let (names, at, of) = (self.names.clone(), dir.clone(), name.to_owned());
        let found = drive(async move { names.lookup_at_origin(&at, &of).await });
        let (node, seen, dirty) = match found {
            Ok(namespace::Node::File(node)) => {
                let version = node.version().expect("it was asked for by HEAD");
                let dirty = version.size > 0;
                (node, Condition::Matches(version.etag), dirty)
            }
            Err(LookupError::Absent) => (self.fresh(dir, name), Condition::Absent, true),
            Ok(namespace::Node::Dir(_)) => return Err(WriteError::IsDir),
            Err(error) => return Err(error.into()),
        };
        let beginning = Beginning { seen, exclusive: false, dirty, writers: 1 };
        let staging = self.names.cache.staging_disk(&[]).create(MAY, None)?;
        Ok(self.writer.begin(&node, staging, beginning))
    }

    /// Creates a file where none is known to be.
    pub(super) fn create(&self, name: &str) -> Arc<Draft> {
        let node = self.fresh(self.names.root(), name);
        let beginning =
            Beginning { seen: Condition::Absent, exclusive: false, dirty: true, writers: 1 };
        let staging = self.names.cache.staging_disk(&[]).create(MAY, None).unwrap();
        self.writer.begin(&node, staging, beginning)
    }

    fn fresh(&self, dir: &Arc<Dir>, name: &str) -> Arc<FileNode> {
        let mtime = SystemTime::now();
        let info = ObjectInfo { size: 0, etag: None, mtime, version_id: None, writer: None };
        FileNode::new(self.names.inodes.next_ino(), dir.clone(), name, &info)
    }

    /// Works off what a process left that was killed.
    pub(super) fn work_off(&self, leftovers: Leftovers) {
        let writer = self.writer.clone();
        let held = writer.hold_names(&leftovers);
        drive(async move { writer.work_off(&leftovers, held).await });
    }

    /// Renames by paths, as a process asks for it.
    pub(super) fn rename(
        &self,
        from: (&'static str, &'static str),
        to: (&'static str, &'static str),
    ) -> impl Future<Output = Result<(), WriteError>> + use<> {
        let (names, writer) = (self.names.clone(), self.writer.clone());
        async move {
            let dir = async |name: &str| match name {
                "" => Ok(names.root().clone()),
                name => match names.lookup(names.root(), name).await? {
                    namespace::Node::Dir(dir) => Ok(dir),
                    namespace::Node::File(_) => Err(WriteError::NotDir),
                },
            };
            let (from_dir, to_dir) = (dir(from.0).await?, dir(to.0).await?);
            let from = Place { dir: &from_dir, name: from.1 };
            writer.rename(from, Place { dir: &to_dir, name: to.1 }, false).await
        }
    }
}
