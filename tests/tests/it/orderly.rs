//! Orderly ends: of a node that another run replaces, and of a volume that its pod leaves.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tonic::Code;
use weir_node::lost::folder;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, Setup, TestVolume};
use weir_tests::shell::close;
use weir_tests::storm::{Fault, Storm};
use weir_tests::{eventually, random_bytes};

/// What processes in threads met that do `work` again and again until told to stop.
struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(&'static str, u64, Vec<String>)>>,
}

impl Busy {
    fn new() -> Self {
        Self { stop: Arc::default(), threads: Vec::new() }
    }

    fn with(
        &mut self,
        name: &'static str,
        mut work: impl FnMut(u64) -> Result<(), String> + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.threads.push(std::thread::spawn(move || {
            let (mut done, mut errors) = (0, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = work(done) {
                    errors.push(error);
                }
                done += 1;
            }
            (name, done, errors)
        }));
    }

    /// How often each was done; fails with the errors that were met.
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let (name, done, errors) = thread.join().unwrap();
            assert!(errors.is_empty(), "{name}, {} of {done}: {:?}", errors.len(), errors[0]);
            assert!(done > 0, "{name} was never done");
        }
    }
}

#[test]
fn who_reads_while_the_node_is_replaced_in_order_meets_no_error() {
    let bucket = Bucket::new(Server::Minio);
    // Read by the daemon (below 4 KiB), and by the kernel.
    let sizes = [100, 3000, 5000, 200_000];
    for n in 0..24 {
        bucket.put(&format!("dir/f{n}"), random_bytes(n, sizes[n as usize % sizes.len()]));
    }
    let node = CsiNode::new(&bucket);
    let target = node.publish(&TestVolume::new(&bucket, "pod")).unwrap();
    let dir = target.join("dir");
    let mut busy = Busy::new();
    let of = |n: u64| format!("f{}", n % 24);
    for _ in 0..2 {
        let path = dir.clone();
        busy.with("stat", move |n| {
            let size = fs::metadata(path.join(of(n))).map_err(|e| e.to_string())?.len();
            let right = size == sizes[n as usize % sizes.len()] as u64;
            right.then_some(()).ok_or(format!("{size} bytes"))
        });
        let path = dir.clone();
        busy.with("list", move |_| {
            let names = fs::read_dir(&path).and_then(|names| names.collect::<Result<Vec<_>, _>>());
            let count = names.map_err(|e| e.to_string())?.len();
            (count == 24).then_some(()).ok_or(format!("{count} names"))
        });
        let path = dir.clone();
        busy.with("open", move |n| {
            File::open(path.join(of(n))).map(|_| ()).map_err(|e| e.to_string())
        });
        let path = dir.clone();
        busy.with("read", move |n| {
            let bytes = fs::read(path.join(of(n))).map_err(|e| e.to_string())?;
            let right = bytes == random_bytes(n % 24, sizes[n as usize % sizes.len()]);
            right.then_some(()).ok_or("wrong bytes".to_owned())
        });
    }
    for _ in 0..3 {
        std::thread::sleep(std::time::Duration::from_millis(500));
        node.take_node().terminate();
        node.start_node();
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
    busy.end();
    assert!(!node.logs().contains("panicked"), "{}", node.logs());
}

#[test]
fn a_close_under_way_is_stored_before_the_node_ends() {
    let bucket = Bucket::new(Server::Minio);
    let storm = Storm::new(&bucket.url);
    let node = CsiNode::new(&bucket);
    let volume = TestVolume::new(&bucket, "pod").attribute("endpointUrl", &storm.url());
    let target = node.publish(&volume).unwrap();
    fs::write(target.join("before"), "bytes").unwrap();
    storm.rage(|asked| (asked.method == hyper::Method::PUT).then_some(Fault::Stall));
    let writers: Vec<_> = (0..3)
        .map(|n| {
            let path = target.join(format!("f{n}"));
            std::thread::spawn(move || fs::write(path, "bytes"))
        })
        .collect();
    eventually("they are being stored", || storm.met() >= 3);
    let role = node.take_node();
    let ending = std::thread::spawn(move || role.terminate());
    std::thread::sleep(std::time::Duration::from_millis(500));
    // Meanwhile everything else works.
    assert_eq!(fs::read(target.join("before")).unwrap(), b"bytes");
    assert!(!ending.is_finished());
    storm.calm();
    for writer in writers {
        writer.join().unwrap().unwrap();
    }
    ending.join().unwrap();
    for n in 0..3 {
        assert_eq!(bucket.get(&format!("f{n}")).unwrap(), b"bytes");
    }
}

#[test]
fn a_volume_is_away_once_its_bytes_are_stored() {
    let bucket = Bucket::new(Server::Minio);
    let storm = Storm::new(&bucket.url);
    let setup = Setup { node_flags: vec!["--unpublish-deadline=3600".into()], ..Setup::default() };
    let node = CsiNode::with(&bucket, setup);
    let volume = TestVolume::new(&bucket, "pod").attribute("endpointUrl", &storm.url());
    let target = node.publish(&volume).unwrap();
    let mut open = File::create(target.join("f")).unwrap();
    open.write_all(b"bytes").unwrap();
    storm.rage(|asked| (asked.method == hyper::Method::PUT).then_some(Fault::Stall));
    let closing = std::thread::spawn(move || close(open));
    for _ in 0..2 {
        let status = node.unpublish(&volume).unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(
            status.message().contains("1 file") && status.message().contains(": f"),
            "{status:?}"
        );
    }
    storm.calm();
    closing.join().unwrap().unwrap();
    eventually("it is away", || node.unpublish(&volume).is_ok());
    assert_eq!(bucket.get("f").unwrap(), b"bytes");
    assert_eq!(fs::read_dir(node.join("sessions")).unwrap().count(), 0);
}

#[test]
fn who_comes_while_the_last_pods_bytes_are_stored_waits_for_none_of_it() {
    let bucket = Bucket::new(Server::Minio);
    let storm = Storm::new(&bucket.url);
    let setup = Setup { node_flags: vec!["--unpublish-deadline=3600".into()], ..Setup::default() };
    let node = CsiNode::with(&bucket, setup);
    let volume = TestVolume::new(&bucket, "one").attribute("endpointUrl", &storm.url());
    let target = node.publish(&volume).unwrap();
    let mut open = File::create(target.join("f")).unwrap();
    open.write_all(b"bytes").unwrap();
    storm.rage(|asked| (asked.method == hyper::Method::PUT).then_some(Fault::Stall));
    let closing = std::thread::spawn(move || close(open));
    let next = volume.pod("two");
    std::thread::scope(|scope| {
        let leaving = scope.spawn(|| node.unpublish(&volume));
        eventually("the first is shown nothing", || !target.exists());
        let target = node.publish(&next).unwrap();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
        // The bytes have an owner again.
        leaving.join().unwrap().unwrap();
    });
    storm.calm();
    closing.join().unwrap().unwrap();
    node.unpublish(&next).unwrap();
    assert_eq!(bucket.get("f").unwrap(), b"bytes");
    assert_eq!(fs::read_dir(node.join("sessions")).unwrap().count(), 0);
}

#[test]
fn a_volume_whose_bytes_cannot_be_stored_is_away_after_the_deadline() {
    let bucket = Bucket::new(Server::Minio);
    let storm = Storm::new(&bucket.url);
    let setup = Setup { node_flags: vec!["--unpublish-deadline=1".into()], ..Setup::default() };
    let node = CsiNode::with(&bucket, setup);
    let volume = TestVolume::new(&bucket, "pod").attribute("endpointUrl", &storm.url());
    let target = node.publish(&volume).unwrap();
    let mut open = File::create(target.join("f")).unwrap();
    open.write_all(b"bytes").unwrap();
    storm.rage(|asked| (asked.method == hyper::Method::PUT).then_some(Fault::Status(403)));
    eventually("it is away", || node.unpublish(&volume).is_ok());
    assert_eq!(fs::read_dir(node.join("sessions")).unwrap().count(), 0);
    let lost = folder::list(&node.cache_dir()).unwrap();
    assert_eq!(fs::read(lost[0].path()).unwrap(), b"bytes");
    assert!(node.logs().contains("not everything that was written is stored"));
}

/// A volume of a bucket that takes no file.
fn refused() -> (Bucket, Storm, CsiNode, TestVolume, PathBuf) {
    let bucket = Bucket::new(Server::Minio);
    let storm = Storm::new(&bucket.url);
    let node = CsiNode::new(&bucket);
    let volume = TestVolume::new(&bucket, "pod").attribute("endpointUrl", &storm.url());
    let target = node.publish(&volume).unwrap();
    storm.rage(|asked| (asked.method == hyper::Method::PUT).then_some(Fault::Status(403)));
    (bucket, storm, node, volume, target)
}

/// An exec closes descriptors while readers of some files of its /proc folder wait for it: a node
/// that was one of them would wait for itself.
#[test]
fn an_exec_that_closes_what_cannot_be_stored_goes_on() {
    let (_bucket, _storm, node, volume, target) = refused();
    let script = "import os; f = os.open('f', os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC); \
                  os.write(f, b'x'); os.execv('/bin/true', ['true'])";
    let mut process =
        Command::new("python3").args(["-c", script]).current_dir(&target).spawn().unwrap();
    eventually("the program runs that was to", || {
        process.try_wait().unwrap().is_some_and(|status| status.success())
    });
    node.unpublish(&volume).unwrap();
}

/// A close that fails tells its process, if that is there to hear it.
#[test]
fn what_a_process_that_is_gone_was_told_in_vain_is_kept() {
    let (_bucket, _storm, node, volume, target) = refused();
    for (name, end) in [("closed", "exec >&-"), ("killed", "kill -9 $$"), ("ended", "exit 0")] {
        // Through the one descriptor: a copy of it that is closed would tell, too.
        let script = format!("exec >{name}; echo {name}; {end}");
        let mut shell =
            Command::new("sh").args(["-c", &script]).current_dir(&target).spawn().unwrap();
        shell.wait().unwrap();
    }
    let kept = || {
        let lost = folder::list(&node.cache_dir()).unwrap();
        let mut kept: Vec<_> =
            lost.iter().map(|lost| fs::read_to_string(lost.path()).unwrap()).collect();
        kept.sort();
        kept
    };
    eventually("two are kept", || kept().len() >= 2);
    node.unpublish(&volume).unwrap();
    assert_eq!(kept(), ["ended\n", "killed\n"]);
}
