//! What a process was about when it was killed, and what the next one makes of it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use hyper::Method;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, TestVolume};
use weir_tests::mount::{Mount, Options, cache_dir};
use weir_tests::shell::close;
use weir_tests::storm::{Asked, Fault, Storm};
use weir_tests::{eventually, random_bytes};

const MIB: usize = 1 << 20;
const FILES: u64 = 20;

/// Stalls requests of one method on keys below a directory, from the `first` on.
fn stall(storm: &Storm, method: Method, below: &'static str, first: u64) {
    let mut seen = 0;
    storm.rage(move |asked: &Asked| {
        if asked.method != method || !asked.path.contains(below) {
            return None;
        }
        seen += 1;
        (seen > first).then_some(Fault::Stall)
    });
}

fn fill(bucket: &Bucket) {
    for n in 0..FILES {
        bucket.put(&format!("old/f{n}"), random_bytes(n, 1000));
    }
}

fn is_whole(bucket: &Bucket, dir: &str) -> bool {
    let other = if dir == "new" { "old/f" } else { "new/f" };
    let bytes = |n| bucket.get(&format!("{dir}/f{n}"));
    !bucket.keys().iter().any(|key| key.starts_with(other))
        && (0..FILES).all(|n| bytes(n) == Some(random_bytes(n, 1000)))
}

fn staged(cache: &Path) -> usize {
    fs::read_dir(cache.join("staging")).unwrap().count()
}

/// Before its point of no return, and after it. The kernel asks the next engine again.
#[test]
fn a_rename_of_a_directory_goes_through_although_the_node_is_killed_in_it() {
    for (method, below) in [(Method::PUT, "/new/"), (Method::DELETE, "/old/")] {
        let bucket = Bucket::new(Server::Minio);
        fill(&bucket);
        let storm = Storm::new(&bucket.url);
        let mut node = CsiNode::new(&bucket);
        let volume = TestVolume::new(&bucket, "pod").attribute("endpointUrl", &storm.url());
        let target = node.publish(&volume).unwrap();
        assert_eq!(fs::read_dir(target.join("old")).unwrap().count(), FILES as usize);
        stall(&storm, method.clone(), below, 5);
        let (from, to) = (target.join("old"), target.join("new"));
        let renaming = std::thread::spawn(move || fs::rename(from, to));
        eventually("it is half done", || storm.met() > 0);
        node.take_node().kill();
        storm.calm();
        node.start_node();
        eventually("the next engine answers it", || renaming.is_finished());
        renaming.join().unwrap().unwrap();
        assert!(is_whole(&bucket, "new"), "{method}: {:?}", bucket.keys());
        assert_eq!(fs::read_dir(target.join("new")).unwrap().count(), FILES as usize);
        assert_eq!(staged(&node.cache_dir()), 0);
        node.unpublish(&volume).unwrap();
    }
}

/// Of a mount that nobody takes over: nobody asks again.
#[test]
fn a_rename_of_a_directory_is_undone_or_gone_on_with_by_the_next_mount() {
    let cases = [(Method::PUT, "/new/", "old"), (Method::DELETE, "/old/", "new")];
    for (method, below, whole) in cases {
        let mut bucket = Bucket::new(Server::Minio);
        let storm = Storm::new(&bucket.url);
        fill(&bucket);
        bucket.url = storm.url();
        let cache = cache_dir();
        let options = Options::default().cache(cache.path());
        let mount = Mount::with(&bucket, &options);
        stall(&storm, method.clone(), below, 5);
        let (from, to) = (mount.join("old"), mount.join("new"));
        let renaming = std::thread::spawn(move || fs::rename(from, to));
        eventually("it is half done", || storm.met() > 0);
        mount.kill();
        renaming.join().unwrap().unwrap_err();
        storm.calm();
        let mount = Mount::with(&bucket, &options);
        eventually("it is ended", || is_whole(&bucket, whole));
        eventually("nothing is left to do", || staged(cache.path()) == 0);
        assert_eq!(fs::read_dir(mount.join(whole)).unwrap().count(), FILES as usize);
    }
}

#[test]
fn a_close_is_answered_by_what_is_stored_although_the_node_was_killed() {
    let bucket = Bucket::new(Server::Minio);
    let mut node = CsiNode::new(&bucket);
    let target = node.publish(&TestVolume::new(&bucket, "pod")).unwrap();
    let open = |name: &str| {
        let mut file = File::create(target.join(name)).unwrap();
        file.write_all(b"bytes").unwrap();
        file
    };
    let [stored, mut written, dirty] = ["stored", "written", "dirty"].map(open);
    let joined = OpenOptions::new().write(true).open(target.join("stored")).unwrap();
    stored.sync_all().unwrap();
    written.sync_all().unwrap();
    for _ in 0..2 {
        node.take_node().kill();
        node.start_node();
        stored.sync_all().unwrap();
    }
    close(stored).unwrap();
    close(joined).unwrap();
    written.write_all(b" more").unwrap_err();
    close(written).unwrap_err();
    dirty.sync_all().unwrap_err();
    close(dirty).unwrap_err();
    assert_eq!(bucket.get("stored").unwrap(), b"bytes");
    assert_eq!(bucket.get("dirty"), None);
    eventually("no record is left", || staged(&node.cache_dir()) == 0);
}

#[test]
fn an_upload_under_way_at_an_orderly_end_is_aborted_and_its_bytes_are_kept() {
    let bucket = Bucket::new(Server::Minio);
    let mut node = CsiNode::new(&bucket);
    let target = node.publish(&TestVolume::new(&bucket, "pod")).unwrap();
    let bytes = random_bytes(1, 24 * MIB);
    let mut file = File::create(target.join("big")).unwrap();
    file.write_all(&bytes).unwrap();
    eventually("parts are sent", || bucket.uploads_of("big") == 1);
    node.take_node().terminate();
    assert_eq!(bucket.uploads_of("big"), 1, "it stays for the next");
    assert_eq!(staged(&node.cache_dir()), 2, "bytes and record");
    node.start_node();
    let lost = node.cache_dir().join("lost");
    let kept = || fs::read_dir(&lost).unwrap().flatten().map(|entry| entry.path());
    eventually("the bytes are kept", || kept().any(|path| path.extension().is_none()));
    let path = kept().find(|path| path.extension().is_none()).unwrap();
    assert!(fs::read(path).unwrap() == bytes);
    eventually("the upload is aborted", || bucket.uploads_of("big") == 0);
    eventually("nothing is left to do", || staged(&node.cache_dir()) == 0);
    close(file).unwrap_err();
    assert_eq!(bucket.get("big"), None);
}
