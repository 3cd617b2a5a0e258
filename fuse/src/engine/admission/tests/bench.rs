//! A session without a kernel whose file is brought to what an open can meet.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::poll_immediate;
use rustix::io::Errno;
use tempfile::TempDir;

use crate::blocking::MAY;
use crate::blocking::MayBlock;
use crate::cache::{CacheSettings, NodeCache};
use crate::engine::admission::{Admission, Attempt, Inode, Name, Refusal, Request, Size};
use crate::engine::handles::Handle;
use crate::engine::kernel::KernelPort;
use crate::engine::modes::Mode;
use crate::engine::open::{IoMode, OpenFile, OpenRequest};
use crate::engine::owner::Proc;
use crate::engine::retries::place_of;
use crate::engine::{Engine, Session, SessionSettings};
use crate::metrics::Metrics;
use crate::model::attr::Ownership;
use crate::model::key::DirPrefix;
use crate::model::ttl::MetadataTtl;
use crate::namespace::file::FileNode;
use crate::namespace::{AccessSettings, NamespaceSettings};
use crate::origin::memory::MemoryOrigin;
use crate::write::draft::{Draft, Phase};

pub(super) const ROOT: u64 = crate::namespace::inode::ROOT_INO;
pub(super) const NAME: &str = "f";
/// The thread that brings the file to where it is to be.
const THREAD: u32 = 7;
/// Longer than anything here takes, unless it hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// An engine, for many sessions one after another.
pub(super) struct Lab {
    engine: Arc<Engine>,
    buckets: AtomicU64,
    _dir: TempDir,
}

/// A kernel that takes what it is given.
#[derive(Default)]
struct AnyKernel(AtomicU32);

impl KernelPort for AnyKernel {
    fn open_backing(&self, _may: &MayBlock, _file: &File) -> io::Result<u32> {
        Ok(self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn close_backing(&self, _id: u32) {}
}

/// A session with one file.
pub(super) struct Bench {
    pub(super) memory: Arc<MemoryOrigin>,
    pub(super) session: Arc<Session>,
    pub(super) node: Arc<FileNode>,
    meets: (Name, Inode),
    /// A change whose last writer has closed, and which nobody finishes yet.
    finishing: Option<Arc<Draft>>,
}

pub(super) fn flags_of(request: Request, thread: u32) -> OpenRequest {
    OpenRequest {
        write: request != Request::Read,
        truncate: request == Request::Truncate,
        append: request == Request::Append,
        exclusive: false,
        thread,
    }
}

fn bytes_of(size: Size) -> Vec<u8> {
    // Small enough to be served by the daemon; and more than a block.
    vec![3; [0, 100, 200_000][size as usize]]
}

impl Lab {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let settings = CacheSettings::one(dir.path(), u64::MAX, 0);
        let cache = NodeCache::open(MAY, &settings, metrics.clone()).unwrap();
        let runtime = tokio::runtime::Handle::current();
        let proc = Arc::new(Proc);
        let engine = Engine::new(MAY, cache, 128 << 20, metrics, runtime, 1 << 20, proc).unwrap();
        Self { engine, buckets: AtomicU64::new(0), _dir: dir }
    }

    /// A session on a bucket of its own. Others change it: every name is asked for at each use.
    async fn session(&self) -> (Arc<MemoryOrigin>, Arc<Session>) {
        let number = self.buckets.fetch_add(1, Ordering::Relaxed);
        let memory = Arc::new(MemoryOrigin::new(&format!("bucket-{number}")));
        let names = NamespaceSettings {
            prefix: DirPrefix::root(),
            ttl: MetadataTtl::Minimal,
            negative_ttl: MetadataTtl::Minimal,
            first_ino: 0,
            mount: String::new(),
            access: AccessSettings::default(),
            feed: false,
        };
        let settings = SessionSettings {
            names,
            ownership: Ownership { uid: 0, gid: 0, file_mode: 0o644, dir_mode: 0o755 },
            read_only: false,
            passthrough: true,
            write_part: 5 << 20,
        };
        let (engine, origin) = (self.engine.clone(), memory.clone());
        let session = Session::new(engine, origin, settings, "").await;
        session.connect_kernel(Arc::new(AnyKernel::default()));
        (memory, session)
    }
}

impl Bench {
    pub(super) async fn new(lab: &Lab, meets: (Name, Inode)) -> Self {
        let (memory, session) = lab.session().await;
        let size = match meets.1 {
            Inode::Closed(size) | Inode::Streaming(size) => size,
            Inode::Passable | Inode::Cached => Size::Large,
            _ => Size::Small,
        };
        if meets.1 == Inode::Blank {
            let flags = flags_of(Request::Update, THREAD);
            let (attr, opened) = session.create(ROOT, NAME, &flags).await.unwrap();
            let node = session.file(attr.ino).unwrap();
            session.unlink(ROOT, NAME).await.unwrap();
            session.release(opened.fh).await;
            let bench = Self { memory, session, node, meets, finishing: None };
            bench.check().await;
            return bench;
        }
        memory.insert(NAME, bytes_of(size));
        let ino = session.lookup(ROOT, NAME).await.unwrap().attr.ino;
        let node = session.file(ino).unwrap();
        let mut bench = Self { memory, session, node, meets, finishing: None };
        bench.bring().await;
        bench.check().await;
        bench
    }

    /// Whether it is where it is to be.
    async fn check(&self) {
        let mode = self.session.modes.lock().present(self.node.ino);
        let passable = self.meets.1 == Inode::Passable;
        let current = self.session.names.is_current(&self.node).await.unwrap();
        let there = (Name::of(current), Inode::of(&self.node, mode.as_ref(), passable));
        assert_eq!(there, self.meets);
    }

    async fn opened(&self, request: Request) -> OpenFile {
        self.session.open(self.node.ino, &flags_of(request, THREAD)).await.unwrap()
    }

    /// Brings the inode to where it is to be, and then its name.
    async fn bring(&mut self) {
        let (name, inode) = self.meets;
        match inode {
            // What is small is fetched by an open, and may be gone from the origin afterwards.
            Inode::Closed(_) if name == Name::Other => {
                let opened = self.opened(Request::Read).await;
                self.session.release(opened.fh).await;
            }
            Inode::Blank | Inode::Closed(_) => {}
            Inode::Streaming(_) => {
                self.opened(Request::Read).await;
            }
            Inode::Passable | Inode::Cached => {
                let opened = self.opened(Request::Read).await;
                assert!(matches!(opened.io_mode, IoMode::KeepCache));
                self.complete().await;
                if inode == Inode::Cached {
                    self.session.release(opened.fh).await;
                    let again = self.opened(Request::Read).await;
                    assert!(matches!(again.io_mode, IoMode::Passthrough(_)));
                }
            }
            Inode::Draft | Inode::Finishing | Inode::Sealed(_) | Inode::Superseded => {
                self.write().await;
            }
        }
        if name == Name::Other && !matches!(inode, Inode::Draft | Inode::Finishing) {
            self.memory.insert(NAME, "of somebody else");
        }
    }

    async fn write(&mut self) {
        let (name, inode) = self.meets;
        let writer = self.opened(Request::Truncate).await;
        let size = if let Inode::Sealed(size) = inode { size } else { Size::Small };
        self.session.write(MAY, writer.fh, 0, &bytes_of(size)).unwrap();
        match inode {
            Inode::Sealed(_) => {
                self.opened(Request::Read).await;
                self.session.release(writer.fh).await;
            }
            Inode::Superseded => {
                self.memory.insert(NAME, "of somebody faster");
                assert_eq!(self.session.fsync(writer.fh, 0).await, Err(Errno::STALE));
            }
            _ => {}
        }
        if name == Name::Other && matches!(inode, Inode::Draft | Inode::Finishing) {
            self.session.unlink(ROOT, NAME).await.unwrap();
        }
        if inode == Inode::Finishing {
            // The first half of a release.
            self.finishing = self.session.close_handle(writer.fh);
            assert!(self.finishing.is_some());
        }
    }

    /// Waits until all of it is on the disk, and checked.
    async fn complete(&self) {
        let key = self.session.names.version_key(&self.node).unwrap();
        let source = self.session.source(MAY, &key);
        let version = source.version.clone();
        self.session.engine.reader.fetch_whole(&source).await.unwrap();
        self.session.engine.reader.complete(&source);
        let trusted = async {
            while !version.is_trusted() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, trusted).await.unwrap();
    }

    /// Opens the file; what that comes to, and all that belongs to it.
    pub(super) async fn open(
        self,
        request: Request,
        attempt: Attempt,
        thread: u32,
        cell: &str,
    ) -> Admission {
        let (session, node) = (&self.session, &self.node);
        if attempt == Attempt::Retry {
            session.retries.expect(thread, node);
        }
        let before = session.modes.lock().present(node.ino);
        let flags = flags_of(request, thread);
        let open = session.open_as(node.ino, &flags, 0);
        tokio::pin!(open);
        // Nothing that a writer meets while another one finishes takes its time, but the wait.
        let mut waits = false;
        if let Some(draft) = self.finishing.as_ref().filter(|_| request != Request::Read)
            && let ready = poll_immediate(&mut open).await
        {
            match ready {
                Some(result) => return self.outcome(result, before, request, cell).await,
                None => waits = true,
            }
            session.finish(draft).await;
        }
        let result = tokio::time::timeout(PATIENCE, open).await.expect(cell);
        if waits {
            // Then it met what was stored.
            let appends = request == Request::Append;
            assert_eq!(result.err(), appends.then_some(Errno::OPNOTSUPP), "{cell}");
            return Admission::Wait;
        }
        let stale = result.as_ref().is_err_and(|errno| *errno == Errno::STALE);
        let next = session.retries.attempt(thread, node);
        let expected = match (attempt, stale) {
            (Attempt::First, true) => Attempt::Retry,
            // Nobody but a lookup tells the threads apart that are not seen.
            _ if thread == 0 => attempt,
            _ => Attempt::First,
        };
        assert_eq!(next, expected, "{cell}: the thread's next open");
        self.outcome(result, before, request, cell).await
    }

    async fn outcome(
        &self,
        result: Result<OpenFile, Errno>,
        before: Option<Mode>,
        request: Request,
        cell: &str,
    ) -> Admission {
        let reserved = self.session.reservations.is_reserved(|| place_of(&self.node));
        let refusal = match result {
            Ok(opened) => return self.success(&opened, before, request, cell),
            Err(Errno::STALE) if reserved => Refusal::Reservation,
            Err(Errno::STALE) if self.meets.0 == Name::Own && !self.is_named().await => {
                Refusal::NewInode
            }
            Err(Errno::STALE) => Refusal::Stale,
            Err(Errno::BUSY) => Refusal::Busy,
            Err(Errno::OPNOTSUPP) => Refusal::Unsupported,
            Err(other) => panic!("{cell}: {other:?}"),
        };
        let keeps_name = !matches!(refusal, Refusal::NewInode | Refusal::Reservation);
        assert_eq!(reserved, refusal == Refusal::Reservation, "{cell}");
        if self.meets.0 == Name::Own {
            assert_eq!(self.is_named().await, keeps_name, "{cell}");
        }
        let after = self.session.modes.lock().present(self.node.ino);
        assert_eq!(kind(after.as_ref()), kind(before.as_ref()), "{cell}: the mode");
        Admission::Refuse(refusal)
    }

    /// Whether a lookup finds the inode.
    async fn is_named(&self) -> bool {
        let found = self.session.lookup(ROOT, NAME).await;
        found.is_ok_and(|shown| shown.attr.ino == self.node.ino)
    }

    fn success(
        &self,
        opened: &OpenFile,
        before: Option<Mode>,
        request: Request,
        cell: &str,
    ) -> Admission {
        let handle = self.session.handles.get(opened.fh).unwrap();
        let Handle::File(file) = &*handle else { panic!("{cell}") };
        assert_eq!(file.writer.is_some(), request != Request::Read, "{cell}");
        let mode = file.inode.mode();
        let kind = kind(Some(&mode));
        let source = file.source.as_ref().map(|source| &source.version.key.version);
        match (&before, &mode) {
            (Some(Mode::Draft(before)), Mode::Draft(after)) if Arc::ptr_eq(before, after) => {
                if request == Request::Truncate {
                    assert_eq!(after.size(), 0, "{cell}");
                }
                Admission::Join
            }
            (_, Mode::Draft(draft)) => {
                assert!(draft.has_writer() && draft.size() == 0, "{cell}");
                let stored = self.node.version().is_some_and(|version| version.size == 0);
                let expected = if stored { Phase::Stored } else { Phase::Writing };
                assert_eq!(draft.phase(), expected, "{cell}: emptiness that is to be stored");
                Admission::Begin
            }
            (Some(before), _) => {
                assert_eq!(super::bench::kind(Some(before)), kind, "{cell}");
                assert_eq!(source, self.node.version().as_ref(), "{cell}: of the version it had");
                Admission::Join
            }
            (None, _) => {
                assert_eq!(kind, "streaming", "{cell}: nothing of it is cached");
                assert_eq!(source, self.node.version().as_ref(), "{cell}: of the version it had");
                Admission::Join
            }
        }
    }
}

fn kind(mode: Option<&Mode>) -> &'static str {
    match mode {
        None => "closed",
        Some(Mode::Streaming) => "streaming",
        Some(Mode::Cached(_)) => "cached",
        Some(Mode::Draft(_)) => "draft",
    }
}
