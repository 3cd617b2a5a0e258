//! Names, attributes and directories.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::eventually;
use weir_tests::mount::{Mount, Options};
use weir_tests::shell::{sh, try_sh};

use crate::on_each_server;

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

on_each_server! {
    fn a_key_without_directory_marker_shows_its_directories(bucket: Bucket) {
        bucket.put("a/b/c/file.bin", "x");
        let mount = Mount::new(&bucket);
        assert!(fs::metadata(mount.join("a/b")).unwrap().is_dir());
        assert_eq!(fs::read(mount.join("a/b/c/file.bin")).unwrap(), b"x");
        assert_eq!(names(&mount.join("a")), set(&["b"]));
    }

    fn a_prefix_is_mounted_as_if_it_were_the_bucket(bucket: Bucket) {
        bucket.put("games/one/map.bin", "1");
        bucket.put("games/two/map.bin", "2");
        bucket.put("gamesx", "no");
        let mount = Mount::with(&bucket, &Options::default().prefix("games/one"));
        assert_eq!(names(&mount.path()), set(&["map.bin"]));
        fs::write(mount.join("new"), "n").unwrap();
        assert_eq!(bucket.get("games/one/new").unwrap(), b"n");
        assert!(fs::metadata(mount.join("../gamesx")).is_err());
    }

    fn attributes_come_with_the_listing(bucket: Bucket) {
        for n in 0..30 {
            bucket.put(&format!("d/f{n}"), vec![0; n]);
        }
        let mount = Mount::flags(&bucket, "--metadata-ttl 60 --uid 1000 --gid 2000 --file-mode 0640 --dir-mode 0750");
        assert_eq!(names(&mount.join("d")).len(), 30);
        let heads = mount.requests("HeadObject");
        for n in 0..30 {
            let meta = fs::metadata(mount.join(&format!("d/f{n}"))).unwrap();
            assert_eq!((meta.len(), meta.uid(), meta.gid()), (n, 1000, 2000));
            assert_eq!(meta.permissions().mode() & 0o7777, 0o640);
            assert!(meta.modified().unwrap().elapsed().unwrap() < Duration::from_secs(3600));
        }
        assert_eq!(fs::metadata(mount.join("d")).unwrap().permissions().mode() & 0o7777, 0o750);
        assert_eq!(mount.requests("HeadObject"), heads);
    }

    fn absence_is_remembered(bucket: Bucket) {
        bucket.put("there", "x");
        let mount = Mount::flags(&bucket, "--metadata-ttl 60");
        let look = || fs::metadata(mount.join("missing")).unwrap_err().kind();
        assert_eq!(look(), ErrorKind::NotFound);
        let before = mount.requests("HeadObject") + mount.requests("ListObjectsV2");
        for _ in 0..20 {
            assert_eq!(look(), ErrorKind::NotFound);
        }
        assert_eq!(mount.requests("HeadObject") + mount.requests("ListObjectsV2"), before);
        // What is made here is there at once.
        fs::write(mount.join("missing"), "no more").unwrap();
        assert_eq!(fs::read(mount.join("missing")).unwrap(), b"no more");
    }

    fn metadata_ttl_says_when_a_change_by_others_is_seen(bucket: Bucket) {
        bucket.put("f", "old");
        let minimal = Mount::flags(&bucket, "--metadata-ttl minimal");
        let short = Mount::flags(&bucket, "--metadata-ttl 0.5");
        let indefinite = Mount::flags(&bucket, "--metadata-ttl indefinite");
        for mount in [&minimal, &short, &indefinite] {
            assert_eq!(fs::read(mount.join("f")).unwrap(), b"old");
            assert!(fs::metadata(mount.join("g")).is_err());
        }
        bucket.put("f", "newer");
        bucket.put("g", "new");
        assert_eq!(fs::read(minimal.join("f")).unwrap(), b"newer");
        assert_eq!(fs::read(minimal.join("g")).unwrap(), b"new");
        assert_eq!(names(&minimal.path()), set(&["f", "g"]));
        std::thread::sleep(Duration::from_millis(600));
        assert_eq!(fs::read(short.join("f")).unwrap(), b"newer");
        assert_eq!(fs::read(short.join("g")).unwrap(), b"new");
        assert_eq!(fs::read(indefinite.join("f")).unwrap(), b"old");
        assert!(fs::metadata(indefinite.join("g")).is_err());
    }

    fn a_directory_stays_when_its_last_file_goes(bucket: Bucket) {
        bucket.put("a/b/one", "1");
        let mount = Mount::flags(&bucket, "--metadata-ttl minimal");
        assert_eq!(names(&mount.join("a/b")), set(&["one"]));
        fs::remove_file(mount.join("a/b/one")).unwrap();
        assert_eq!(names(&mount.join("a/b")), set(&[]));
        let again = Mount::new(&bucket);
        assert!(fs::metadata(again.join("a/b")).unwrap().is_dir());
        fs::remove_dir(mount.join("a/b")).unwrap();
        assert!(fs::metadata(mount.join("a")).unwrap().is_dir());
    }

    fn df_shows_a_large_empty_file_system(bucket: Bucket) {
        let mount = Mount::new(&bucket);
        let line = sh(&mount.path(), "df -B1G --output=size,used,avail . | tail -1");
        let numbers: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        assert_eq!(numbers, [1 << 20, 0, 1 << 20]);
    }

    fn xattrs_tell_the_version_and_how_much_is_cached(bucket: Bucket) {
        let etag = bucket.put("f", vec![7; 300_000]);
        let mount = Mount::new(&bucket);
        let path = mount.join("f");
        let get = |name: &str| String::from_utf8(xattr::get(&path, name).unwrap().unwrap()).unwrap();
        assert_eq!(get("user.weir.etag"), etag.as_str());
        assert_eq!(get("user.weir.version"), "null");
        assert_eq!(get("user.weir.cached"), "0");
        fs::read(&path).unwrap();
        eventually("all of it is cached", || get("user.weir.cached") == "100");
        let names: Vec<_> = xattr::list(&path).unwrap().collect();
        assert_eq!(names.len(), 3);
        assert_eq!(xattr::get(&path, "user.other").unwrap(), None);
        assert!(xattr::set(&path, "user.other", b"x").is_err());
    }

    fn a_listing_that_the_kernel_keeps_follows_changes(bucket: Bucket) {
        bucket.put("d/a", "1");
        let mount = Mount::flags(&bucket, "--metadata-ttl minimal");
        for _ in 0..3 {
            assert_eq!(names(&mount.join("d")), set(&["a"]));
        }
        bucket.put("d/b", "2");
        assert_eq!(names(&mount.join("d")), set(&["a", "b"]));
        fs::write(mount.join("d/c"), "3").unwrap();
        assert_eq!(names(&mount.join("d")), set(&["a", "b", "c"]));
        bucket.delete("d/a");
        assert_eq!(names(&mount.join("d")), set(&["b", "c"]));
    }

    fn names_that_a_late_reader_brings_are_shown_to_nobody_else(bucket: Bucket) {
        bucket.put("d/a", "1");
        let mount = Mount::flags(&bucket, "--metadata-ttl minimal");
        let late = fs::read_dir(mount.join("d")).unwrap();
        bucket.put("d/z", "2");
        let in_time = fs::read_dir(mount.join("d")).unwrap();
        // It shows what was there when it was opened, and the kernel keeps that.
        assert_eq!(late.count(), 1);
        for _ in 0..3 {
            assert_eq!(names(&mount.join("d")), set(&["a", "z"]));
        }
        assert_eq!(in_time.count(), 2);
        for _ in 0..3 {
            assert_eq!(names(&mount.join("d")), set(&["a", "z"]));
        }
    }
}

/// The embedded server keeps keys as paths, so it cannot hold these at all.
#[test]
fn keys_that_no_file_system_can_show_hide_no_neighbour() {
    let bucket = Bucket::new(Server::Minio);
    let long = "x".repeat(300);
    // MinIO refuses some of these by itself: what it stores is what must not hurt.
    let odd = [
        "dir/a//b",
        "dir/a/../b",
        "dir/./c",
        "dir/",
        "dir/sub/",
        &format!("dir/{long}"),
        "dir/new\nline",
    ];
    let stored: Vec<&str> = odd.into_iter().filter(|key| bucket.try_put(key, "odd")).collect();
    assert!(!stored.is_empty());
    bucket.put("dir/good", "g");
    bucket.put("dir/zz", "z");
    let mount = Mount::new(&bucket);
    let seen = names(&mount.join("dir"));
    assert!(seen.contains("good") && seen.contains("zz"), "{seen:?}");
    assert!(!seen.iter().any(|name| name.is_empty() || name.contains('/') || name == ".."));
    assert_eq!(fs::read(mount.join("dir/good")).unwrap(), b"g");
    let mut paths: Vec<_> = seen.iter().map(|name| mount.join("dir").join(name)).collect();
    while let Some(path) = paths.pop() {
        if fs::metadata(&path).unwrap().is_dir() {
            paths.extend(names(&path).iter().map(|name| path.join(name)));
        }
    }
}

#[test]
fn a_directory_of_100000_keys_lists_whole() {
    let bucket = Bucket::new(Server::Minio);
    const KEYS: usize = 100_000;
    let keys = (0..KEYS).map(|n| format!("big/k{n:06}"));
    bucket.put_many(keys, &Bytes::from_static(b"x"));
    let mount = Mount::flags(&bucket, "--metadata-ttl 600");
    // What MinIO reads of its disk for the first page may take longer than Weir waits.
    eventually("it is listed without an error", || {
        try_sh(&mount.path(), "ls -f big >../names").status.success()
    });
    let names = fs::read_to_string(mount.join("../names")).unwrap();
    assert_eq!(names.lines().filter(|name| name.starts_with('k')).count(), KEYS);
    let lists = mount.requests("ListObjectsV2");
    assert!(lists >= 100, "{lists}");
    assert_eq!(fs::read(mount.join("big/k099999")).unwrap(), b"x");
    assert!(fs::metadata(mount.join("big/k100000")).is_err());
    assert_eq!(mount.requests("ListObjectsV2"), lists, "one listing answers for all");
}

#[test]
fn single_lookups_in_a_large_directory_do_not_list_it() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put_many((0..2500).map(|n| format!("big/k{n:06}")), &Bytes::from_static(b"x"));
    let mount = Mount::flags(&bucket, "--metadata-ttl 600");
    for n in (0..2500).step_by(250) {
        assert_eq!(fs::metadata(mount.join(&format!("big/k{n:06}"))).unwrap().len(), 1);
    }
    // Two for each name at most, and one page that showed that the directory is large.
    assert!(mount.requests("ListObjectsV2") <= 16, "{}", mount.requests("ListObjectsV2"));
}
