//! A cache disk that lies, fails or is full: readers get right bytes all the same, and the next
//! mount comes up by itself.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use weir_tests::bucket::{Bucket, Server};
use weir_tests::cached::{is_cached, objects};
use weir_tests::failing_disk::FailingDisk;
use weir_tests::mount::{Mount, Options, cache_dir};
use weir_tests::tmpfs::Tmpfs;
use weir_tests::{eventually, random_bytes};

const MIB: usize = 1 << 20;
const FILES: [(&str, usize); 3] = [("model", 3 * MIB + 77), ("asset", 5000), ("page", 131_072)];

fn filled(cache: &Path) -> Bucket {
    let bucket = Bucket::new(Server::Minio);
    for (seed, (name, size)) in FILES.iter().enumerate() {
        bucket.put(name, random_bytes(seed as u64, *size));
    }
    let mount = Mount::with(&bucket, &Options::default().cache(cache));
    for (name, _) in FILES {
        fs::read(mount.join(name)).unwrap();
        eventually("it is cached", || is_cached(&mount.join(name)));
    }
    mount.unmount();
    bucket
}

fn reads_right(bucket: &Bucket, cache: &Path) -> u64 {
    let mount = Mount::with(bucket, &Options::flags("--passthrough off").cache(cache));
    for (seed, (name, size)) in FILES.iter().enumerate() {
        assert!(fs::read(mount.join(name)).unwrap() == random_bytes(seed as u64, *size), "{name}");
    }
    let fetched = mount.fetched();
    // What was mended is stored behind the read.
    for (name, _) in FILES {
        eventually("it is cached", || is_cached(&mount.join(name)));
    }
    mount.unmount();
    fetched
}

fn flip(path: &Path, at: u64, len: usize) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; len];
    let read = file.read_at(&mut bytes, at).unwrap();
    bytes.truncate(read);
    bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
    file.write_all_at(&bytes, at).unwrap();
}

#[test]
fn a_flipped_byte_in_any_region_of_a_cache_file_is_found() {
    let cache = cache_dir();
    let bucket = filled(cache.path());
    for path in objects(cache.path()) {
        let len = path.metadata().unwrap().len();
        // First and last byte, and around the ends of blocks.
        let regions = [0, 1, 4095, 131_071, 131_072, 2 << 20, len - 1];
        for at in regions.into_iter().filter(|at| *at < len) {
            flip(&path, at, 1);
            let fetched = reads_right(&bucket, cache.path());
            assert!(fetched > 0 && fetched <= 131_072, "byte {at} of {len}: {fetched} fetched");
        }
    }
    assert_eq!(reads_right(&bucket, cache.path()), 0);
}

#[test]
fn a_damaged_region_of_the_index_never_shows_wrong_bytes() {
    let cache = cache_dir();
    let bucket = filled(cache.path());
    let index = cache.path().join("index.redb");
    let len = index.metadata().unwrap().len();
    for part in 0..16 {
        // The first page in small steps, the rest in large ones.
        let at = if part < 6 { part * 60 } else { len / 16 * part };
        flip(&index, at, 40);
        reads_right(&bucket, cache.path());
    }
    for keep in [0, 100, 5000, len / 2] {
        OpenOptions::new().write(true).open(&index).unwrap().set_len(keep).unwrap();
        reads_right(&bucket, cache.path());
    }
}

#[test]
fn a_disk_without_inodes_is_read_through() {
    let bucket = Bucket::new(Server::Minio);
    for n in 0..80 {
        bucket.put(&format!("f{n}"), random_bytes(n, 5000));
    }
    let disk = Tmpfs::with_inodes(64, 40);
    let options = Options::flags("--cache-min-free 0 --cache-min-free-inodes 0").cache(disk.path());
    for _ in 0..2 {
        let mount = Mount::with(&bucket, &options);
        for n in 0..80 {
            assert!(fs::read(mount.join(&format!("f{n}"))).unwrap() == random_bytes(n, 5000));
        }
        mount.unmount();
    }
}

#[test]
fn a_disk_that_answers_eio_is_read_through_and_used_again_when_it_works() {
    let bucket = Bucket::new(Server::Minio);
    for (seed, (name, size)) in FILES.iter().enumerate() {
        bucket.put(name, random_bytes(seed as u64, *size));
    }
    let disk = FailingDisk::new();
    let cache = disk.path().join("cache");
    let options = Options::flags("--passthrough off --metadata-ttl minimal").cache(&cache);
    let mount = Mount::with(&bucket, &options);
    let read_all = || {
        for (seed, (name, size)) in FILES.iter().enumerate() {
            let expected = random_bytes(seed as u64, *size);
            assert!(fs::read(mount.join(name)).unwrap() == expected, "{name}");
        }
        fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    };
    read_all();
    // Blocks that are cached cannot be read, new ones cannot be written.
    disk.fail(true);
    bucket.put("new", random_bytes(9, MIB));
    read_all();
    assert!(fs::read(mount.join("new")).unwrap() == random_bytes(9, MIB));
    assert!(fs::write(mount.join("written"), "x").is_err() || bucket.get("written").is_some());
    disk.fail(false);
    read_all();
    fs::write(mount.join("written"), "y").unwrap();
    assert_eq!(bucket.get("written").unwrap(), b"y");
    mount.unmount();
    // What the failing time left in the index is believed no more than its checksums.
    let mount = Mount::with(&bucket, &options);
    assert!(fs::read(mount.join("model")).unwrap() == random_bytes(0, FILES[0].1));
    mount.unmount();
}
