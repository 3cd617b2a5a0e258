//! Names and reads of sessions without a kernel: listings that come in odd pages, refusals, and
//! files that move while they are read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tempfile::TempDir;
use weir_fuse::buffers::Buffers;
use weir_fuse::cache::{CacheSettings, NodeCache};
use weir_fuse::engine::io::ReadNow;
use weir_fuse::engine::open::OpenRequest;
use weir_fuse::engine::owner::Proc;
use weir_fuse::engine::resent::Delivery;
use weir_fuse::engine::{Engine, Session, SessionSettings};
use weir_fuse::metrics::Metrics;
use weir_fuse::model::attr::Ownership;
use weir_fuse::model::key::DirPrefix;
use weir_fuse::model::ttl::MetadataTtl;
use weir_fuse::namespace::dir::kernel_cache::CacheUse;
use weir_fuse::namespace::{AccessSettings, NamespaceSettings};
use weir_fuse::origin::faulty::{Fault, Faulty, Op};
use weir_fuse::origin::memory::MemoryOrigin;
use weir_fuse::origin::{Origin, OriginError};

const ROOT: u64 = 1;
const MIB: usize = 1 << 20;
/// Longer than anything here takes, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    memory: Arc<MemoryOrigin>,
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
        Self { memory: Arc::new(MemoryOrigin::new("bucket")), engine, _dir: dir }
    }

    /// A mount of this origin, which believes what it was told for so many seconds.
    fn mount(&self, origin: Arc<dyn Origin>, ttl_secs: u64) -> Arc<Session> {
        let ttl = MetadataTtl::For(Duration::from_secs(ttl_secs));
        let names = NamespaceSettings {
            prefix: DirPrefix::root(),
            ttl,
            negative_ttl: ttl,
            first_ino: 0,
            mount: String::new(),
            access: AccessSettings::default(),
        };
        let settings = SessionSettings {
            names,
            ownership: Ownership { uid: 0, gid: 0, file_mode: 0o644, dir_mode: 0o755 },
            read_only: false,
            passthrough: true,
            write_part: 5 << 20,
        };
        Session::new(self.engine.clone(), origin, settings)
    }

    /// A mount whose origin misbehaves on command.
    fn faulty(&self, ttl_secs: u64) -> (Arc<Faulty>, Arc<Session>) {
        let faulty = Arc::new(Faulty::new(self.memory.clone()));
        let session = self.mount(faulty.clone(), ttl_secs);
        (faulty, session)
    }
}

async fn read(session: &Arc<Session>, fh: u64, offset: u64, len: u64) -> Result<Vec<u8>, Errno> {
    match session.read_now(fh, offset, len)? {
        ReadNow::Data(data) => Ok(data.to_vec()),
        ReadNow::Wait(pending) => session.read(pending).await.map(|data| data.to_vec()),
    }
}

async fn open(session: &Arc<Session>, parent: u64, name: &str) -> u64 {
    let ino = session.lookup(parent, name).await.unwrap().attr.ino;
    session.open(ino, &OpenRequest::default()).await.unwrap().fh
}

fn listed(session: &Arc<Session>, fh: u64) -> Vec<String> {
    let mut names = Vec::new();
    let add = |_, name: &str, _, _| {
        names.push(name.to_owned());
        true
    };
    session.readdir(fh, 2, false, add).unwrap();
    names
}

fn denied() -> OriginError {
    OriginError::Denied("AccessDenied".into())
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 7) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_page_of_a_listing_is_not_its_end() {
    let node = Node::new();
    node.memory.insert("d/f", "x");
    node.memory.insert("source/f", "y");
    let (faulty, session) = node.faulty(60);
    faulty.inject_once(Op::List, Fault::EmptyPage);
    assert!(session.lookup(ROOT, "d").await.unwrap().attr.is_dir);
    assert!(session.lookup(ROOT, "source").await.unwrap().attr.is_dir);
    faulty.inject_once(Op::List, Fault::EmptyPage);
    assert_eq!(session.rmdir(ROOT, "d").await, Err(Errno::NOTEMPTY));
    faulty.inject_once(Op::List, Fault::EmptyPage);
    let renamed = session.rename(ROOT, "source", ROOT, "d", false).await;
    assert_eq!(renamed, Err(Errno::NOTEMPTY));
    faulty.inject_once(Op::List, Fault::EmptyPage);
    let (fh, _) = session.opendir(ROOT).await.unwrap();
    assert_eq!(listed(&session, fh), ["d", "source"]);
    assert_eq!(&node.memory.bytes("d/f").unwrap()[..], b"x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_leads_to_itself_is_an_error() {
    let node = Node::new();
    node.memory.insert("d/f", "x");
    let (faulty, session) = node.faulty(60);
    for _ in 0..4 {
        faulty.inject_once(Op::List, Fault::EmptyPage);
    }
    let looked = tokio::time::timeout(PATIENCE, session.lookup(ROOT, "d")).await.unwrap();
    assert_eq!(looked.err(), Some(Errno::IO));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_found_where_listing_is_refused() {
    let node = Node::new();
    for name in ["a", "b", "c"] {
        node.memory.insert(name, "xyz");
    }
    let (faulty, session) = node.faulty(60);
    for _ in 0..20 {
        faulty.inject_once(Op::List, Fault::Fail(denied()));
    }
    for name in ["a", "b", "c"] {
        let attr = session.lookup(ROOT, name).await.unwrap().attr;
        assert_eq!((attr.is_dir, attr.size), (false, 3), "{name}");
        let fh = open(&session, ROOT, name).await;
        assert_eq!(read(&session, fh, 0, 9).await.unwrap(), b"xyz");
    }
    // What HEAD does not find may be a directory, of which nobody is told.
    assert_eq!(session.lookup(ROOT, "d").await.err(), Some(Errno::ACCESS));
    assert_eq!(session.opendir(ROOT).await.err(), Some(Errno::ACCESS));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_found_where_only_its_own_names_may_be_asked_for() {
    let node = Node::new();
    node.memory.insert("team/f", "x");
    let (faulty, session) = node.faulty(60);
    faulty.inject_once(Op::Head, Fault::Fail(denied()));
    assert!(session.lookup(ROOT, "team").await.unwrap().attr.is_dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_keeps_names_only_where_nobody_can_bring_back_older_ones() {
    let node = Node::new();
    node.memory.insert("a", "1");
    let session = node.mount(node.memory.clone(), 0);
    let (first, used) = session.opendir(ROOT).await.unwrap();
    assert_eq!(used, CacheUse::Refill);
    node.memory.insert("z", "2");
    let (second, used) = session.opendir(ROOT).await.unwrap();
    assert_eq!(used, CacheUse::Bypass);
    assert_eq!(listed(&session, first), ["a"]);
    assert_eq!(listed(&session, second), ["a", "z"]);
    let (third, used) = session.opendir(ROOT).await.unwrap();
    assert_eq!(used, CacheUse::Bypass, "the first may fill the cache again");
    for fh in [first, second, third] {
        session.releasedir(fh);
    }
    let (fourth, used) = session.opendir(ROOT).await.unwrap();
    assert_eq!(used, CacheUse::Refill);
    listed(&session, fourth);
    assert_eq!(session.opendir(ROOT).await.unwrap().1, CacheUse::Keep);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_to_one_mount_is_none_to_another() {
    let node = Node::new();
    node.memory.insert("f", bytes(MIB));
    let refusing = Arc::new(Faulty::new(node.memory.clone()));
    let slow = Arc::new(Faulty::new(refusing.clone()));
    let (first, second) = (node.mount(slow.clone(), 60), node.mount(node.memory.clone(), 60));
    let (first_fh, second_fh) = (open(&first, ROOT, "f").await, open(&second, ROOT, "f").await);
    slow.inject_once(Op::Get, Fault::Delay(Duration::from_secs(1)));
    refusing.inject_once(Op::Get, Fault::Fail(denied()));
    let refused = tokio::spawn(async move { read(&first, first_fh, 0, 1 << 20).await });
    // By now the first has a fetch under way; the second joins it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let got = tokio::time::timeout(PATIENCE, read(&second, second_fh, 0, 1 << 20)).await.unwrap();
    assert!(got.unwrap() == bytes(MIB));
    assert_eq!(refused.await.unwrap(), Err(Errno::ACCESS));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_a_file_reads_on_when_it_is_renamed_here() {
    let node = Node::new();
    node.memory.insert("d/f", bytes(4 * MIB));
    let session = node.mount(node.memory.clone(), 60);
    let d = session.lookup(ROOT, "d").await.unwrap().attr.ino;
    let fh = open(&session, d, "f").await;
    let mib = |n: u64| {
        let session = session.clone();
        async move { read(&session, fh, n << 20, 4096).await }
    };
    let expected = |n: usize| Ok(bytes(4 * MIB)[n * MIB..n * MIB + 4096].to_vec());
    assert!(mib(3).await == expected(3));
    session.rename(d, "f", ROOT, "g", false).await.unwrap();
    assert!(mib(1).await == expected(1));
    // Over a second rename, and one of a directory that it is in.
    session.rename(ROOT, "g", d, "h", false).await.unwrap();
    session.rename(ROOT, "d", ROOT, "e", false).await.unwrap();
    assert!(mib(0).await == expected(0));
    // What is gone is gone.
    node.memory.remove("e/h");
    assert_eq!(mib(2).await, Err(Errno::STALE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_an_earlier_engine_made_succeeds_when_it_is_sent_again() {
    let node = Node::new();
    for key in ["file", "from", "removed/", "full/", "full/f"] {
        node.memory.insert(key, "");
    }
    let before = node.mount(node.memory.clone(), 60);
    before.unlink(ROOT, "file").await.unwrap();
    before.rmdir(ROOT, "removed").await.unwrap();
    before.mkdir(ROOT, "made").await.unwrap();
    before.rename(ROOT, "from", ROOT, "to", false).await.unwrap();
    let after = node.mount(node.memory.clone(), 60);
    let rename = |delivery, from: &'static str, to: &'static str| {
        let after = after.clone();
        async move { after.rename_sent(delivery, (ROOT, from), (ROOT, to), false).await }
    };
    let mkdir = |delivery, name: &'static str| {
        let after = after.clone();
        async move { after.mkdir_sent(delivery, ROOT, name).await.map(|shown| shown.attr.is_dir) }
    };
    for (delivery, outcome) in [(Delivery::First, Err(Errno::NOENT)), (Delivery::Again, Ok(()))] {
        assert_eq!(after.unlink_sent(delivery, ROOT, "file").await, outcome);
        assert_eq!(after.rmdir_sent(delivery, ROOT, "removed").await, outcome);
        assert_eq!(rename(delivery, "from", "to").await, outcome);
    }
    assert_eq!(mkdir(Delivery::First, "made").await, Err(Errno::EXIST));
    assert_eq!(mkdir(Delivery::Again, "made").await, Ok(true));
    // What no earlier try can have left is refused as ever.
    assert_eq!(mkdir(Delivery::Again, "full").await, Err(Errno::EXIST));
    assert_eq!(rename(Delivery::Again, "from", "nowhere").await, Err(Errno::NOENT));
}
