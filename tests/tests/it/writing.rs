//! Writing.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::time::Duration;

use rustix::io::Errno;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::cached::is_cached;
use weir_tests::link::Link;
use weir_tests::mount::{Mount, Options, cache_dir};
use weir_tests::shell::{close, sh, try_sh};
use weir_tests::{eventually, random_bytes};

use crate::on_each_server;

const MIB: usize = 1 << 20;

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw_os_error(error.raw_os_error().unwrap())
}

on_each_server! {
    fn when_close_returns_the_bucket_holds_the_file(bucket: Bucket) {
        let mount = Mount::new(&bucket);
        let sizes = [0, 1, 100_000, 8 * MIB, 8 * MIB + 1, 30 * MIB + 7];
        for (seed, size) in sizes.into_iter().enumerate() {
            let bytes = random_bytes(seed as u64, size);
            let name = format!("f{size}");
            fs::write(mount.join(&name), &bytes).unwrap();
            assert!(bucket.get(&name).unwrap() == bytes, "size {size}");
            assert!(fs::read(mount.join(&name)).unwrap() == bytes, "size {size}");
        }
        let status = mount.status().counters;
        assert_eq!(status.stored_bytes, sizes.iter().sum::<usize>() as u64);
    }

    fn what_was_written_is_read_without_a_download(bucket: Bucket) {
        let mount = Mount::new(&bucket);
        let (large, small) = (random_bytes(1, 20 * MIB), random_bytes(2, 5000));
        fs::write(mount.join("large"), &large).unwrap();
        fs::write(mount.join("small"), &small).unwrap();
        for _ in 0..3 {
            assert!(fs::read(mount.join("large")).unwrap() == large);
            assert!(fs::read(mount.join("small")).unwrap() == small);
        }
        assert_eq!(mount.fetched(), 0);
    }

    fn fsync_stores_what_was_written_so_far(bucket: Bucket) {
        let mount = Mount::new(&bucket);
        let mut file = File::create(mount.join("log")).unwrap();
        file.write_all(b"first ").unwrap();
        file.sync_all().unwrap();
        assert_eq!(bucket.get("log").unwrap(), b"first ");
        file.write_all(&random_bytes(1, 9 * MIB)).unwrap();
        file.sync_all().unwrap();
        assert_eq!(bucket.get("log").unwrap().len(), 9 * MIB + 6);
        file.write_all(b"last").unwrap();
        drop(file);
        assert_eq!(bucket.get("log").unwrap().len(), 9 * MIB + 10);
        assert!(fs::read(mount.join("log")).unwrap() == bucket.get("log").unwrap());
    }

    fn parts_leave_while_the_writer_writes(bucket: Bucket) {
        let mount = Mount::new(&bucket);
        // The endpoint is probed before the first write.
        fs::write(mount.join("first"), random_bytes(1, 9 * MIB)).unwrap();
        let count = |request: &str| mount.requests(request);
        let before = (count("UploadPart"), count("CompleteMultipartUpload"));
        let mut file = File::create(mount.join("big")).unwrap();
        for n in 0..40 {
            file.write_all(&random_bytes(n, MIB)).unwrap();
        }
        eventually("parts are stored before close", || count("UploadPart") >= before.0 + 4);
        assert_eq!(count("CompleteMultipartUpload"), before.1);
        drop(file);
        assert_eq!(count("CompleteMultipartUpload"), before.1 + 1);
        assert_eq!(count("UploadPart"), before.0 + 5);
        assert_eq!(bucket.get("big").unwrap().len(), 40 * MIB);
    }

    fn a_whole_overwrite_replaces_the_object(bucket: Bucket) {
        bucket.put("f", random_bytes(1, 3 * MIB));
        let mount = Mount::new(&bucket);
        fs::read(mount.join("f")).unwrap();
        for (seed, size) in [(2, 5 * MIB), (3, 10), (4, 2 * MIB)] {
            let bytes = random_bytes(seed, size);
            fs::write(mount.join("f"), &bytes).unwrap();
            assert!(bucket.get("f").unwrap() == bytes);
            assert!(fs::read(mount.join("f")).unwrap() == bytes);
        }
    }

    fn every_overwrite_is_seen_here_at_once(bucket: Bucket) {
        let mount = Mount::new(&bucket);
        for n in 0..150_u32 {
            // From one PUT to several parts, and back.
            let bytes = random_bytes(u64::from(n), if n % 50 == 49 { 9 * MIB } else { n as usize });
            fs::write(mount.join("f"), &bytes).unwrap();
            assert!(fs::read(mount.join("f")).unwrap() == bytes, "overwrite {n}");
            assert_eq!(fs::metadata(mount.join("f")).unwrap().len(), bytes.len() as u64);
        }
    }

    fn a_reader_keeps_its_version_while_the_file_is_overwritten_here(bucket: Bucket) {
        let (old, new) = (random_bytes(1, 3 * MIB), random_bytes(2, 3 * MIB));
        bucket.put("f", old.clone());
        let mount = Mount::new(&bucket);
        let path = mount.join("f");
        fs::read(&path).unwrap();
        eventually("all of it is cached", || {
            is_cached(&path)
        });
        let mut reader = File::open(&path).unwrap();
        fs::write(&path, &new).unwrap();
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut read).unwrap();
        assert!(read == old);
        assert!(fs::read(&path).unwrap() == new);
    }

    fn exclusive_creation_has_one_winner(bucket: Bucket) {
        let (one, two) = (Mount::new(&bucket), Mount::new(&bucket));
        let create = |mount: &Mount| OpenOptions::new().write(true).create_new(true).open(mount.join("lock"));
        let (mut first, mut second) = (create(&one).unwrap(), create(&two).unwrap());
        first.write_all(b"one").unwrap();
        second.write_all(b"two").unwrap();
        assert!(close(first).is_ok());
        assert_eq!(errno(&close(second).unwrap_err()), Errno::EXIST);
        assert_eq!(bucket.get("lock").unwrap(), b"one");
        eventually("the loser sees the winner's file", || {
            fs::read(two.join("lock")).is_ok_and(|bytes| bytes == b"one")
        });
        assert_eq!(errno(&create(&one).unwrap_err()), Errno::EXIST);
    }

    fn a_lost_update_is_told_to_its_writer(bucket: Bucket) {
        bucket.put("config", "original");
        let mount = Mount::new(&bucket);
        let mut file = File::create(mount.join("config")).unwrap();
        file.write_all(b"mine").unwrap();
        bucket.put("config", "theirs");
        assert_eq!(errno(&close(file).unwrap_err()), Errno::STALE);
        assert_eq!(bucket.get("config").unwrap(), b"theirs");
        eventually("the mount shows what is there", || {
            fs::read(mount.join("config")).is_ok_and(|bytes| bytes == b"theirs")
        });
    }

    fn replacing_what_was_removed_meanwhile_is_told_to_its_writer(bucket: Bucket) {
        bucket.put("config", "original");
        let mount = Mount::new(&bucket);
        let mut file = File::create(mount.join("config")).unwrap();
        file.write_all(b"mine").unwrap();
        bucket.delete("config");
        assert_eq!(errno(&close(file).unwrap_err()), Errno::STALE);
        assert_eq!(bucket.get("config"), None);
    }

    fn a_lost_update_can_be_tried_again_at_once(bucket: Bucket) {
        bucket.put("config", "old");
        let mount = Mount::with(&bucket, &Options::flags("--metadata-ttl minimal"));
        for round in 0..20 {
            let mut file = File::create(mount.join("config")).unwrap();
            file.write_all(b"mine").unwrap();
            bucket.put("config", format!("theirs {round}"));
            assert_eq!(errno(&close(file).unwrap_err()), Errno::STALE);
            // The kernel may not have told of the end of the first file yet.
            let seen = fs::read_to_string(mount.join("config")).unwrap();
            assert_eq!(seen, format!("theirs {round}"));
            fs::write(mount.join("config"), format!("again {round}")).unwrap();
            assert_eq!(bucket.get("config").unwrap(), format!("again {round}").as_bytes());
        }
    }

    fn what_lost_its_name_is_not_opened_again(bucket: Bucket) {
        bucket.put("config", "old");
        let mount = Mount::with(&bucket, &Options::flags("--metadata-ttl minimal"));
        let mut file = File::create(mount.join("config")).unwrap();
        file.write_all(b"mine").unwrap();
        bucket.put("config", "theirs");
        assert_eq!(errno(&file.sync_all().unwrap_err()), Errno::STALE);
        assert_eq!(fs::read_to_string(mount.join("config")).unwrap(), "theirs");
        fs::write(mount.join("config"), "again").unwrap();
        assert_eq!(bucket.get("config").unwrap(), b"again");
        // Past the name, which leads to the other's file.
        let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        assert_eq!(errno(&File::open(again).unwrap_err()), Errno::STALE);
        // It is final, also when the object is again what it was.
        bucket.put("config", "old");
        assert_eq!(errno(&file.sync_all().unwrap_err()), Errno::STALE);
        drop(file);
        assert_eq!(bucket.get("config").unwrap(), b"old");
    }

    fn files_and_directories_are_made_moved_and_removed(bucket: Bucket) {
        let mount = Mount::new(&bucket);
        sh(&mount.path(), "mkdir -p a/b && echo one > a/b/one && echo two > a/two");
        sh(&mount.path(), "mv a/b/one a/uno && test ! -e a/b/one && test \"$(cat a/uno)\" = one");
        sh(&mount.path(), "mv a/uno a/two && test \"$(cat a/two)\" = one");
        assert_eq!(bucket.get("a/two").unwrap(), b"one\n");
        assert_eq!(bucket.get("a/uno"), None);
        sh(&mount.path(), "mkdir c && cp a/two c/x && mv c a/b/ && test \"$(cat a/b/c/x)\" = one");
        assert_eq!(bucket.get("a/b/c/x").unwrap(), b"one\n");
        assert!(!bucket.keys().iter().any(|key| key.starts_with("c/")));
        // Over an empty directory, and not over one that is not empty.
        sh(&mount.path(), "mkdir new empty && echo one > new/x && mv -T new empty && test ! -e new");
        assert_eq!(bucket.get("empty/x").unwrap(), b"one\n");
        let output = try_sh(&mount.path(), "mkdir new && mv -T new empty");
        assert!(String::from_utf8_lossy(&output.stderr).contains("not empty"));
        sh(&mount.path(), "rmdir new && rm -r empty");
        let output = try_sh(&mount.path(), "rmdir a/b");
        assert!(String::from_utf8_lossy(&output.stderr).contains("not empty"));
        assert!(try_sh(&mount.path(), "mkdir a").stderr.ends_with(b"File exists\n"));
        sh(&mount.path(), "rm -r a && test ! -e a && test -z \"$(ls)\"");
        assert_eq!(bucket.keys(), Vec::<String>::new());
    }

    fn a_renamed_file_keeps_its_cached_bytes(bucket: Bucket) {
        let mount = Mount::new(&bucket);
        let bytes = random_bytes(1, 12 * MIB);
        fs::write(mount.join("blob.incomplete"), &bytes).unwrap();
        fs::rename(mount.join("blob.incomplete"), mount.join("blob")).unwrap();
        assert!(fs::read(mount.join("blob")).unwrap() == bytes);
        assert!(bucket.get("blob").unwrap() == bytes);
        assert_eq!(mount.fetched(), 0);
    }

    fn truncation_to_nothing_is_stored(bucket: Bucket) {
        bucket.put("f", random_bytes(1, 500_000));
        bucket.put("g", random_bytes(1, 3 * MIB));
        let mount = Mount::new(&bucket);
        fs::read(mount.join("g")).unwrap();
        let reader = File::open(mount.join("g")).unwrap();
        sh(&mount.path(), "truncate -s 0 g && test ! -s g");
        assert_eq!(bucket.get("g").unwrap(), b"");
        drop(reader);
        sh(&mount.path(), "truncate -s 0 f && test ! -s f");
        assert_eq!(bucket.get("f").unwrap(), b"");
        sh(&mount.path(), ": > f && echo more > f");
        assert_eq!(bucket.get("f").unwrap(), b"more\n");
        // However it is opened.
        let flags = rustix::fs::OFlags::TRUNC.bits().cast_signed();
        let emptied = OpenOptions::new().read(true).custom_flags(flags).open(mount.join("f"));
        close(emptied.unwrap()).unwrap();
        assert_eq!(bucket.get("f").unwrap(), b"");
    }

    fn a_new_file_may_be_written_in_any_order(bucket: Bucket) {
        let mount = Mount::new(&bucket);
        let bytes = random_bytes(1, 20 * MIB);
        let file = File::create(mount.join("f")).unwrap();
        let write = |at: usize, end: usize| {
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes[at..end], at as u64).unwrap();
        };
        write(0, 20 * MIB);
        std::os::unix::fs::FileExt::write_all_at(&file, &[0; 100], 5).unwrap();
        write(0, 1000);
        write(9 * MIB, 9 * MIB + 5);
        drop(file);
        assert!(bucket.get("f").unwrap() == bytes);
        assert!(fs::read(mount.join("f")).unwrap() == bytes);
    }

    fn a_shell_loop_into_one_file_costs_one_put(bucket: Bucket) {
        let mount = Mount::new(&bucket);
        // The endpoint is probed before the first write.
        fs::write(mount.join("first"), "bytes").unwrap();
        let before = mount.requests("PutObject");
        sh(&mount.path(), "(for n in $(seq 20); do /bin/echo $n; done) > out");
        assert_eq!(bucket.get("out").unwrap(), sh(&mount.path(), "seq 20").into_bytes());
        assert_eq!(mount.requests("PutObject") - before, 1);
    }

    fn a_size_beyond_the_room_for_it_is_refused_and_nothing_of_it_is_sent(bucket: Bucket) {
        let mount = Mount::new(&bucket);
        let mut file = File::create(mount.join("f")).unwrap();
        // No disk of a test has so much; 6 TiB no object has.
        assert_eq!(errno(&file.set_len(4 << 40).unwrap_err()), Errno::NOSPC);
        assert_eq!(errno(&file.set_len(6 << 40).unwrap_err()), Errno::FBIG);
        file.write_all(b"bytes").unwrap();
        file.set_len(1000).unwrap();
        drop(file);
        let stored = bucket.get("f").unwrap();
        assert_eq!((stored.len(), &stored[..6]), (1000, &b"bytes\0"[..]));
    }

    fn what_is_not_supported_yet_has_its_documented_errno(bucket: Bucket) {
        bucket.put("f", "content");
        let mount = Mount::new(&bucket);
        let path = mount.join("f");
        let open = |options: &mut OpenOptions| errno(&options.open(&path).unwrap_err());
        assert_eq!(open(OpenOptions::new().append(true)), Errno::OPNOTSUPP);
        let mut rewriter = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert_eq!(errno(&rewriter.write_all(b"x").unwrap_err()), Errno::OPNOTSUPP);
        assert_eq!(errno(&rewriter.set_len(3).unwrap_err()), Errno::OPNOTSUPP);
        drop(rewriter);
        let chmod = fs::set_permissions(&path, fs::Permissions::from_mode(0o600));
        assert_eq!(errno(&chmod.unwrap_err()), Errno::OPNOTSUPP);
        let link = std::os::unix::fs::symlink("f", mount.join("link"));
        assert_eq!(errno(&link.unwrap_err()), Errno::OPNOTSUPP);
        assert_eq!(errno(&fs::hard_link(&path, mount.join("hard")).unwrap_err()), Errno::OPNOTSUPP);
        assert_eq!(fs::read(&path).unwrap(), b"content");
        // touch of a new file, and what cp and tar do to one, are no such thing.
        sh(&mount.path(), "touch new && cp f copy && test \"$(cat copy)\" = content");
    }

    fn a_read_only_mount_refuses_every_change(bucket: Bucket) {
        bucket.put("f", "content");
        let mount = Mount::flags(&bucket, "--read-only");
        assert_eq!(errno(&File::create(mount.join("g")).unwrap_err()), Errno::ROFS);
        assert_eq!(errno(&File::create(mount.join("f")).unwrap_err()), Errno::ROFS);
        assert_eq!(errno(&fs::remove_file(mount.join("f")).unwrap_err()), Errno::ROFS);
        assert_eq!(errno(&fs::create_dir(mount.join("d")).unwrap_err()), Errno::ROFS);
        assert_eq!(fs::read(mount.join("f")).unwrap(), b"content");
    }

    fn an_unlinked_file_can_be_written_to_its_end_and_leaves_nothing(bucket: Bucket) {
        let mount = Mount::new(&bucket);
        let mut file = File::create(mount.join("temp")).unwrap();
        file.write_all(&random_bytes(1, 17 * MIB)).unwrap();
        fs::remove_file(mount.join("temp")).unwrap();
        file.write_all(b"more").unwrap();
        drop(file);
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(bucket.keys(), Vec::<String>::new());
        assert!(fs::metadata(mount.join("temp")).is_err());
    }
}

#[test]
fn a_write_that_s3_does_not_take_fails_at_close_and_never_silently() {
    let mut bucket = Bucket::new(Server::Embedded);
    let mount = Mount::new(&bucket);
    let mut file = File::create(mount.join("f")).unwrap();
    file.write_all(b"bytes").unwrap();
    bucket.stop_server();
    assert!(close(file).is_err());
}

#[test]
fn a_crashed_writer_leaks_no_upload() {
    let bucket = Bucket::new(Server::Minio);
    let cache = cache_dir();
    let options = Options::default().cache(cache.path());
    let mount = Mount::with(&bucket, &options);
    let mut file = File::create(mount.join("big")).unwrap();
    file.write_all(&random_bytes(1, 24 * MIB)).unwrap();
    eventually("parts are stored", || mount.requests("UploadPart") >= 2);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    mount.kill();
    drop(file);
    assert_eq!(bucket.keys(), Vec::<String>::new());
    let mount = Mount::with(&bucket, &options);
    eventually("the upload is aborted", || mount.requests("AbortMultipartUpload") >= 1);
    fs::write(mount.join("big"), "whole").unwrap();
    assert_eq!(bucket.get("big").unwrap(), b"whole");
}

#[test]
fn a_log_that_is_synced_again_and_again_is_sent_about_once() {
    let bucket = Bucket::new(Server::Minio);
    let mount = Mount::new(&bucket);
    let log = random_bytes(1, 24 * MIB);
    let mut file = File::create(mount.join("log")).unwrap();
    for (n, record) in (1..).zip(log.chunks(2 * MIB)) {
        file.write_all(record).unwrap();
        file.sync_all().unwrap();
        assert!(bucket.get("log").unwrap() == log[..n * 2 * MIB], "after record {n}");
    }
    close(file).unwrap();
    let metrics = mount.metrics();
    let sent = metrics["weir_s3_stored_bytes_total"] - metrics["weir_s3_copied_bytes_total"];
    assert!(sent <= 1.3 * log.len() as f64, "{sent} bytes");
    assert!(fs::read(mount.join("log")).unwrap() == log);
    assert_eq!(mount.fetched(), 0);
}

#[test]
fn direct_writes_are_stored_like_others() {
    let bucket = Bucket::new(Server::Minio);
    let mount = Mount::new(&bucket);
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    let mut options = OpenOptions::new();
    let mut file =
        options.write(true).create(true).custom_flags(flags).open(mount.join("f")).unwrap();
    file.write_all(&random_bytes(1, MIB)).unwrap();
    drop(file);
    assert!(bucket.get("f").unwrap() == random_bytes(1, MIB));
}

/// Each takes longer than the wait for any single answer.
#[test]
fn a_file_is_stored_over_a_link_however_slow() {
    let store = |bytes_per_sec: f64, size: usize| {
        let mut bucket = Bucket::new(Server::Minio);
        let server = bucket.url.strip_prefix("http://").unwrap().parse().unwrap();
        let link = Link::new(server, Duration::from_millis(20), 8.0 * bytes_per_sec);
        bucket.url = format!("http://{}", link.address);
        let mount = Mount::new(&bucket);
        let bytes = random_bytes(size as u64, size);
        fs::write(mount.join("f"), &bytes).unwrap();
        assert!(bucket.get("f").unwrap() == bytes, "{size} bytes");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| store(300e3, 7 * MIB));
        scope.spawn(|| store(1e6, 24 * MIB));
    });
}
