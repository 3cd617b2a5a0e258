//! Random sequences of operations against the reference model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rand::{Rng, SeedableRng};
use weir_fuse::blocking::in_place;
use weir_fuse::model::ttl::MetadataTtl;
use weir_fuse::origin::memory::MemoryOrigin;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::model::{Interpreter, MountFiles, Op, SessionFiles, ops};
use weir_tests::mount::{Mount, Options, cache_dir};
use weir_tests::node::{Node, NodeSettings};
use weir_tests::{eventually, random_bytes, runtime};

/// Small, so that versions are evicted all the time; always asking, so that what others change
/// shows at once.
const TIGHT: NodeSettings = NodeSettings {
    cache_max: 2 << 20,
    memory: 8 << 20,
    read_part: 256 << 10,
    ttl: MetadataTtl::Minimal,
};

/// The same sequences each time; with `WEIR_PROPTEST_CASES` so many others.
fn runner(cases: u32) -> TestRunner {
    let given = std::env::var("WEIR_PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    let config = |cases| Config { cases, failure_persistence: None, ..Config::default() };
    match given {
        Some(given) => TestRunner::new(config(given)),
        None => {
            let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
            TestRunner::new_with_rng(config(cases), rng)
        }
    }
}

#[test]
fn sessions_behave_as_the_model_says() {
    let check = |ops: Vec<Op>| {
        let cache = cache_dir();
        let memory = Arc::new(MemoryOrigin::new("bucket"));
        for life in ops.split(|op| matches!(op, Op::Restart)) {
            let node = Node::new(cache.path(), memory.clone(), TIGHT);
            let mut model = Interpreter::new(SessionFiles::new(node.session()), &*memory);
            life.iter().for_each(|op| model.step(op));
            model.finish();
            node.close();
        }
    };
    let run = |ops: Vec<Op>| {
        check(ops);
        Ok(())
    };
    runner(96).run(&ops(60), run).unwrap();
}

#[test]
fn mounts_behave_as_the_model_says() {
    let run = |ops: Vec<Op>| {
        let cache = cache_dir();
        let place = tempfile::tempdir().unwrap();
        let memory = Arc::new(MemoryOrigin::new("bucket"));
        for life in ops.split(|op| matches!(op, Op::Restart)) {
            let node = Node::new(cache.path(), memory.clone(), TIGHT);
            let mount = node.mount(&place.path().join("mnt"));
            let session = mount.session.clone();
            let files = MountFiles::new(place.path().join("mnt"), move |open| {
                eventually("who has closed is gone", || {
                    session.status().open_handles <= open as u64
                });
                runtime().block_on(session.rest(Instant::now() + Duration::from_secs(60)));
            });
            let mut model = Interpreter::new(files, &*memory);
            life.iter().for_each(|op| model.step(op));
            model.finish();
            drop(mount);
            node.close();
        }
        Ok(())
    };
    runner(24).run(&ops(50), run).unwrap();
}

/// The files of a mount that is a process.
fn files_of(mount: &Mount) -> MountFiles {
    let status = mount.asker();
    MountFiles::new(mount.path(), move |open| {
        eventually("who has closed is gone", || {
            status().mounts.iter().all(|mount| mount.session.open_handles <= open as u64)
        });
    })
}

/// Every restart is a kill -9 of the process at that moment, with whatever is open.
#[test]
fn what_was_acknowledged_survives_kill_9_as_the_model_says() {
    let run = |ops: Vec<Op>| {
        let bucket = Bucket::new(Server::Minio);
        let cache = cache_dir();
        let flags = "--metadata-ttl minimal --cache-max-size 2MiB --memory-target 8MiB";
        let options = Options::flags(flags).cache(cache.path());
        for life in ops.split(|op| matches!(op, Op::Restart)) {
            let mount = Mount::with(&bucket, &options);
            let mut model = Interpreter::new(files_of(&mount), &bucket);
            life.iter().for_each(|op| model.step(op));
            mount.kill();
        }
        let mount = Mount::with(&bucket, &options);
        Interpreter::new(files_of(&mount), &bucket).finish();
        mount.unmount();
        Ok(())
    };
    runner(8).run(&ops(80), run).unwrap();
}

/// Eviction against opens and fetches: many readers of more than the cache holds.
#[test]
fn evictions_race_with_opens_and_fetches() {
    const LIMIT: u64 = 3 << 20;
    let settings = NodeSettings { cache_max: LIMIT, memory: 16 << 20, ..NodeSettings::default() };
    let (cache, place) = (cache_dir(), tempfile::tempdir().unwrap());
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    for n in 0..24_u64 {
        memory.insert(&format!("f{n}"), random_bytes(n, 60_000 * (n as usize % 9 + 1)));
    }
    let node = Node::new(cache.path(), memory, settings);
    let root = place.path().join("mnt");
    let mount = node.mount(&root);
    std::thread::scope(|scope| {
        for reader in 0..8_u64 {
            let root = &root;
            scope.spawn(move || {
                let mut random = rand::rngs::StdRng::seed_from_u64(reader);
                for _ in 0..150 {
                    let n = random.random_range(0..24_u64);
                    let expected = random_bytes(n, 60_000 * (n as usize % 9 + 1));
                    let read = std::fs::read(root.join(format!("f{n}"))).unwrap();
                    assert!(read == expected, "f{n}");
                    // The kernel's pages would spare the cache most of it.
                    std::fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
                }
            });
        }
    });
    assert!(node.engine.metrics.cache_evictions.get() > 20);
    in_place(|may| node.engine.cache.flush(may));
    let used = in_place(|may| node.engine.cache.stats(may)).used_bytes;
    assert!(used <= LIMIT, "{used}");
    drop(mount);
    node.close();
}

/// Overwrites of a file over the size that is fetched whole, beside processes that open it all the
/// time: neither is told an error.
#[test]
fn overwrites_race_with_opens() {
    const LEN: usize = 400_000;
    let (cache, place) = (cache_dir(), tempfile::tempdir().unwrap());
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    let node = Node::new(cache.path(), memory, NodeSettings::default());
    let root = place.path().join("mnt");
    let mount = node.mount(&root);
    let path = root.join("f");
    std::fs::write(&path, vec![0; LEN]).unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    while !over.load(std::sync::atomic::Ordering::Relaxed) {
                        // Who opens it while it is written sees what is written so far.
                        assert!(std::fs::read(&path).unwrap().len() <= LEN);
                    }
                })
            })
            .collect();
        for version in 1..120_u8 {
            let written = std::fs::write(&path, vec![version; LEN]);
            if let Err(error) = written {
                over.store(true, std::sync::atomic::Ordering::Relaxed);
                panic!("version {version}: {error}");
            }
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    assert!(std::fs::read(&path).unwrap() == vec![119; LEN]);
    drop(mount);
    node.close();
}
