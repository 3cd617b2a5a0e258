//! The cache: across restarts and crashes, at its limits, and on a disk that lies.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use weir_tests::bucket::{Bucket, Server};
use weir_tests::cached::{bytes_on_disk, is_cached, objects};
use weir_tests::mount::{Mount, Options, cache_dir, run};
use weir_tests::tmpfs::Tmpfs;
use weir_tests::{eventually, random_bytes};

use crate::on_each_server;

const MIB: usize = 1 << 20;

on_each_server! {
    fn the_cache_survives_a_restart(bucket: Bucket) {
        let cache = cache_dir();
        let options = Options::default().cache(cache.path());
        bucket.put("model", random_bytes(1, 9 * MIB));
        bucket.put("asset", random_bytes(2, 5000));
        let mount = Mount::with(&bucket, &options);
        fs::read(mount.join("model")).unwrap();
        fs::read(mount.join("asset")).unwrap();
        fs::write(mount.join("written"), random_bytes(3, 9 * MIB)).unwrap();
        eventually("all of it is cached", || is_cached(&mount.join("model")));
        mount.unmount();
        let mount = Mount::with(&bucket, &options);
        assert!(fs::read(mount.join("model")).unwrap() == random_bytes(1, 9 * MIB));
        assert!(fs::read(mount.join("asset")).unwrap() == random_bytes(2, 5000));
        assert!(fs::read(mount.join("written")).unwrap() == random_bytes(3, 9 * MIB));
        assert_eq!(mount.fetched(), 0);
    }

    fn the_next_mount_after_kill_9_serves_right_bytes(bucket: Bucket) {
        let cache = cache_dir();
        let options = Options::default().cache(cache.path());
        for n in 0..6 {
            bucket.put(&format!("f{n}"), random_bytes(n, 6 * MIB));
        }
        for round in 0..4 {
            let mount = Mount::with(&bucket, &options);
            std::thread::scope(|scope| {
                for n in 0..6 {
                    let path = mount.join(&format!("f{n}"));
                    // Right bytes, or the error of a mount that was killed.
                    scope.spawn(move || {
                        if let Ok(bytes) = fs::read(path) {
                            assert!(bytes == random_bytes(n, 6 * MIB));
                        }
                    });
                }
                std::thread::sleep(std::time::Duration::from_millis(20 + 60 * round));
                mount.signal(rustix::process::Signal::KILL);
            });
            mount.kill();
        }
        let mount = Mount::with(&bucket, &options);
        for n in 0..6 {
            assert!(fs::read(mount.join(&format!("f{n}"))).unwrap() == random_bytes(n, 6 * MIB));
        }
        mount.unmount();
    }

    fn eviction_keeps_the_limit_while_files_are_open(bucket: Bucket) {
        const LIMIT: u64 = 24 << 20;
        let cache = cache_dir();
        let options = Options::flags("--cache-max-size 24MiB").cache(cache.path());
        for n in 0..6 {
            bucket.put(&format!("f{n}"), random_bytes(n, 8 * MIB));
        }
        let mount = Mount::with(&bucket, &options);
        let mut open = Vec::new();
        for n in 0..6 {
            let path = mount.join(&format!("f{n}"));
            assert!(fs::read(&path).unwrap() == random_bytes(n, 8 * MIB));
            if n == 0 {
                eventually("the first is cached", || is_cached(&path));
                open.push(File::open(&path).unwrap());
            }
            assert!(bytes_on_disk(cache.path()) <= LIMIT, "{}", bytes_on_disk(cache.path()));
            assert!(mount.status().cache.used_bytes <= LIMIT);
        }
        // While the index is slow, what is new is read through.
        eventually("others gave way", || {
            fs::read(mount.join("f4")).unwrap();
            fs::read(mount.join("f5")).unwrap();
            mount.metrics()["weir_cache_evictions_total"] >= 2.0
        });
        let mut first = Vec::new();
        open[0].read_to_end(&mut first).unwrap();
        assert!(first == random_bytes(0, 8 * MIB));
    }

    fn eviction_leaves_what_is_to_stay_free(bucket: Bucket) {
        const MIN_FREE: u64 = 40 << 20;
        let disk = Tmpfs::new(80);
        let options = Options::flags("--cache-min-free 40MiB").cache(disk.path());
        for n in 0..7 {
            bucket.put(&format!("f{n}"), random_bytes(n, 8 * MIB));
        }
        let mount = Mount::with(&bucket, &options);
        let mut open = Vec::new();
        for n in 0..7 {
            let path = mount.join(&format!("f{n}"));
            assert!(fs::read(&path).unwrap() == random_bytes(n, 8 * MIB));
            open.push(File::open(&path).unwrap());
            // The index grows beside what is cached.
            assert!(disk.free() + (4 << 20) >= MIN_FREE, "{}", disk.free());
        }
        assert!(mount.status().cache.used_bytes >= 16 << 20);
    }

    fn a_full_disk_is_read_through(bucket: Bucket) {
        let disk = Tmpfs::new(32);
        bucket.put("large", random_bytes(1, 24 * MIB));
        let options = Options::flags("--cache-min-free 0").cache(disk.path());
        let mount = Mount::with(&bucket, &options);
        let filler = disk.path().join("filler");
        let _ = fs::write(&filler, vec![0; 64 * MIB]);
        for _ in 0..2 {
            assert!(fs::read(mount.join("large")).unwrap() == random_bytes(1, 24 * MIB));
        }
        fs::remove_file(filler).unwrap();
        assert!(fs::read(mount.join("large")).unwrap() == random_bytes(1, 24 * MIB));
    }

    fn a_file_larger_than_the_cache_is_read_through(bucket: Bucket) {
        let cache = cache_dir();
        let options = Options::flags("--cache-max-size 8MiB").cache(cache.path());
        bucket.put("large", random_bytes(1, 40 * MIB));
        let mount = Mount::with(&bucket, &options);
        for _ in 0..2 {
            assert!(fs::read(mount.join("large")).unwrap() == random_bytes(1, 40 * MIB));
        }
        assert!(bytes_on_disk(cache.path()) <= 8 << 20);
    }
}

/// Changes one byte in every block of every cached file.
fn damage(cache: &Path) {
    for path in objects(cache) {
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        for at in (100..len).step_by(128 * 1024) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        }
    }
}

fn filled_cache(bucket: &Bucket, cache: &Path) {
    bucket.put("model", random_bytes(1, 5 * MIB));
    bucket.put("asset", random_bytes(2, 5000));
    let mount = Mount::with(bucket, &Options::default().cache(cache));
    fs::read(mount.join("model")).unwrap();
    fs::read(mount.join("asset")).unwrap();
    until_cached(&mount);
    mount.unmount();
}

fn until_cached(mount: &Mount) {
    eventually("all of it is cached", || {
        is_cached(&mount.join("model")) && is_cached(&mount.join("asset"))
    });
}

fn reads_right(bucket: &Bucket, cache: &Path, flags: &str) -> Mount {
    let mount = Mount::with(bucket, &Options::flags(flags).cache(cache));
    assert!(fs::read(mount.join("model")).unwrap() == random_bytes(1, 5 * MIB));
    assert!(fs::read(mount.join("asset")).unwrap() == random_bytes(2, 5000));
    until_cached(&mount);
    mount
}

#[test]
fn a_damaged_block_is_dropped_and_fetched_again() {
    let bucket = Bucket::new(Server::Minio);
    let cache = cache_dir();
    filled_cache(&bucket, cache.path());
    damage(cache.path());
    let mount = reads_right(&bucket, cache.path(), "--passthrough off");
    assert_eq!(mount.fetched(), 5 * MIB as u64 + 5000);
    assert_eq!(mount.metrics()["weir_cache_damaged_bytes_total"], 5.0 * MIB as f64 + 5000.0);
    mount.unmount();
    // What was fetched again is kept.
    assert_eq!(reads_right(&bucket, cache.path(), "--passthrough off").fetched(), 0);
}

#[test]
fn missing_and_short_cache_files_are_fetched_again() {
    let bucket = Bucket::new(Server::Minio);
    let cache = cache_dir();
    filled_cache(&bucket, cache.path());
    for (n, path) in objects(cache.path()).into_iter().enumerate() {
        match n % 2 {
            0 => fs::remove_file(path).unwrap(),
            _ => OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap(),
        }
    }
    reads_right(&bucket, cache.path(), "").unmount();
    assert_eq!(reads_right(&bucket, cache.path(), "").fetched(), 0);
}

#[test]
fn a_damaged_index_is_set_aside_and_the_mount_comes_up() {
    let bucket = Bucket::new(Server::Minio);
    let cache = cache_dir();
    filled_cache(&bucket, cache.path());
    fs::write(cache.path().join("index.redb"), random_bytes(9, 100_000)).unwrap();
    let mount = reads_right(&bucket, cache.path(), "");
    assert!(cache.path().join("index.redb.damaged").exists());
    eventually("the files that the lost index named are removed", || {
        objects(cache.path()).len() == 2
    });
    mount.unmount();
}

#[test]
fn a_second_process_on_a_cache_directory_is_told_so() {
    let bucket = Bucket::new(Server::Minio);
    let cache = cache_dir();
    let mount = Mount::with(&bucket, &Options::default().cache(cache.path()));
    let other = tempfile::tempdir().unwrap();
    let source = format!("s3://{}", bucket.name);
    let args = [
        "mount",
        &source,
        other.path().to_str().unwrap(),
        "--endpoint-url",
        &bucket.url,
        "--cache-dir",
        cache.path().to_str().unwrap(),
    ];
    let output = run(&bucket, &args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains(&format!("process {}", mount.pid())), "{said}");
}

#[test]
fn cached_data_is_served_while_the_origin_is_away() {
    let mut bucket = Bucket::new(Server::Embedded);
    bucket.put("dir/model", random_bytes(1, 5 * MIB));
    bucket.put("dir/asset", random_bytes(2, 5000));
    let mount = Mount::flags(&bucket, "--metadata-ttl minimal");
    fs::read(mount.join("dir/model")).unwrap();
    fs::read(mount.join("dir/asset")).unwrap();
    assert_eq!(fs::read_dir(mount.join("dir")).unwrap().count(), 2);
    eventually("all of it is cached", || {
        is_cached(&mount.join("dir/model")) && is_cached(&mount.join("dir/asset"))
    });
    bucket.stop_server();
    assert!(fs::read(mount.join("dir/model")).unwrap() == random_bytes(1, 5 * MIB));
    assert!(fs::read(mount.join("dir/asset")).unwrap() == random_bytes(2, 5000));
    assert_eq!(fs::read_dir(mount.join("dir")).unwrap().count(), 2);
    assert!(!mount.status().mounts[0].session.origin_up);
}
