//! What a process was about when it was killed, and what the next one makes of it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hyper::Method;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, TestVolume};
use weir_tests::mount::{Mount, Options, cache_dir};
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
        let node = CsiNode::new(&bucket);
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

/// A process that writes what it is fed, and closes at its end. It is another one than the test's,
/// since who makes a process closes copies of his descriptors, and waits for an engine then.
struct Writer {
    dd: Child,
    path: PathBuf,
    written: u64,
}

impl Writer {
    fn open(path: PathBuf, options: &[&str]) -> Self {
        let mut dd = Command::new("dd");
        dd.arg(format!("of={}", path.display())).args(["bs=1M", "status=none"]).args(options);
        let dd = dd.stdin(Stdio::piped()).spawn().unwrap();
        Self { dd, path, written: 0 }
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.dd.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Feeds it, and waits until it has written that.
    fn write(&mut self, bytes: &[u8]) {
        self.feed(bytes);
        self.written += bytes.len() as u64;
        let size = || fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        eventually("it is written", || size() == self.written);
    }

    /// Whether everything succeeded, the close, too.
    fn end(mut self) -> bool {
        drop(self.dd.stdin.take());
        self.dd.wait().unwrap().success()
    }
}

#[test]
fn a_close_is_answered_by_what_is_stored_although_the_node_was_killed() {
    let bucket = Bucket::new(Server::Minio);
    let node = CsiNode::new(&bucket);
    let target = node.publish(&TestVolume::new(&bucket, "pod")).unwrap();
    let open = |name: &str| {
        let mut writer = Writer::open(target.join(name), &[]);
        writer.write(b"bytes");
        writer
    };
    let [stored, mut written, dirty] = ["stored", "written", "dirty"].map(open);
    let joined = Writer::open(target.join("stored"), &["conv=notrunc"]);
    eventually("it is open", || {
        let open = fs::read_dir(format!("/proc/{}/fd", joined.dd.id())).unwrap().flatten();
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|path| path == joined.path)
    });
    for name in ["stored", "written"] {
        File::open(target.join(name)).unwrap().sync_all().unwrap();
    }
    for _ in 0..2 {
        node.take_node().kill();
        node.start_node();
        assert_eq!(fs::read(target.join("stored")).unwrap(), b"bytes");
    }
    assert!(stored.end() && joined.end());
    written.feed(b" more");
    assert!(!written.end());
    assert!(!dirty.end());
    assert_eq!(bucket.get("stored").unwrap(), b"bytes");
    assert_eq!(bucket.get("written").unwrap(), b"bytes");
    // dd closes a copy of its descriptor first, which may store the empty file.
    assert_eq!(bucket.get("dirty").unwrap_or_default(), b"");
    eventually("no record is left", || staged(&node.cache_dir()) == 0);
}

#[test]
fn an_upload_under_way_at_an_orderly_end_is_aborted_and_its_bytes_are_kept() {
    let bucket = Bucket::new(Server::Minio);
    let node = CsiNode::new(&bucket);
    let target = node.publish(&TestVolume::new(&bucket, "pod")).unwrap();
    let bytes = random_bytes(1, 24 * MIB);
    let mut writer = Writer::open(target.join("big"), &[]);
    writer.write(&bytes);
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
    assert!(!writer.end());
    assert_eq!(bucket.get("big").unwrap_or_default(), b"", "half of it is published");
}
