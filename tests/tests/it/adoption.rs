//! What becomes of the sessions that one node plugin leaves to the next.

use std::fs;
use std::io;
use std::path::PathBuf;

use weir_fuse::blocking::MayBlock;
use weir_node::mounter::client::NewEntry;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, Setup, TestVolume};
use weir_tests::hostile::{self, Question};
use weir_tests::storm::{Fault, Storm};
use weir_tests::sts::{Issuer, store};
use weir_tests::{eventually, random_bytes};

/// Sessions of a full node, unless `WEIR_SESSIONS` says so.
const SESSIONS: u32 = 90;

#[test]
fn sessions_of_a_full_node_are_taken_over() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    // As many as are asked for.
    let flags = ["--max-sessions=0", "--max-sessions-per-namespace=0"].map(str::to_owned);
    let node = CsiNode::with(&bucket, Setup { node_flags: flags.to_vec(), ..Setup::default() });
    // Each is a session of its own; kubelet's tokens and a long attribute that is ignored come along.
    let tokens = format!(r#"{{"sts.amazonaws.com": {{"token": "{}"}}}}"#, "t".repeat(1150));
    let volume = |number: u32| {
        TestVolume { group: Some(1000 + number), ..TestVolume::new(&bucket, &format!("p{number}")) }
            .attribute("csi.storage.k8s.io/serviceAccount.tokens", &tokens)
            .attribute("cacheNote", &"\"".repeat(30_000))
    };
    let sessions = std::env::var("WEIR_SESSIONS").map_or(SESSIONS, |text| text.parse().unwrap());
    let all: Vec<_> = (0..sessions).map(volume).collect();
    let targets: Vec<_> = all.iter().map(|volume| node.publish(volume).unwrap()).collect();
    for round in 0..2 {
        match round {
            0 => node.take_node().kill(),
            _ => node.take_node().terminate(),
        }
        node.start_node();
        for (volume, target) in all.iter().zip(&targets) {
            assert_eq!(fs::read(target.join("f")).unwrap(), b"bytes", "{target:?}");
            node.publish(volume).unwrap();
        }
    }
    for volume in &all {
        node.unpublish(volume).unwrap();
    }
    assert_eq!(node.mounts(), Vec::<PathBuf>::new());
}

#[test]
fn what_cannot_be_taken_over_is_ended_and_can_be_mounted_again() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let node = CsiNode::new(&bucket);
    let (good, bad) = (TestVolume::new(&bucket, "good"), TestVolume::new(&bucket, "bad"));
    let bad = TestVolume { group: Some(2000), ..bad };
    let (served, lost) = (node.publish(&good).unwrap(), node.publish(&bad).unwrap());
    node.take_node().kill();
    // As a later release might, or a broken node.
    let mounter = node.other_engine();
    let session = mounter
        .sessions(&MayBlock::own_thread())
        .unwrap()
        .into_iter()
        .find(|session| mounter.targets(&MayBlock::own_thread(), session).unwrap().contains(&lost))
        .unwrap();
    let kept = mounter.take(&MayBlock::own_thread(), &session).unwrap();
    let record = br#"{"schema": 1000000}"#;
    let (session, device) = (session.as_str(), &kept.device);
    mounter
        .deposit(
            &MayBlock::own_thread(),
            &NewEntry { session, generation: 1, record, keys: None, device },
        )
        .unwrap();
    drop((kept.device, mounter));
    let waiting = {
        let path = lost.join("f");
        std::thread::spawn(move || fs::read(path))
    };
    node.start_node();
    eventually("who waits gets an error", || waiting.is_finished());
    let error = waiting.join().unwrap().unwrap_err();
    assert!(
        matches!(error.kind(), io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted),
        "{error}"
    );
    assert_eq!(fs::read(served.join("f")).unwrap(), b"bytes");
    assert!(node.logs().contains("its record cannot be read"));
    let again = node.publish(&bad).unwrap();
    assert_eq!(fs::read(again.join("f")).unwrap(), b"bytes");
}

/// What is logged of a session that is given up.
const GIVEN_UP: &str = "a session cannot be served on";

/// A node whose machine has a service that says in which region it is, and goes on saying it for ever.
fn without_region(bucket: &Bucket) -> CsiNode {
    let service = hostile::start(|_: &Question| hostile::stalled("", b"x", 0));
    let environment = [
        ("AWS_EC2_METADATA_DISABLED", "false".to_owned()),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", service),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
    CsiNode::with(bucket, Setup { environment, ..Setup::default() })
}

/// Makes sessions, while no node is there, such that whoever takes them over waits for ever: for the
/// region of the machine.
fn make_hang(node: &CsiNode, targets: &[PathBuf]) {
    let (may, mounter) = (MayBlock::own_thread(), node.other_engine());
    for session in mounter.sessions(&may).unwrap() {
        let shown = mounter.targets(&may, &session).unwrap();
        if !shown.iter().any(|target| targets.contains(target)) {
            continue;
        }
        let kept = mounter.take(&may, &session).unwrap();
        let mut record: serde_json::Value = serde_json::from_slice(&kept.record.unwrap()).unwrap();
        for field in ["endpoint_url", "region"] {
            record["settings"]["s3"][field] = serde_json::Value::Null;
        }
        let (record, generation) = (serde_json::to_vec(&record).unwrap(), kept.generation);
        let (session, record, device) = (session.as_str(), record.as_slice(), &kept.device);
        let entry = NewEntry { session, generation, record, keys: None, device };
        mounter.deposit(&may, &entry).unwrap();
    }
}

#[test]
fn sessions_that_cannot_be_taken_over_keep_no_other_waiting_and_are_all_ended() {
    const HANGING: usize = 40;
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let node = without_region(&bucket);
    let good = TestVolume::new(&bucket, "good");
    let served = node.publish(&good).unwrap();
    let volume = |n: usize| {
        let bad = TestVolume::new(&bucket, &format!("bad{n}"));
        TestVolume { id: format!("bad{n}"), ..bad.keys(&bucket.access_key, &bucket.secret_key) }
    };
    let all: Vec<_> = (0..HANGING).map(volume).collect();
    let lost: Vec<_> = all.iter().map(|volume| node.publish(volume).unwrap()).collect();
    node.take_node().kill();
    make_hang(&node, &lost);
    let read = |target: &PathBuf| {
        let path = target.join("f");
        std::thread::spawn(move || fs::read(path))
    };
    let waiting: Vec<_> = lost.iter().map(read).collect();
    node.start_node();

    let other = TestVolume { id: "other".into(), ..TestVolume::new(&bucket, "other") };
    assert_eq!(fs::read(node.publish(&other).unwrap().join("f")).unwrap(), b"bytes");
    assert_eq!(fs::read(served.join("f")).unwrap(), b"bytes");
    node.publish(&good).unwrap();
    assert!(!node.logs().contains(GIVEN_UP), "that was not meanwhile");
    // Who asks for one of them waits for its end, and has it anew.
    let again = node.publish(&all[0]).unwrap();
    assert_eq!(fs::read(again.join("f")).unwrap(), b"bytes");
    assert!(node.logs().contains(GIVEN_UP));

    eventually("who waits gets an error", || waiting.iter().all(|reader| reader.is_finished()));
    for reader in waiting {
        let error = reader.join().unwrap().unwrap_err();
        let ended = [io::ErrorKind::NotConnected, io::ErrorKind::ConnectionAborted];
        assert!(ended.contains(&error.kind()), "{error}");
    }
    assert_eq!(node.logs().matches(GIVEN_UP).count(), HANGING);
    let last = &all[HANGING - 1];
    assert_eq!(fs::read(node.publish(last).unwrap().join("f")).unwrap(), b"bytes");
}

#[test]
fn a_node_that_ends_while_it_takes_sessions_over_leaves_them_to_the_next() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let node = without_region(&bucket);
    let (volume, may) = (TestVolume::new(&bucket, "pod"), MayBlock::own_thread());
    let target = node.publish(&volume).unwrap();
    node.take_node().kill();
    let kept = node.other_engine().sessions(&may).unwrap();
    make_hang(&node, std::slice::from_ref(&target));
    node.start_node();
    node.take_node().terminate();
    assert!(!node.logs().contains(GIVEN_UP));
    assert_eq!(node.other_engine().sessions(&may).unwrap(), kept);
    assert_eq!(node.mounts().len(), 2, "where it is mounted, and where it is shown");
}

#[test]
fn a_session_goes_on_as_it_was_made_when_the_defaults_of_the_node_change() {
    let (issuer, other) = (Issuer::start(), Bucket::new(Server::Minio));
    let bucket = &issuer.bucket;
    bucket.put("f", "bytes");
    let mut node = CsiNode::new(bucket);
    let volume = TestVolume::new(bucket, "pod").keys(&bucket.access_key, &bucket.secret_key);
    let target = node.publish(&volume).unwrap();
    node.take_node().kill();
    node.set_node_flags(vec![format!("--endpoint-url={}", other.url), "--region=eu-west-9".into()]);
    node.start_node();
    fs::write(target.join("g"), "more").unwrap();
    assert_eq!(bucket.get("g").unwrap(), b"more");
    // Keys are refreshed all the same, and a repeat is no error.
    let reading = issuer.reading();
    node.publish(&volume.clone().session_keys(&reading)).unwrap();
    eventually("the new keys are used", || store(&target.join("h"), "x").is_err());
    node.publish(&volume).unwrap();
    eventually("the right keys are used", || store(&target.join("h"), "x").is_ok());
    assert!(node.logs().contains("takes effect when the pod restarts"));
}

/// As if an answer to one of its requests crashed whoever gives it.
#[test]
fn a_volume_whose_requests_end_one_node_after_the_other_is_ended_and_no_other() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", random_bytes(1, 5000));
    let storm = Storm::new(&bucket.url);
    let node = CsiNode::new(&bucket);
    let good = TestVolume::new(&bucket, "good");
    let bad = TestVolume::new(&bucket, "bad").attribute("endpointUrl", &storm.url());
    let (served, target) = (node.publish(&good).unwrap(), node.publish(&bad).unwrap());
    storm.rage(|asked| asked.path.contains("/f").then_some(Fault::Stall));
    let path = target.join("f");
    let waiting = std::thread::spawn(move || fs::read(path));
    // The first has it from the process, two more from the kernel.
    let mut before = 0;
    for _ in 0..3 {
        eventually("it is being fetched", || storm.met() > before);
        node.take_node().kill();
        before = storm.met();
        node.start_node();
    }
    eventually("who waits gets an error", || waiting.is_finished());
    assert!(waiting.join().unwrap().is_err());
    assert!(node.logs().contains("2 node plugins have ended over its requests"));
    assert!(node.stats(&bad).is_err());
    assert!(fs::read(served.join("f")).unwrap() == random_bytes(1, 5000));
    storm.calm();
    node.publish(&bad).unwrap();
    assert!(fs::read(target.join("f")).unwrap() == random_bytes(1, 5000));
}
