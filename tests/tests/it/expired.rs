//! What the kernel is told of names that others changed.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags};
use weir_fuse::feed::Change;
use weir_fuse::model::ttl::MetadataTtl;
use weir_fuse::origin::faulty::{Fault, Gate, Op};
use weir_fuse::origin::memory::MemoryOrigin;
use weir_node::mounter::protocol::{Reply, Request, VERSION};
use weir_node::mounter::wire;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, TestVolume};
use weir_tests::mount::{Mount, cache_dir};
use weir_tests::nats::Nats;
use weir_tests::node::{Node, NodeSettings};
use weir_tests::{PATIENCE, eventually, runtime};

/// Longer than a test.
const TTL: MetadataTtl = MetadataTtl::For(Duration::from_secs(6000));

fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

/// A file system of memory in a folder, as an emptyDir in a volume; gone when dropped.
struct Inside<'a>(&'a Path);

impl<'a> Inside<'a> {
    fn mount(at: &'a Path) -> Self {
        rustix::mount::mount(c"tmpfs", at, c"tmpfs", MountFlags::empty(), None).unwrap();
        fs::write(at.join("mine"), "bytes").unwrap();
        Self(at)
    }

    fn is_there(&self) -> bool {
        fs::read(self.0.join("mine")).is_ok_and(|bytes| bytes == b"bytes")
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, UnmountFlags::DETACH);
    }
}

/// How often the kernel has asked for a name.
fn lookups(node: &Node) -> u64 {
    let text = node.engine.metrics.text();
    let line = text.lines().find(|line| {
        line.starts_with("weir_fuse_request_duration_seconds_count") && line.contains("\"lookup\"")
    });
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[test]
fn an_expired_name_is_looked_up_again_and_what_is_mounted_in_the_volume_stays() {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    for (key, bytes) in [("d/f", "old"), ("d/g", "longer"), ("d/e/x", "x")] {
        memory.insert(key, bytes);
    }
    let (cache, place) = (cache_dir(), tempfile::tempdir().unwrap());
    let node = Node::new(cache.path(), memory, NodeSettings { ttl: TTL, ..NodeSettings::DEFAULT });
    let root = place.path().join("mnt");
    let mount = node.mount(&root);
    let (dir, session) = (root.join("d"), &mount.session);
    let ino = fs::metadata(&dir).unwrap().ino();
    assert_eq!((size(&dir.join("f")), size(&dir.join("g"))), (3, 6));
    assert!(fs::metadata(dir.join("new")).is_err());
    let folder = dir.join("e");
    let inside = Inside::mount(&folder);

    // The engine knows it, and the kernel takes what it was told for true.
    runtime().block_on(session.rename(ino, "f", ino, "new", false)).unwrap();
    runtime().block_on(session.rename(ino, "g", ino, "f", false)).unwrap();
    assert_eq!((size(&dir.join("f")), size(&dir.join("g"))), (3, 6));
    assert!(fs::metadata(dir.join("new")).is_err());
    for name in ["f", "g", "new"] {
        session.expire(ino, name);
    }
    eventually("another version is seen", || size(&dir.join("f")) == 6);
    eventually("what is gone is seen", || fs::metadata(dir.join("g")).is_err());
    eventually("what came is seen", || fs::metadata(dir.join("new")).is_ok());

    // A name of a directory: of the one that something is mounted on, and of those above.
    let quiet = lookups(&node);
    assert!(inside.is_there());
    assert_eq!(lookups(&node), quiet);
    for (parent, name) in [(ino, "e"), (1, "d")] {
        let before = lookups(&node);
        session.expire(parent, name);
        eventually("the kernel looks it up", || {
            assert!(inside.is_there());
            lookups(&node) > before
        });
    }
    assert_eq!(fs::metadata(&dir).unwrap().ino(), ino);
    drop(inside);
    assert_eq!(fs::read(folder.join("x")).unwrap(), b"x");
}

#[test]
fn a_look_up_that_hangs_holds_up_no_other_where_a_name_expires() {
    const NAMES: usize = 50;
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    for n in 0..NAMES {
        memory.insert(&format!("d/f{n}"), "x");
    }
    let (cache, place) = (cache_dir(), tempfile::tempdir().unwrap());
    let node = Node::new(cache.path(), memory, NodeSettings { ttl: TTL, ..NodeSettings::DEFAULT });
    let root = place.path().join("mnt");
    let mount = node.mount(&root);
    let dir = root.join("d");
    let ino = fs::metadata(&dir).unwrap().ino();
    let gate = Gate::new();
    node.faulty.inject_once(Op::Head, Fault::Stall(gate.clone()));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| fs::metadata(dir.join("slow")).is_err());
        runtime().block_on(gate.reached());
        mount.session.expire(ino, "f0");
        let others = scope.spawn(|| {
            for n in 0..NAMES {
                assert_eq!(size(&dir.join(format!("f{n}"))), 1);
            }
        });
        let until = std::time::Instant::now() + PATIENCE;
        while !others.is_finished() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let waited = !others.is_finished();
        gate.open();
        others.join().unwrap();
        assert!(slow.join().unwrap() && !waited);
    });
    // It is told then.
    let before = lookups(&node);
    eventually("the kernel looks it up", || {
        size(&dir.join("f0"));
        lookups(&node) > before
    });
}

#[test]
fn of_what_a_feed_tells_the_kernel_hears_and_of_nothing_else() {
    let (bucket, nats) = (Bucket::new(Server::Minio), Nats::start());
    for key in ["f", "other", "d/x", "gone/y"] {
        bucket.put(key, "old");
    }
    let flags = format!("--metadata-ttl 6000 --feed {}", nats.url());
    let mount = Mount::flags(&bucket, &flags);
    let (relay, folder) = (nats.relay(&bucket.name), mount.join("d"));
    let size = |name: &str| size(&mount.join(name));
    let is_there = |name: &str| fs::metadata(mount.join(name)).is_ok();
    assert_eq!((size("f"), size("other"), size("d/x"), size("gone/y")), (3, 3, 3, 3));
    assert!(!is_there("new") && !is_there("d/new"));
    let inside = Inside::mount(&folder);
    for key in ["f", "other", "new/deep/x", "d/x"] {
        bucket.put(key, "longer");
    }
    bucket.delete("gone/y");
    let changes = |keys: &[&str], gone| {
        let change =
            |key: &&str| Change { bucket: bucket.name.as_str().into(), key: (*key).into(), gone };
        keys.iter().map(change).collect::<Vec<_>>()
    };
    // It may not listen yet, and the relay may not have its connection.
    eventually("the kernel hears of it", || {
        let told =
            [changes(&["f", "new/deep/x", "d/x"], false), changes(&["gone/y"], true)].concat();
        let told = runtime().block_on(relay.announce(told));
        told.is_ok() && size("f") == 6 && is_there("new/deep/x") && !is_there("gone")
    });
    assert_eq!(size("other"), 3);
    assert!(inside.is_there());
    drop(inside);
    assert_eq!(size("d/x"), 6);
}

/// Says something to a mounter, as an engine.
fn say(socket: &OwnedFd, request: &Request) -> Reply {
    wire::send(socket, request, &[]).unwrap();
    wire::receive(socket, &mut Vec::new()).unwrap().unwrap().0
}

#[test]
fn the_mounter_tells_the_kernel_and_what_others_replaced_is_seen_at_the_next_stat() {
    let bucket = Bucket::new(Server::Embedded);
    for name in ["f", "other", "d/x"] {
        bucket.put(name, "old");
    }
    let node = CsiNode::new(&bucket);
    let volume = TestVolume::new(&bucket, "pod").option("metadata-ttl 6000");
    let target = node.publish(&volume).unwrap();
    let (f, other, folder) = (target.join("f"), target.join("other"), target.join("d"));
    assert_eq!((size(&f), size(&other)), (3, 3));
    let inside = Inside::mount(&folder);
    let session = fs::read_dir(node.join("sessions")).unwrap().next().unwrap().unwrap();
    let session = session.file_name().into_string().unwrap();
    // The next node remembers nothing; the kernel does.
    node.take_node().kill();
    for name in ["f", "other"] {
        bucket.put(name, "longer");
    }
    let mounter = wire::connect(&node.join("mounter.sock"), PATIENCE).unwrap();
    let hello = Request::Hello { version: VERSION, engine: "another".into() };
    assert!(matches!(say(&mounter, &hello), Reply::Hello { .. }));
    let expire = |session: &str, name: &str| {
        let (session, name) = (session.to_owned(), name.to_owned());
        say(&mounter, &Request::Expire { session, parent: 1, name })
    };
    // Whatever it is called.
    for name in ["nobody asked", "", ".", "..", "a/b", "a\0b", "x".repeat(4000).as_str(), "f"] {
        assert_eq!(expire(&session, name), Reply::Done);
    }
    assert_eq!(expire("ab", "f"), Reply::Done);
    drop(mounter);
    node.start_node();
    eventually("the kernel looks it up", || size(&f) == 6);
    // Of this one nothing was said.
    assert_eq!(size(&other), 3);
    assert!(inside.is_there());
    drop(inside);
    node.unpublish(&volume).unwrap();
}
