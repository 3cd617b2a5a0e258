//! Names and reads of sessions without a kernel: listings that come in odd pages, refusals, and
//! files that move while they are read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod node;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::poll_immediate;
use node::{InPlace, MIB, Node, ROOT, denied, open, read, unavailable};
use rustix::io::Errno;
use weir_fuse::blocking::MayBlock;
use weir_fuse::engine::Session;
use weir_fuse::engine::kernel::KernelPort;
use weir_fuse::engine::open::{IoMode, OpenRequest};
use weir_fuse::engine::resent::Delivery;
use weir_fuse::namespace::dir::kernel_cache::CacheUse;
use weir_fuse::origin::faulty::{Fault, Faulty, Gate, Op};
use weir_fuse::origin::memory::{Behaviour, MemoryOrigin};
use weir_fuse::origin::{Condition, CopySource, Origin, PartKind, UploadBody, WriteIntent};

/// Longer than anything here takes, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn listed(session: &Arc<Session>, fh: u64) -> Vec<String> {
    let mut names = Vec::new();
    let add = |_, name: &str, _, _| {
        names.push(name.to_owned());
        true
    };
    session.readdir(fh, 2, false, add).unwrap();
    names
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
    let gate = Gate::new();
    slow.inject_once(Op::Get, Fault::Stall(gate.clone()));
    refusing.inject_once(Op::Get, Fault::Fail(denied()));
    let refused = tokio::spawn(async move { read(&first, first_fh, 0, 1 << 20).await });
    // The first has a fetch under way; the second joins it, and goes on when the first has ended.
    gate.reached().await;
    let got = read(&second, second_fh, 0, 1 << 20);
    tokio::pin!(got);
    assert!(poll_immediate(&mut got).await.is_none());
    assert_eq!(node.engine.metrics.fetched_bytes.get(), 0);
    gate.open();
    assert_eq!(refused.await.unwrap(), Err(Errno::ACCESS));
    let got = tokio::time::timeout(PATIENCE, got).await.unwrap();
    assert!(got.unwrap() == bytes(MIB));
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

#[tokio::test(flavor = "multi_thread")]
async fn two_mounts_of_a_node_share_one_download() {
    let node = Node::new();
    let bytes = vec![7; 4 * MIB];
    node.memory.insert("model", bytes.clone());
    let sessions = [node.session(), node.session()];
    let mut reads = Vec::new();
    for session in sessions {
        reads.push(tokio::spawn(async move {
            let fh = open(&session, ROOT, "model").await;
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
    let fh = open(&session, ROOT, "f").await;
    assert!(read(&session, fh, 0, 1 << 20).await.unwrap() == bytes);
    assert_eq!(node.engine.metrics.fetched_bytes.get(), 1 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_keeps_failing_is_an_error_not_a_hang() {
    let node = Node::new();
    node.memory.insert("f", vec![1; MIB]);
    let session = node.session();
    let fh = open(&session, ROOT, "f").await;
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
    let fh = open(&session, ROOT, "f").await;
    node.memory.insert("f", vec![2; MIB]);
    assert_eq!(read(&session, fh, 0, 4096).await, Err(Errno::STALE));
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
    fn open_backing(&self, _may: &MayBlock, _file: &File) -> io::Result<u32> {
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
    let fh = open(&session, ROOT, "model").await;
    read(&session, fh, 0, 1 << 20).await.unwrap();
    session.release(fh).await;
    let ino = session.lookup(ROOT, "model").await.unwrap().attr.ino;
    let mut opened = Vec::new();
    while opened.len() < 3 {
        let open = session.open(ino, &OpenRequest::default()).await.unwrap();
        match open.io_mode {
            IoMode::Passthrough(backing) => opened.push((open.fh, backing.id)),
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

/// Stores an object of two parts, and has the server copy it to these keys.
async fn copy_in_the_server(memory: &MemoryOrigin, bytes: &[u8], keys: &[&str]) {
    let id = memory.create_upload("from", "w", PartKind::Sent).await.unwrap();
    let mut parts = Vec::new();
    for (number, piece) in (1..).zip(bytes.chunks(5 * MIB)) {
        let body = UploadBody::of(piece.to_vec());
        parts.push(memory.upload_part("from", &id, number, body).await.unwrap());
    }
    let always = WriteIntent { condition: Condition::Always, writer: "w".into() };
    let stored = memory.complete_upload("from", &id, &parts, &always).await.unwrap();
    let size = bytes.len() as u64;
    let source = CopySource { key: "from".into(), etag: stored.etag.unwrap(), size };
    for key in keys {
        memory.copy(&source, key, &Condition::Always).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_listed_under_another_tag_is_used_as_any_other() {
    let node = Node::new();
    node.memory.behave(Behaviour { copies_listed_otherwise: true, ..Behaviour::default() });
    let bytes = bytes(6 * MIB);
    copy_in_the_server(&node.memory, &bytes, &["read", "moved", "replaced", "removed"]).await;
    let session = node.session();
    let (fh, _) = session.opendir(ROOT).await.unwrap();
    assert_eq!(listed(&session, fh), ["from", "moved", "read", "removed", "replaced"]);

    let fh = open(&session, ROOT, "read").await;
    assert!(read(&session, fh, 0, bytes.len() as u64).await.unwrap() == bytes);

    session.rename(ROOT, "moved", ROOT, "to", false).await.unwrap();
    assert!(node.memory.bytes("to").unwrap() == bytes && node.memory.bytes("moved").is_none());

    let over = OpenRequest { write: true, truncate: true, thread: 7, ..OpenRequest::default() };
    let lookup = || async { session.lookup(ROOT, "replaced").await.unwrap().attr.ino };
    // What others may read gets a new inode: the kernel looks again.
    assert_eq!(session.open(lookup().await, &over).await.err(), Some(Errno::STALE));
    let fh = session.open(lookup().await, &over).await.unwrap().fh;
    session.put(fh, 0, b"new").unwrap();
    session.fsync(fh, 0).await.unwrap();
    session.release(fh).await;
    assert_eq!(node.memory.bytes("replaced").unwrap(), "new");

    session.unlink(ROOT, "removed").await.unwrap();
    assert!(node.memory.bytes("removed").is_none());
}
