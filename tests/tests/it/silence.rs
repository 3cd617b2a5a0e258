//! A mounter that is there and does not answer, and what a session takes of a node.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, Setup, TestVolume};
use weir_tests::{eventually, random_bytes};

/// A process that does nothing until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(process: u32) -> Self {
        let pid = Pid::from_raw(process as i32).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn a_mounter_that_does_not_answer_holds_up_no_reader_and_no_writer() {
    const FILES: u64 = 40;
    let bucket = Bucket::new(Server::Minio);
    let bytes = |n: u64| random_bytes(n, 100_000);
    (0..FILES).for_each(|n| {
        bucket.put(&format!("f{n}"), bytes(n));
    });
    let node = CsiNode::new(&bucket);
    let target = node.publish(&TestVolume::new(&bucket, "pod")).unwrap();
    let read_all = {
        let target = target.clone();
        move || (0..FILES).all(|n| fs::read(target.join(format!("f{n}"))).unwrap() == bytes(n))
    };
    // Into the cache; from now on an open would have the kernel read them.
    assert!(read_all());
    let stopped = Stopped::new(node.mounter_pid());
    let going_on = std::thread::spawn(move || {
        assert!(read_all());
        fs::write(target.join("new"), "bytes").unwrap();
        fs::read(target.join("new")).unwrap()
    });
    eventually("files are read and written without the mounter", || going_on.is_finished());
    assert_eq!(going_on.join().unwrap(), b"bytes");
    assert_eq!(bucket.get("new").unwrap(), b"bytes");
    assert!(node.logs().contains("the mounter is there and does not answer"));
    drop(stopped);
    let other = TestVolume { id: "other".into(), ..TestVolume::new(&bucket, "other") };
    let target = node.publish(&other).unwrap();
    assert!(fs::read(target.join("f1")).unwrap() == random_bytes(1, 100_000));
}

#[test]
fn a_mounter_that_is_away_holds_up_no_reader_and_no_writer() {
    const WRITERS: usize = 40;
    let bucket = Bucket::new(Server::Minio);
    bucket.put("cold", random_bytes(1, 100_000));
    let node = CsiNode::new(&bucket);
    let written = node.publish(&TestVolume::new(&bucket, "writer")).unwrap();
    let other = TestVolume { id: "reader".into(), ..TestVolume::new(&bucket, "reader") };
    let read = node.publish(&other).unwrap();
    node.take_mounter().kill();
    eventually("it is gone", || node.logs().contains("the mounter is gone"));
    let writers = (0..WRITERS).map(|n| {
        let path = written.join(format!("new{n}"));
        std::thread::spawn(move || fs::write(path, "bytes").unwrap())
    });
    let writers: Vec<_> = writers.collect();
    let reader = std::thread::spawn(move || fs::read(read.join("cold")).unwrap());
    eventually("files are read and written without the mounter", || {
        reader.is_finished() && writers.iter().all(|writer| writer.is_finished())
    });
    assert!(reader.join().unwrap() == random_bytes(1, 100_000));
    for (n, writer) in writers.into_iter().enumerate() {
        writer.join().unwrap();
        assert_eq!(bucket.get(&format!("new{n}")).unwrap(), b"bytes");
    }
}

/// Volumes of sessions of their own.
fn volumes(bucket: &Bucket, count: usize) -> impl Iterator<Item = TestVolume> {
    (0..count).map(|n| {
        let pod = format!("pod{n}");
        TestVolume { id: pod.clone(), ..TestVolume::new(bucket, &pod) }
    })
}

#[test]
fn a_session_has_two_threads_that_read_its_requests() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", random_bytes(1, 3 << 20));
    let node = CsiNode::new(&bucket);
    for volume in volumes(&bucket, 12) {
        let target = node.publish(&volume).unwrap();
        let readers = (0..8).map(|_| {
            let file = target.join("f");
            std::thread::spawn(move || fs::read(file).unwrap())
        });
        let readers: Vec<_> = readers.collect();
        readers.into_iter().for_each(|reader| {
            assert!(reader.join().unwrap() == random_bytes(1, 3 << 20));
        });
    }
    let tasks = fs::read_dir(format!("/proc/{}/task", node.node_pid())).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let names: Vec<_> = names.collect();
    let count = |name: &str| names.iter().filter(|task| task.starts_with(name)).count();
    // Another waits for their end.
    assert_eq!((count("fuser-"), count("weir-fuse")), (24, 12), "{names:?}");
}

#[test]
fn pods_of_a_namespace_have_no_more_sessions_than_the_node_lets_them() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let flags = vec!["--max-sessions-per-namespace=2".into()];
    let node = CsiNode::with(&bucket, Setup { node_flags: flags, ..Setup::default() });
    let of = |pod: &str, namespace: &str| {
        let volume = TestVolume { id: pod.into(), ..TestVolume::new(&bucket, pod) };
        volume.attribute("csi.storage.k8s.io/pod.namespace", namespace)
    };
    let (first, second) = (of("1", "games"), of("2", "games"));
    node.publish(&first).unwrap();
    node.publish(&second).unwrap();
    let third = of("3", "games");
    let refused = node.publish(&third).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("namespace games"), "{refused}");
    // It shares what there is, others have their own, and what ends makes room.
    node.publish(&TestVolume { pod: "4".into(), ..of("2", "games") }).unwrap();
    node.publish(&of("5", "models")).unwrap();
    node.unpublish(&first).unwrap();
    let target = node.publish(&third).unwrap();
    assert_eq!(fs::read(target.join("f")).unwrap(), b"bytes");
}
