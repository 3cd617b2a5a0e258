//! Reading.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use rustix::process::Signal;
use weir_tests::cached::{is_cached, map};
use weir_tests::mount::{Mount, Options, cache_dir};
use weir_tests::{eventually, random_bytes};

use crate::on_each_server;

const BLOCK: usize = 128 * 1024;

/// Reads a file to the end and waits until all of it is in the cache.
fn read_until_cached(path: &std::path::Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    eventually(&format!("{} is cached whole", path.display()), || is_cached(path));
    bytes
}

on_each_server! {
    fn files_of_every_size_read_back_right_cold_and_cached(bucket: Bucket) {
        let sizes = [0, 1, 4095, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 1_000_003, 20 << 20];
        for (seed, size) in sizes.into_iter().enumerate() {
            bucket.put(&format!("dir/f{size}"), random_bytes(seed as u64, size));
        }
        let mount = Mount::new(&bucket);
        for round in 0..3 {
            for (seed, size) in sizes.into_iter().enumerate() {
                let path = mount.join(&format!("dir/f{size}"));
                let bytes = if round == 0 { read_until_cached(&path) } else { fs::read(&path).unwrap() };
                assert!(bytes == random_bytes(seed as u64, size), "size {size}, round {round}");
            }
        }
        assert_eq!(mount.fetched(), sizes.iter().sum::<usize>() as u64);
    }

    fn sixteen_readers_of_one_cold_file_cause_one_download(bucket: Bucket) {
        let bytes = random_bytes(1, 24 << 20);
        bucket.put("model", bytes.clone());
        let mount = Mount::new(&bucket);
        let path = mount.join("model");
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| assert!(fs::read(&path).unwrap() == bytes));
            }
        });
        assert_eq!(mount.fetched(), bytes.len() as u64);
    }

    fn a_reader_keeps_its_version_while_the_object_is_replaced(bucket: Bucket) {
        let (old, new) = (random_bytes(1, 3 << 20), random_bytes(2, 3 << 20));
        bucket.put("asset", old.clone());
        let mount = Mount::flags(&bucket, "--metadata-ttl minimal");
        let path = mount.join("asset");
        read_until_cached(&path);
        let mut reader = File::open(&path).unwrap();
        let mut first = vec![0; 1 << 20];
        reader.read_exact(&mut first).unwrap();
        bucket.put("asset", new.clone());
        // The next open sees the new version; the reader goes on with the old one.
        assert!(fs::read(&path).unwrap() == new);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert!([first, rest].concat() == old);
    }

    fn a_reader_keeps_its_version_while_the_object_is_deleted(bucket: Bucket) {
        let bytes = random_bytes(1, 3 << 20);
        bucket.put("asset", bytes.clone());
        let mount = Mount::flags(&bucket, "--metadata-ttl minimal");
        let path = mount.join("asset");
        read_until_cached(&path);
        let mut reader = File::open(&path).unwrap();
        bucket.delete("asset");
        assert_eq!(fs::read(&path).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert!(read == bytes);
    }

    fn a_replaced_object_never_shows_a_mixture(bucket: Bucket) {
        let (old, new) = (vec![b'o'; 24 << 20], vec![b'n'; 24 << 20]);
        bucket.put("asset", old);
        let mount = Mount::flags(&bucket, "--metadata-ttl minimal");
        let mut reader = File::open(mount.join("asset")).unwrap();
        let mut start = vec![0; BLOCK];
        reader.read_exact(&mut start).unwrap();
        bucket.put("asset", new);
        // What of the old version was not fetched is gone: right bytes, or an error.
        let mut rest = Vec::new();
        let read = reader.read_to_end(&mut rest);
        assert!(rest.iter().all(|byte| *byte == b'o'), "a mixture");
        if rest.len() + start.len() < 24 << 20 {
            assert_eq!(read.unwrap_err().raw_os_error(), Some(rustix::io::Errno::STALE.raw_os_error()));
        }
    }

    fn random_reads_fetch_only_what_is_asked(bucket: Bucket) {
        let bytes = random_bytes(1, 48 << 20);
        bucket.put("big", bytes.clone());
        let mount = Mount::new(&bucket);
        let file = File::open(mount.join("big")).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        for at in [41, 3, 29, 11, 37] {
            let offset = (at << 20) + 12_345;
            let mut piece = [0; 4096];
            file.read_exact_at(&mut piece, offset).unwrap();
            assert!(piece[..] == bytes[offset as usize..][..4096]);
        }
        assert!(mount.fetched() <= 5 * 2 * BLOCK as u64, "{} bytes fetched", mount.fetched());
    }

    fn mmap_of_weights_fetches_in_growing_pieces(bucket: Bucket) {
        let bytes = random_bytes(1, 32 << 20);
        bucket.put("weights", bytes.clone());
        let mount = Mount::new(&bucket);
        let file = File::open(mount.join("weights")).unwrap();
        assert!(map(&file)[..] == bytes);
        assert_eq!(mount.fetched(), bytes.len() as u64);
        let gets = mount.requests("GetObject");
        assert!(gets <= 48, "{gets} GETs for 32 MiB");
    }

    fn a_file_read_by_half_is_completed_in_the_background(bucket: Bucket) {
        let bytes = random_bytes(1, 16 << 20);
        bucket.put("model", bytes.clone());
        let mount = Mount::new(&bucket);
        let path = mount.join("model");
        let mut file = File::open(&path).unwrap();
        file.seek(SeekFrom::Start(4 << 20)).unwrap();
        let mut part = vec![0; 9 << 20];
        file.read_exact(&mut part).unwrap();
        assert!(part[..] == bytes[4 << 20..13 << 20]);
        eventually("the rest is fetched", || is_cached(&path));
    }

    fn a_small_file_is_fetched_whole_by_open(bucket: Bucket) {
        bucket.put("small", random_bytes(1, 60_000));
        let mount = Mount::new(&bucket);
        let _file = File::open(mount.join("small")).unwrap();
        assert_eq!(mount.fetched(), 60_000);
    }

    fn the_next_files_of_a_walk_are_fetched_ahead(bucket: Bucket) {
        for n in 0..60 {
            bucket.put(&format!("tree/f{n:03}"), random_bytes(n, 2000));
        }
        let mount = Mount::new(&bucket);
        assert_eq!(fs::read_dir(mount.join("tree")).unwrap().count(), 60);
        for n in 0..6 {
            assert!(fs::read(mount.join(&format!("tree/f{n:03}"))).unwrap() == random_bytes(n, 2000));
        }
        eventually("files not yet opened are fetched", || mount.fetched() >= 20 * 2000);
        // A reader of one file alone causes no such thing.
        let other = Mount::new(&bucket);
        fs::read(other.join("tree/f030")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(other.fetched(), 2000);
    }
}

#[test]
fn a_cached_file_is_read_by_the_kernel_without_the_daemon() {
    let bucket = weir_tests::bucket::Bucket::new(weir_tests::bucket::Server::Minio);
    let bytes = random_bytes(1, 8 << 20);
    bucket.put("model", bytes.clone());
    let mount = Mount::new(&bucket);
    if !mount.status().mounts[0].session.passthrough {
        eprintln!("SKIPPED: this kernel has no FUSE passthrough (Linux 6.9)");
        return;
    }
    let path = mount.join("model");
    read_until_cached(&path);
    let open = [File::open(&path).unwrap(), File::open(&path).unwrap()];
    assert_eq!(mount.opens("passthrough"), 2);
    mount.signal(Signal::STOP);
    // Nobody answers FUSE requests now. A read that needed an answer would hang: hence the thread.
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for file in open {
            let mut read = vec![0; 8 << 20];
            file.read_exact_at(&mut read, 0).unwrap();
            tell.send(read).unwrap();
        }
    });
    let reads = [(), ()].map(|()| told.recv_timeout(weir_tests::PATIENCE));
    mount.signal(Signal::CONT);
    for read in reads {
        assert!(read.unwrap() == bytes);
    }
}

#[test]
fn without_passthrough_the_page_cache_serves_repeated_reads() {
    let bucket = weir_tests::bucket::Bucket::new(weir_tests::bucket::Server::Minio);
    let bytes = random_bytes(1, 4 << 20);
    bucket.put("model", bytes.clone());
    let mount = Mount::flags(&bucket, "--passthrough off");
    let path = mount.join("model");
    read_until_cached(&path);
    let requests =
        |mount: &Mount| mount.metrics()["weir_fuse_request_duration_seconds_count{op=\"read\"}"];
    // Not at once, where somebody else on this machine drops the page cache.
    eventually("reads do not reach the daemon", || {
        let before = requests(&mount);
        for _ in 0..3 {
            assert!(fs::read(&path).unwrap() == bytes);
        }
        requests(&mount) == before
    });
    assert_eq!(mount.opens("passthrough"), 0);
}

#[test]
fn a_reader_that_stays_open_does_not_keep_others_from_passthrough() {
    let bucket = weir_tests::bucket::Bucket::new(weir_tests::bucket::Server::Minio);
    let bytes = random_bytes(1, 8 << 20);
    bucket.put("model", bytes.clone());
    let mount = Mount::new(&bucket);
    if !mount.status().mounts[0].session.passthrough {
        eprintln!("SKIPPED: this kernel has no FUSE passthrough (Linux 6.9)");
        return;
    }
    let path = mount.join("model");
    let mut first = File::open(&path).unwrap();
    let mut read = vec![0; 8 << 20];
    first.read_exact(&mut read).unwrap();
    eventually("the file is cached whole", || is_cached(&path));
    assert!(fs::read(&path).unwrap() == bytes);
    assert_eq!(mount.opens("passthrough"), 1);
    first.rewind().unwrap();
    first.read_exact(&mut read).unwrap();
    assert!(read == bytes);
}

#[test]
fn memory_stays_under_its_target_with_many_readers() {
    let bucket = weir_tests::bucket::Bucket::new(weir_tests::bucket::Server::Minio);
    for n in 0..8 {
        bucket.put(&format!("m{n}"), random_bytes(n, 16 << 20));
    }
    let cache = cache_dir();
    let options = Options::flags("--memory-target 16MiB").cache(cache.path());
    let mount = Mount::with(&bucket, &options);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let path = mount.join(&format!("m{n}"));
            scope.spawn(move || assert!(fs::read(path).unwrap() == random_bytes(n, 16 << 20)));
        }
        for _ in 0..50 {
            let counters = mount.status().counters;
            assert!(counters.memory_used <= counters.memory_target, "{counters:?}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
    assert_eq!(mount.status().counters.memory_target, 16 << 20);
}
