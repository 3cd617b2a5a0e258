//! What the kernel remembers and forgets: listings, inodes, pages, mappings.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weir_fuse::origin::memory::MemoryOrigin;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::cached::{bytes_on_disk, is_cached, map};
use weir_tests::mount::{Mount, Options, cache_dir};
use weir_tests::node::{Node, NodeSettings};
use weir_tests::tmpfs::Tmpfs;
use weir_tests::{eventually, random_bytes};

const MIB: usize = 1 << 20;

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_kernels_directory_cache_follows_a_listing_that_changes() {
    let bucket = Bucket::new(Server::Minio);
    for n in 0..40 {
        bucket.put(&format!("d/f{n:03}"), "x");
    }
    let mount = Mount::flags(&bucket, "--metadata-ttl minimal");
    let dir = mount.join("d");
    let mut expected: Vec<String> = (0..40).map(|n| format!("f{n:03}")).collect();
    for round in 0..25 {
        // Twice, so that the second is the kernel's own memory.
        assert_eq!(names(&dir), expected, "{round}");
        assert_eq!(names(&dir), expected, "{round}");
        let (gone, new) = (expected.remove(round % expected.len()), format!("n{round:03}"));
        bucket.delete(&format!("d/{gone}"));
        if round % 2 == 0 {
            bucket.put(&format!("d/{new}"), "x");
        } else {
            fs::write(dir.join(&new), "x").unwrap();
        }
        expected.push(new);
        expected.sort();
    }
}

#[test]
fn a_million_inodes_are_forgotten_while_others_are_looked_up() {
    const DIRS: usize = 100;
    const FILES: usize = 10_000;
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    for n in 0..DIRS * FILES {
        memory.insert(&format!("d{:02}/f{n:07}", n / FILES), "");
    }
    let (cache, place) = (cache_dir(), tempfile::tempdir().unwrap());
    let node = Node::new(cache.path(), memory, NodeSettings::default());
    let root = place.path().join("mnt");
    let mount = node.mount(&root);
    let drop_inodes = || fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                drop_inodes();
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        let walkers: Vec<_> = (0..4)
            .map(|walker| {
                let root = &root;
                scope.spawn(move || {
                    for dir in (walker..DIRS).step_by(4) {
                        let entries = fs::read_dir(root.join(format!("d{dir:02}"))).unwrap();
                        let files =
                            entries.filter(|e| e.as_ref().unwrap().metadata().unwrap().is_file());
                        assert_eq!(files.count(), FILES);
                    }
                })
            })
            .collect();
        walkers.into_iter().for_each(|walker| walker.join().unwrap());
        over.store(true, Ordering::Relaxed);
    });
    eventually("the kernel's references are given up", || {
        drop_inodes();
        mount.session.status().inodes < 1000
    });
    assert_eq!(fs::metadata(root.join("d50/f0500000")).unwrap().len(), 0);
}

#[test]
fn a_removed_file_that_is_open_counts_until_it_is_closed() {
    let bucket = Bucket::new(Server::Minio);
    // On a real disk, where blocks are given back when the last descriptor goes.
    let cache = cache_dir();
    for n in 0..4 {
        bucket.put(&format!("f{n}"), random_bytes(n, 8 * MIB));
    }
    let options = Options::flags("--cache-max-size 20MiB").cache(cache.path());
    let mount = Mount::with(&bucket, &options);
    fs::read(mount.join("f0")).unwrap();
    eventually("it is cached", || is_cached(&mount.join("f0")));
    let open = File::open(mount.join("f0")).unwrap();
    fs::remove_file(mount.join("f0")).unwrap();
    for n in 1..4 {
        assert!(fs::read(mount.join(&format!("f{n}"))).unwrap() == random_bytes(n, 8 * MIB));
        let used = mount.status().cache.used_bytes;
        assert!((8 << 20..=20 << 20).contains(&used), "{used}");
        assert!(bytes_on_disk(cache.path()) <= 20 << 20);
    }
    let mapped = map(&open);
    assert!(mapped[..] == random_bytes(0, 8 * MIB)[..]);
    drop((mapped, open));
    eventually("what was removed makes place", || {
        fs::read(mount.join("f1")).unwrap();
        fs::read(mount.join("f2")).unwrap();
        is_cached(&mount.join("f1")) && is_cached(&mount.join("f2"))
    });
    assert!(mount.status().cache.used_bytes <= 20 << 20);
}

#[test]
fn a_disk_that_fills_up_under_a_sparse_file_is_read_through() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", random_bytes(1, 30 * MIB));
    let disk = Tmpfs::new(60);
    let options = Options::flags("--cache-min-free 0 --read-part-size 1MiB").cache(disk.path());
    let mount = Mount::with(&bucket, &options);
    let mut file = File::open(mount.join("f")).unwrap();
    let mut start = vec![0; 2 * MIB];
    std::io::Read::read_exact(&mut file, &mut start).unwrap();
    // Somebody else takes all that is left: the holes of the file cannot be filled any more.
    let other = disk.path().join("somebody-else");
    let left = disk.free();
    let _ = fs::write(&other, vec![1; left as usize]);
    assert!(fs::read(mount.join("f")).unwrap() == random_bytes(1, 30 * MIB));
    fs::remove_file(other).unwrap();
    assert!(fs::read(mount.join("f")).unwrap() == random_bytes(1, 30 * MIB));
}

#[test]
fn a_mapping_lives_through_changes_of_mode_and_version() {
    let bucket = Bucket::new(Server::Minio);
    let (old, new) = (random_bytes(1, 5 * MIB), random_bytes(2, 5 * MIB));
    bucket.put("model", old.clone());
    let mount = Mount::new(&bucket);
    let streaming = map(&File::open(mount.join("model")).unwrap());
    assert!(streaming[..MIB] == old[..MIB]);
    fs::read(mount.join("model")).unwrap();
    eventually("it is cached", || is_cached(&mount.join("model")));
    let cached = map(&File::open(mount.join("model")).unwrap());
    assert!(mount.opens("passthrough") >= 1);
    assert!(cached[..] == old[..] && streaming[..] == old[..]);
    // Written here: both keep what they mapped.
    fs::write(mount.join("model"), &new).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    assert!(cached[..] == old[..] && streaming[..] == old[..]);
    assert!(fs::read(mount.join("model")).unwrap() == new);
}
