//! A cache of several disks: versions lie where their reader prefers, and a disk that fails is
//! left alone.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::time::timeout;
use weir_fuse::blocking::{aside, in_place};
use weir_fuse::engine::Session;
use weir_fuse::engine::open::OpenRequest;
use weir_fuse::namespace::AccessSettings;
use weir_fuse::origin::OriginError;
use weir_fuse::origin::faulty::{Fault, Op};
use weir_fuse::origin::memory::MemoryOrigin;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::cached::objects;
use weir_tests::failing_disk::FailingDisk;
use weir_tests::mount::{Mount, Options, cache_dir};
use weir_tests::node::{Node, NodeSettings, read, read_some};
use weir_tests::{eventually, random_bytes, runtime};

const ROOT: u64 = 1;
const MIB: usize = 1 << 20;

fn memory(names: &[&str]) -> Arc<MemoryOrigin> {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    for (seed, name) in (0..).zip(names) {
        memory.insert(name, random_bytes(seed, MIB));
    }
    memory
}

fn bytes_in(dir: &Path) -> u64 {
    objects(dir).iter().map(|path| path.metadata().unwrap().len()).sum()
}

#[test]
fn a_version_lies_on_the_disk_that_its_first_reader_prefers() {
    let (near, far) = (cache_dir(), cache_dir());
    let memory = memory(&["a", "b", "c"]);
    let settings = NodeSettings { cache_max: 2 << 20, ..NodeSettings::default() };
    let node = Node::on_disks(&[far.path(), near.path()], memory.clone(), settings);
    let session = node.session();
    session.prefer(Arc::new([0, 4]));
    for (name, stored) in [("a", 1 << 20), ("b", 2 << 20)] {
        read(&session, name);
        eventually("it is stored", || {
            in_place(|may| node.engine.cache.stats(may)).used_bytes == stored
        });
    }
    assert_eq!((bytes_in(near.path()), bytes_in(far.path())), (2 << 20, 0));
    // No room there without evicting, and room on the other: nothing is evicted.
    read(&session, "c");
    eventually("it is stored", || {
        in_place(|may| node.engine.cache.stats(may)).used_bytes == 3 << 20
    });
    assert_eq!(bytes_in(far.path()), 1 << 20);
    assert_eq!(node.engine.metrics.cache_evictions.get(), 0);
    // Another reader prefers another disk: what is cached stays where it is.
    session.prefer(Arc::new([4, 0]));
    let before = node.engine.metrics.fetched_bytes.get();
    assert!(read(&session, "a") == random_bytes(0, MIB));
    assert_eq!(node.engine.metrics.fetched_bytes.get(), before);
    drop(session);
    node.close();
    drop(node);
    // So it is after a restart.
    let node = Node::on_disks(&[far.path(), near.path()], memory, settings);
    let session = node.session();
    for (seed, name) in (0..).zip(["a", "b", "c"]) {
        assert!(read(&session, name) == random_bytes(seed, MIB), "{name}");
    }
    assert_eq!(node.engine.metrics.fetched_bytes.get(), 0);
    node.close();
}

#[test]
fn what_is_written_lies_on_the_preferred_disk() {
    let (one, two) = (cache_dir(), cache_dir());
    let node = Node::on_disks(&[one.path(), two.path()], memory(&[]), NodeSettings::default());
    let place = tempfile::tempdir().unwrap();
    let mount = node.mount(&place.path().join("mnt"));
    mount.session.prefer(Arc::new([4, 0]));
    std::fs::write(place.path().join("mnt/new"), random_bytes(9, 3 * MIB)).unwrap();
    eventually("it is cached", || bytes_in(one.path()) == 3 << 20);
    std::fs::rename(place.path().join("mnt/new"), place.path().join("mnt/newer")).unwrap();
    assert!(std::fs::read(place.path().join("mnt/newer")).unwrap() == random_bytes(9, 3 * MIB));
    assert_eq!((node.engine.metrics.fetched_bytes.get(), bytes_in(two.path())), (0, 0));
    drop(mount);
    node.close();
}

#[test]
fn a_disk_that_fails_is_left_alone_and_told() {
    let (failing, healthy) = (FailingDisk::new(), cache_dir());
    let bad = failing.path().join("cache");
    let names = ["a", "b", "c", "d", "e"];
    let node = Node::on_disks(&[&bad, healthy.path()], memory(&names), NodeSettings::default());
    let session = node.session();
    session.prefer(Arc::new([4, 0]));
    assert!(read(&session, "a") == random_bytes(0, MIB));
    eventually("it is stored", || bytes_in(&bad) == 1 << 20);
    assert_eq!(node.engine.cache.problem(), None);
    failing.fail(true);
    for (seed, name) in (1..).zip(["b", "c", "d"]) {
        assert!(read(&session, name) == random_bytes(seed, MIB), "{name}");
    }
    eventually("the disk counts as failing", || node.engine.cache.problem().is_some());
    let problem = node.engine.cache.problem().unwrap();
    assert!(problem.contains(bad.to_str().unwrap()), "{problem}");
    let text = node.engine.metrics.text();
    let line = format!("weir_cache_disk_failing{{dir=\"{}\"}} 1", bad.display());
    assert!(text.contains(&line), "{text}");
    // What it held is fetched again, and new things are stored elsewhere.
    let before = node.engine.metrics.fetched_bytes.get();
    for (seed, name) in [(0, "a"), (4, "e")] {
        assert!(read(&session, name) == random_bytes(seed, MIB), "{name}");
    }
    assert_eq!(node.engine.metrics.fetched_bytes.get() - before, 2 << 20);
    eventually("they are on the other disk", || {
        let before = node.engine.metrics.fetched_bytes.get();
        assert!(read(&session, "a") == random_bytes(0, MIB));
        assert!(read(&session, "e") == random_bytes(4, MIB));
        let stats = in_place(|may| node.engine.cache.stats(may));
        node.engine.metrics.fetched_bytes.get() == before && stats.disks[1].versions >= 2
    });
    assert!(bytes_in(healthy.path()) >= 2 << 20);
    drop(session);
    node.close();
}

/// More creations than there are threads wait for a disk, and a mount over another one goes on.
#[test]
fn a_disk_that_does_not_answer_keeps_no_other_mount_waiting() {
    let (hanging, healthy) = (FailingDisk::new(), cache_dir());
    let stuck = Node::new(&hanging.path().join("cache"), memory(&[]), NodeSettings::default());
    let well = Node::new(healthy.path(), memory(&["a"]), NodeSettings::default());
    let (waits, goes_on) = (stuck.session(), well.session());
    hanging.hang(true);
    let made: Vec<_> = (0..40)
        .map(|n| {
            let session = waits.clone();
            let new = OpenRequest { write: true, ..OpenRequest::default() };
            let make = async move { session.create(ROOT, &format!("new-{n}"), &new).await };
            runtime().spawn(async move { make.await.map(|(_, opened)| opened.fh) })
        })
        .collect();
    let (told, tells) = mpsc::channel();
    let reading = std::thread::spawn(move || {
        // Again and again: those who wait come to be one after the other.
        for n in 0..20 {
            let new = OpenRequest { write: true, ..OpenRequest::default() };
            let name = format!("new-{n}");
            let session = goes_on.clone();
            let make = async move { session.create(ROOT, &name, &new).await.map(|_| ()) };
            runtime().block_on(runtime().spawn(make)).unwrap().unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        told.send(read(&goes_on, "a") == random_bytes(0, MIB)).unwrap();
    });
    let went_on = tells.recv_timeout(Duration::from_secs(60));
    assert!(made.iter().all(|made| !made.is_finished()), "the disk answers");
    hanging.hang(false);
    assert_eq!(went_on, Ok(true));
    reading.join().unwrap();
    for made in made {
        runtime().block_on(made).unwrap().unwrap();
    }
    drop(waits);
    stuck.close();
    well.close();
}

/// More closes than there are turns wait for one disk of a node, and what is on its other one goes on.
#[test]
fn a_disk_that_does_not_answer_keeps_nobody_from_another_of_its_node() {
    let (hanging, healthy) = (FailingDisk::new(), cache_dir());
    let bad = hanging.path().join("cache");
    let node = Node::on_disks(&[&bad, healthy.path()], memory(&["a"]), NodeSettings::default());
    let (stuck, well) = (node.session(), node.session());
    stuck.prefer(Arc::new([4, 0]));
    well.prefer(Arc::new([0, 4]));
    assert!(read(&well, "a") == random_bytes(0, MIB));
    eventually("it is stored", || bytes_in(healthy.path()) == 1 << 20);
    let written: Vec<_> = (0..20).map(|n| write(&stuck, &format!("stuck-{n}"))).collect();
    let fetched = node.engine.metrics.fetched_bytes.get();
    hanging.hang(true);
    let closed: Vec<_> = written
        .into_iter()
        .map(|fh| {
            let session = stuck.clone();
            runtime().spawn(async move { session.release(fh).await })
        })
        .collect();
    let (told, tells) = mpsc::channel();
    let (cache, session) = (node.engine.cache.clone(), well.clone());
    let others = std::thread::spawn(move || {
        let mut rounds = 0;
        // Until it is known, and a little on.
        while rounds < 10 {
            rounds += usize::from(cache.problem().is_some());
            let name = format!("well-{}", rand::random::<u64>());
            runtime().block_on(session.release(write(&session, &name)));
            assert!(read(&session, "a") == random_bytes(0, MIB));
            assert!(read(&session, &name) == random_bytes(9, 4096));
            told.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let went_on = loop {
        match tells.recv_timeout(Duration::from_secs(20)) {
            Ok(()) => {}
            Err(ended) => break ended,
        }
    };
    let stats = in_place(|may| node.engine.cache.stats(may));
    let waits = closed.iter().filter(|closed| !closed.is_finished()).count();
    let failing = |dir: &Path, fails: u8| {
        let line = format!("weir_cache_disk_failing{{dir=\"{}\"}} {fails}", dir.display());
        node.engine.metrics.text().contains(&line)
    };
    if went_on == mpsc::RecvTimeoutError::Disconnected {
        eventually("it is counted", || failing(&bad, 1) && failing(healthy.path(), 0));
    }
    hanging.hang(false);
    assert_eq!(went_on, mpsc::RecvTimeoutError::Disconnected, "somebody waits");
    others.join().unwrap();
    let problems: Vec<_> = stats.disks.iter().map(|disk| disk.problem.is_some()).collect();
    assert_eq!((problems, waits), (vec![true, false], 20));
    assert_eq!(node.engine.metrics.fetched_bytes.get(), fetched);
    for closed in closed {
        runtime().block_on(closed).unwrap();
    }
    assert_eq!(node.engine.cache.problem(), None);
    drop((stuck, well));
    node.close();
}

/// More mounts begin than there are turns, or threads that wait, while a disk does not take what it is
/// told of them.
#[test]
fn a_disk_that_does_not_answer_keeps_no_mount_from_beginning() {
    let (hanging, healthy) = (FailingDisk::new(), cache_dir());
    let bad = hanging.path().join("cache");
    let node = Node::on_disks(&[&bad, healthy.path()], memory(&["a"]), NodeSettings::default());
    let well = node.session();
    well.prefer(Arc::new([0, 4]));
    assert!(read(&well, "a") == random_bytes(0, MIB));
    eventually("it is stored", || bytes_in(healthy.path()) == 1 << 20);
    hanging.hang_syncs(true);
    let begin = |n: usize| {
        let access = AccessSettings { identity: n.to_string(), ..AccessSettings::default() };
        runtime().spawn(node.begin(node.faulty.clone(), access))
    };
    let patience = Duration::from_secs(60);
    let begun: Vec<_> = (0..40).map(begin).collect();
    let begun: Vec<_> = begun
        .into_iter()
        .map_while(|begins| runtime().block_on(async { timeout(patience, begins).await.ok() }))
        .map(Result::unwrap)
        .collect();
    let waits = runtime().block_on(async { timeout(patience, aside(|_| ())).await.is_err() });
    let fetched = node.engine.metrics.fetched_bytes.get();
    // Each may use what the other disk holds, if the origin allows him.
    let refused = begun.iter().all(|session| {
        session.prefer(Arc::new([0, 4]));
        let ino = runtime().block_on(session.lookup(ROOT, "a")).unwrap().attr.ino;
        node.faulty.inject_once(Op::Get, Fault::Fail(OriginError::Denied("AccessDenied".into())));
        runtime().block_on(session.open(ino, &OpenRequest::default())).is_err()
    });
    let read = begun.iter().all(|session| read(session, "a") == random_bytes(0, MIB));
    let fetched = node.engine.metrics.fetched_bytes.get() - fetched;
    hanging.hang_syncs(false);
    assert_eq!((begun.len(), waits, refused, read), (40, false, true, true));
    assert!(fetched < MIB as u64, "{fetched} bytes beyond those of questions");
    drop((begun, well));
    node.close();
}

/// Writes a new file, and leaves it open.
fn write(session: &Arc<Session>, name: &str) -> u64 {
    let new = OpenRequest { write: true, ..OpenRequest::default() };
    let (_, opened) = runtime().block_on(session.create(ROOT, name, &new)).unwrap();
    in_place(|may| session.write(may, opened.fh, 0, &random_bytes(9, 4096))).unwrap();
    opened.fh
}

#[test]
fn a_mount_comes_up_without_a_disk_that_cannot_be_used() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", random_bytes(1, MIB));
    let cache = cache_dir();
    let file = cache.path().join("a-file");
    std::fs::write(&file, "x").unwrap();
    let good = cache.path().join("good");
    let options = Options::default().cache(&file).flag("--cache-dir").flag(good.to_str().unwrap());
    let mount = Mount::with(&bucket, &options);
    assert!(std::fs::read(mount.join("f")).unwrap() == random_bytes(1, MIB));
    let stats = mount.status().cache;
    let problems: Vec<_> = stats.disks.iter().map(|disk| disk.problem.is_some()).collect();
    assert_eq!(problems, [false, true]);
    assert_eq!(stats.disks[1].dir, file);
    mount.unmount();
}

#[test]
fn what_was_read_through_is_stored_once_there_is_room() {
    let cache = cache_dir();
    let settings = NodeSettings { cache_max: MIB as u64, ..NodeSettings::default() };
    let node = Node::new(cache.path(), memory(&["a", "b"]), settings);
    let session = node.session();
    read(&session, "a");
    eventually("it is stored", || {
        in_place(|may| node.engine.cache.stats(may)).used_bytes == 1 << 20
    });
    // Somebody has it open: there is no room for the other.
    let ino = runtime().block_on(session.lookup(1, "a")).unwrap().attr.ino;
    let open = runtime().block_on(session.open(ino, &OpenRequest::default())).unwrap();
    let other = runtime().block_on(session.lookup(1, "b")).unwrap().attr.ino;
    let kept = runtime().block_on(session.open(other, &OpenRequest::default())).unwrap();
    read(&session, "b");
    assert_eq!(node.engine.metrics.cache_bypassed_bytes.get(), 1 << 20);
    runtime().block_on(session.release(open.fh));
    let before = node.engine.metrics.fetched_bytes.get();
    eventually("it is stored when it is read again", || {
        // Less than makes the rest worth fetching.
        assert!(read_some(&session, "b", 131_072) == random_bytes(1, MIB)[..131_072]);
        in_place(|may| node.engine.cache.stats(may)).used_bytes == 1 << 20
            && node.engine.metrics.cache_evictions.get() == 1
    });
    assert_eq!(node.engine.metrics.fetched_bytes.get(), before);
    runtime().block_on(session.release(kept.fh));
    node.close();
}
