//! Sessions without a kernel, on an origin in memory that misbehaves on command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tempfile::TempDir;
use weir_fuse::buffers::Buffers;
use weir_fuse::cache::{CacheSettings, NodeCache};
use weir_fuse::engine::io::ReadNow;
use weir_fuse::engine::kernel::KernelPort;
use weir_fuse::engine::open::{How, OpenRequest};
use weir_fuse::engine::owner::Proc;
use weir_fuse::engine::{Engine, Session, SessionSettings};
use weir_fuse::metrics::Metrics;
use weir_fuse::model::attr::Ownership;
use weir_fuse::model::key::DirPrefix;
use weir_fuse::model::ttl::MetadataTtl;
use weir_fuse::namespace::{AccessSettings, NamespaceSettings};
use weir_fuse::origin::OriginError;
use weir_fuse::origin::faulty::{Fault, Faulty, Op};
use weir_fuse::origin::memory::MemoryOrigin;

const ROOT: u64 = 1;
const MIB: usize = 1 << 20;

struct Node {
    memory: Arc<MemoryOrigin>,
    faulty: Arc<Faulty>,
    engine: Arc<Engine>,
    _dir: TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let settings = CacheSettings::one(dir.path(), u64::MAX, 0);
        let cache = NodeCache::open(&settings, metrics.clone()).unwrap();
        let runtime = tokio::runtime::Handle::current();
        let engine =
            Engine::new(cache, Buffers::new(64 << 20), metrics, runtime, 1 << 20, Arc::new(Proc));
        let memory = Arc::new(MemoryOrigin::new("bucket"));
        let faulty = Arc::new(Faulty::new(memory.clone()));
        Self { memory, faulty, engine, _dir: dir }
    }

    fn session(&self) -> Arc<Session> {
        let names = NamespaceSettings {
            prefix: DirPrefix::root(),
            ttl: MetadataTtl::For(Duration::from_secs(60)),
            negative_ttl: MetadataTtl::For(Duration::from_secs(60)),
            first_ino: 0,
            access: AccessSettings::default(),
        };
        let settings = SessionSettings {
            names,
            ownership: Ownership { uid: 0, gid: 0, file_mode: 0o644, dir_mode: 0o755 },
            read_only: false,
            passthrough: true,
            write_part: 5 << 20,
        };
        Session::new(self.engine.clone(), self.faulty.clone(), settings)
    }
}

async fn read(session: &Arc<Session>, fh: u64, offset: u64, len: u64) -> Result<Vec<u8>, Errno> {
    match session.read_now(fh, offset, len)? {
        ReadNow::Data(data) => Ok(data.to_vec()),
        ReadNow::Wait(pending) => session.read(pending).await.map(|data| data.to_vec()),
    }
}

async fn open(session: &Arc<Session>, name: &str) -> u64 {
    let ino = session.lookup(ROOT, name).await.unwrap().attr.ino;
    session.open(ino, &OpenRequest::default()).await.unwrap().fh
}

async fn create(session: &Arc<Session>, name: &str, exclusive: bool) -> u64 {
    let request = OpenRequest { write: true, exclusive, ..OpenRequest::default() };
    session.create(ROOT, name, &request).await.unwrap().1.fh
}

fn unavailable() -> OriginError {
    OriginError::Unavailable("503 SlowDown".into())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_mounts_of_a_node_share_one_download() {
    let node = Node::new();
    let bytes = vec![7; 4 * MIB];
    node.memory.insert("model", bytes.clone());
    let sessions = [node.session(), node.session()];
    let mut reads = Vec::new();
    for session in sessions {
        reads.push(tokio::spawn(async move {
            let fh = open(&session, "model").await;
            read(&session, fh, 0, 4 << 20).await.unwrap()
        }));
    }
    for read in reads {
        assert!(read.await.unwrap() == bytes);
    }
    assert_eq!(node.engine.metrics.fetched_bytes.get(), 4 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_body_is_resumed_where_it_ended() {
    let node = Node::new();
    let bytes: Vec<u8> = (0..MIB).map(|n| (n / 7) as u8).collect();
    node.memory.insert("f", bytes.clone());
    let session = node.session();
    node.faulty.inject_once(Op::Get, Fault::Truncate(300_001));
    node.faulty.inject_once(Op::Get, Fault::Fail(unavailable()));
    let fh = open(&session, "f").await;
    assert!(read(&session, fh, 0, 1 << 20).await.unwrap() == bytes);
    assert_eq!(node.engine.metrics.fetched_bytes.get(), 1 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_keeps_failing_is_an_error_not_a_hang() {
    let node = Node::new();
    node.memory.insert("f", vec![1; MIB]);
    let session = node.session();
    let fh = open(&session, "f").await;
    node.faulty.fail_all(Some(unavailable()));
    let result = tokio::time::timeout(Duration::from_secs(60), read(&session, fh, 0, 4096)).await;
    assert_eq!(result.unwrap(), Err(Errno::IO));
    // And once it answers again, reads do too.
    node.faulty.fail_all(None);
    assert_eq!(read(&session, fh, 0, 4).await.unwrap(), [1; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_version_is_stale_to_its_reader() {
    let node = Node::new();
    node.memory.insert("f", vec![1; MIB]);
    let session = node.session();
    let fh = open(&session, "f").await;
    node.memory.insert("f", vec![2; MIB]);
    assert_eq!(read(&session, fh, 0, 4096).await, Err(Errno::STALE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_whose_reply_was_lost_is_no_conflict() {
    let node = Node::new();
    let session = node.session();
    for (name, exclusive) in [("plain", false), ("exclusive", true)] {
        let fh = create(&session, name, exclusive).await;
        session.write(fh, 0, b"bytes").unwrap();
        // The probe for conditions comes first; the lost reply is the file's own.
        if exclusive {
            let probe = create(&session, "probed", true).await;
            session.fsync(probe).await.unwrap();
            session.release(probe).await;
        }
        node.faulty.inject_once(Op::Put, Fault::LoseReply(unavailable()));
        assert_eq!(session.fsync(fh).await, Ok(()), "{name}");
        session.release(fh).await;
        assert_eq!(&node.memory.bytes(name).unwrap()[..], b"bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_whose_reply_was_lost_is_no_failure() {
    let node = Node::new();
    let session = node.session();
    let fh = create(&session, "big", true).await;
    let bytes: Vec<u8> = (0..12 * MIB).map(|n| (n / 11) as u8).collect();
    for (at, piece) in bytes.chunks(MIB).enumerate() {
        session.write(fh, (at * MIB) as u64, piece).unwrap();
    }
    node.faulty.inject_once(Op::UploadPart, Fault::Fail(unavailable()));
    node.faulty.inject_once(Op::Complete, Fault::LoseReply(unavailable()));
    assert_eq!(session.fsync(fh).await, Ok(()));
    session.release(fh).await;
    assert!(node.memory.bytes("big").unwrap() == bytes);
    assert_eq!(node.memory.open_uploads(), 0);
    // What was written became the cached version.
    let fh = open(&session, "big").await;
    assert!(read(&session, fh, 0, 12 << 20).await.unwrap() == bytes);
    assert_eq!(node.engine.metrics.fetched_bytes.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_somebody_removed_is_made_again() {
    let node = Node::new();
    let session = node.session();
    let fh = create(&session, "big", false).await;
    session.write(fh, 0, &vec![5; 11 * MIB]).unwrap();
    node.faulty.inject_once(Op::Complete, Fault::Fail(OriginError::NoSuchUpload));
    assert_eq!(session.fsync(fh).await, Ok(()));
    assert_eq!(node.memory.bytes("big").unwrap().len(), 11 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_cannot_be_stored_after_the_last_close_are_kept_and_counted() {
    let node = Node::new();
    let session = node.session();
    let fh = create(&session, "f", false).await;
    session.write(fh, 0, b"precious").unwrap();
    node.faulty.fail_all(Some(OriginError::Denied("AccessDenied".into())));
    assert_eq!(session.fsync(fh).await, Err(Errno::ACCESS));
    session.release(fh).await;
    assert_eq!(node.engine.metrics.lost_closes.get(), 1);
    let lost = node.engine.cache.stats().disks[0].dir.join("lost");
    let kept = std::fs::read_dir(lost).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::read(kept).unwrap(), b"precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_cannot_be_shown_are_counted_and_hide_no_neighbour() {
    let node = Node::new();
    let long = "x".repeat(300);
    let odd = ["/abs", "d//b", "d/../b", "d/./b", "d/nul\0", &format!("d/{long}"), "d/both"];
    for key in odd {
        node.memory.insert(key, "odd");
    }
    for key in ["d/", "d/both/inside", "d/good", "d/zz"] {
        node.memory.insert(key, "x");
    }
    let session = node.session();
    let root = session.lookup(ROOT, "d").await.unwrap().attr;
    assert!(root.is_dir);
    for _ in 0..3 {
        let (fh, _) = session.opendir(root.ino).await.unwrap();
        let mut names = Vec::new();
        session
            .readdir(fh, 0, false, |_, name, is_dir, _| {
                names.push((name.to_owned(), is_dir));
                true
            })
            .unwrap();
        session.releasedir(fh);
        let expected = [(".", true), ("..", true), ("both", true), ("good", false), ("zz", false)];
        assert_eq!(names, expected.map(|(name, is_dir)| (name.to_owned(), is_dir)));
    }
    let hidden = |reason| node.engine.metrics.hidden_keys.with_label_values(&[reason]).get();
    for (reason, count) in [
        ("empty-component", 1),
        ("dot-component", 2),
        ("nul", 1),
        ("name-too-long", 1),
        ("shadowed-by-directory", 1),
        ("marker-with-content", 1),
    ] {
        assert_eq!(hidden(reason), count, "{reason}");
    }
    // None of them is a way out.
    for name in ["..", ".", "", "nul\0", "a/b"] {
        assert!(session.lookup(root.ino, name).await.is_err(), "{name:?}");
    }
    assert_eq!(session.lookup(root.ino, &long).await.err(), Some(Errno::NAMETOOLONG));
}

/// A kernel that only counts.
#[derive(Default)]
struct CountingKernel {
    next: AtomicU32,
    open: Mutex<Vec<u32>>,
}

impl KernelPort for CountingKernel {
    fn open_backing(&self, _file: &File) -> io::Result<u32> {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.lock().unwrap().push(id);
        Ok(id)
    }

    fn close_backing(&self, id: u32) {
        self.open.lock().unwrap().retain(|open| *open != id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_opens_of_a_cached_version_share_one_backing_id() {
    let node = Node::new();
    node.memory.insert("model", vec![3; MIB]);
    let session = node.session();
    let kernel = Arc::new(CountingKernel::default());
    session.connect_kernel(kernel.clone());
    let fh = open(&session, "model").await;
    read(&session, fh, 0, 1 << 20).await.unwrap();
    session.release(fh).await;
    let ino = session.lookup(ROOT, "model").await.unwrap().attr.ino;
    let mut opened = Vec::new();
    while opened.len() < 3 {
        let open = session.open(ino, &OpenRequest::default()).await.unwrap();
        match open.how {
            How::Passthrough(backing) => opened.push((open.fh, backing.id)),
            // The last blocks are on their way to the disk.
            _ => session.release(open.fh).await,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(opened.iter().all(|(_, id)| *id == opened[0].1));
    for (fh, _) in opened {
        session.release(fh).await;
    }
    // Kept for the next open, given back at the end.
    assert_eq!(kernel.open.lock().unwrap().len(), 1);
    session.shut_down(Instant::now() + Duration::from_secs(5)).await;
    assert!(kernel.open.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_stores_all_files_at_once_and_within_one_deadline() {
    let node = Node::new();
    let session = node.session();
    for n in 0..4 {
        let fh = create(&session, &format!("f{n}"), false).await;
        session.write(fh, 0, b"bytes").unwrap();
        // One after the other they would take minutes.
        node.faulty.inject_once(Op::Put, Fault::Delay(Duration::from_secs(45)));
    }
    let ended = session.shut_down(Instant::now() + Duration::from_millis(100));
    let stored = tokio::time::timeout(Duration::from_secs(30), ended).await;
    assert_eq!(stored, Ok(false));
    let unstored = session.unstored();
    assert_eq!(unstored.len(), 4);
    assert!(unstored.iter().all(|file| file.bytes == 5 && !file.is_given_up), "{unstored:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_stored_is_tried_again_and_then_told() {
    let node = Node::new();
    let session = node.session();
    let soon = || Instant::now() + Duration::from_secs(60);
    for name in ["kept", "stored"] {
        let fh = create(&session, name, false).await;
        session.write(fh, 0, b"precious").unwrap();
    }
    let names = |session: &Session| {
        let mut names: Vec<_> = session
            .unstored()
            .into_iter()
            .map(|file| (file.key, file.bytes, file.is_given_up))
            .collect();
        names.sort();
        names
    };
    let both = [("kept".to_owned(), 8, false), ("stored".to_owned(), 8, false)];
    node.faulty.fail_all(Some(OriginError::Denied("AccessDenied".into())));
    assert!(!session.store_all(soon()).await);
    assert_eq!(names(&session), both);
    assert!(!session.store_all(soon()).await);
    node.faulty.fail_all(None);
    assert!(session.store_all(soon()).await);
    assert_eq!(names(&session), []);
    assert_eq!(&node.memory.bytes("kept").unwrap()[..], b"precious");
    let fh = create(&session, "late", false).await;
    session.write(fh, 0, b"precious").unwrap();
    node.faulty.fail_all(Some(OriginError::Denied("AccessDenied".into())));
    assert!(!session.shut_down(soon()).await);
    assert_eq!(names(&session), [("late".to_owned(), 8, true)]);
    // A repeat changes nothing.
    assert!(!session.shut_down(soon()).await);
    assert_eq!(names(&session), [("late".to_owned(), 8, true)]);
    assert_eq!(node.engine.metrics.lost_closes.get(), 1);
}
