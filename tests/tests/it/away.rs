//! Mounts that begin while their origin is away.

use std::fs;
use std::path::Path;

use tonic::Code;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::cached::is_cached;
use weir_tests::csi_node::{CsiNode, TestVolume};
use weir_tests::mount::{Mount, Options, cache_dir, run};
use weir_tests::storm::{Fault, Storm};
use weir_tests::sts::store;
use weir_tests::{eventually, random_bytes};

const MIB: usize = 1 << 20;

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// A node, and a volume whose endpoint can go away.
struct Stage {
    bucket: Bucket,
    storm: Storm,
    node: CsiNode,
    volume: TestVolume,
}

impl Stage {
    fn new() -> Self {
        let bucket = Bucket::new(Server::Minio);
        bucket.put("dir/model", random_bytes(1, 3 * MIB));
        bucket.put("dir/cold", "nobody has read it");
        let storm = Storm::new(&bucket.url);
        let node = CsiNode::new(&bucket);
        let volume = TestVolume::new(&bucket, "one").attribute("endpointUrl", &storm.url());
        Self { bucket, storm, node, volume }
    }

    /// Shows a volume, has all its names and one of its files kept, and takes it away.
    fn warm(&self, volume: &TestVolume) {
        let target = self.node.publish(volume).unwrap();
        assert_eq!(names(&target), ["dir"]);
        assert_eq!(names(&target.join("dir")), ["cold", "model"]);
        read_model(&target);
        eventually("it is cached", || is_cached(&target.join("dir/model")));
        self.node.unpublish(volume).unwrap();
    }

    fn restart(&mut self) {
        self.node.take_node().terminate();
        self.node.start_node();
    }

    /// What is wrong with the volume, if anything is.
    fn problem(&self) -> Option<String> {
        let condition = self.node.stats(&self.volume).unwrap().volume_condition.unwrap();
        condition.abnormal.then_some(condition.message)
    }
}

fn read_model(target: &Path) {
    assert!(fs::read(target.join("dir/model")).unwrap() == random_bytes(1, 3 * MIB));
}

#[test]
fn a_volume_begins_with_what_is_cached_while_its_origin_is_away() {
    let mut stage = Stage::new();
    stage.warm(&stage.volume);
    stage.restart();
    stage.storm.rage(|_| Some(Fault::Reset));
    let target = stage.node.publish(&stage.volume).unwrap();
    let problem = stage.problem().unwrap();
    assert!(problem.contains("what is cached is read"), "{problem}");
    assert_eq!(names(&target), ["dir"]);
    assert_eq!(names(&target.join("dir")), ["cold", "model"]);
    read_model(&target);
    fs::read(target.join("dir/cold")).unwrap_err();
    store(&target.join("dir/new"), "not stored").unwrap_err();
    assert_eq!(stage.bucket.get("dir/new"), None);
    // Nobody uses it, and it is found out that the origin is back.
    stage.storm.calm();
    eventually("it is as any other", || stage.problem().is_none());
    stage.bucket.put("dir/later", "of somebody else");
    eventually("what is new is seen", || fs::read(target.join("dir/later")).is_ok());
    assert_eq!(fs::read(target.join("dir/cold")).unwrap(), b"nobody has read it");
    store(&target.join("dir/new"), "stored").unwrap();
    assert_eq!(stage.bucket.get("dir/new").unwrap(), b"stored");
}

#[test]
fn what_began_without_its_origin_goes_on_when_the_node_is_replaced() {
    let mut stage = Stage::new();
    stage.warm(&stage.volume);
    stage.storm.rage(|_| Some(Fault::Reset));
    let target = stage.node.publish(&stage.volume).unwrap();
    for _ in 0..2 {
        stage.restart();
        read_model(&target);
    }
    stage.node.unpublish(&stage.volume).unwrap();
    let target = stage.node.publish(&stage.volume.pod("two")).unwrap();
    read_model(&target);
}

#[test]
fn an_origin_that_never_answers_keeps_no_volume_from_beginning() {
    let stage = Stage::new();
    stage.warm(&stage.volume);
    stage.storm.rage(|_| Some(Fault::Stall));
    let target = stage.node.publish(&stage.volume).unwrap();
    assert!(stage.problem().unwrap().contains("in time"));
    read_model(&target);
    stage.storm.calm();
    eventually("it is as any other", || stage.problem().is_none());
    assert_eq!(fs::read(target.join("dir/cold")).unwrap(), b"nobody has read it");
}

#[test]
fn without_its_origin_begins_only_what_it_has_allowed_before() {
    let stage = Stage::new();
    stage.warm(&stage.volume);
    let Stage { bucket, storm, node, volume } = &stage;
    let refused = |volume: &TestVolume, code: Code, word: &str| {
        let status = node.publish(volume).unwrap_err();
        assert_eq!(status.code(), code, "{}", status.message());
        assert!(status.message().contains(word), "{}", status.message());
    };
    refused(&volume.clone().attribute("mountPolicy", "lax"), Code::InvalidArgument, "cached");
    storm.rage(|_| Some(Fault::Reset));
    refused(&volume.clone().attribute("mountPolicy", "strict"), Code::Unavailable, "network");
    // These may be right, and nobody knows.
    let known = volume.clone().keys(&bucket.access_key, &bucket.secret_key);
    refused(&known, Code::Unavailable, "nothing is cached");
    // Nobody has looked there.
    let elsewhere = volume.clone().attribute("prefix", "other");
    refused(&elsewhere, Code::Unavailable, "nothing is cached");
    read_model(&node.publish(&volume.clone().attribute("mountPolicy", "cached")).unwrap());
    node.unpublish(volume).unwrap();
    // Once the origin has refused them, the same credentials are nobody's.
    storm.rage(|_| Some(Fault::Status(403)));
    refused(volume, Code::PermissionDenied, "denied");
    storm.rage(|_| Some(Fault::Reset));
    refused(volume, Code::Unavailable, "nothing is cached");
    storm.calm();
    stage.warm(volume);
    storm.rage(|_| Some(Fault::Status(503)));
    read_model(&node.publish(volume).unwrap());
}

#[test]
fn an_origin_that_comes_back_and_refuses_is_heeded() {
    let stage = Stage::new();
    stage.warm(&stage.volume);
    stage.storm.rage(|_| Some(Fault::Reset));
    // Names that nobody asks for again.
    let volume = stage.volume.clone().option("metadata-ttl indefinite");
    let target = stage.node.publish(&volume).unwrap();
    read_model(&target);
    stage.storm.rage(|_| Some(Fault::Status(403)));
    eventually("it is heeded", || fs::read(target.join("dir/model")).is_err());
    assert!(stage.problem().unwrap().contains("denied"));
}

#[test]
fn a_mount_begins_without_its_bucket_if_it_is_told_to() {
    let mut bucket = Bucket::new(Server::Minio);
    bucket.put("dir/model", random_bytes(1, 3 * MIB));
    let storm = Storm::new(&bucket.url);
    bucket.url = storm.url();
    let cache = cache_dir();
    let options = Options::flags("--mount-policy cached").cache(cache.path());
    let mount = Mount::with(&bucket, &options);
    assert_eq!(
        (names(&mount.path()), names(&mount.join("dir"))),
        (vec!["dir".into()], vec!["model".into()])
    );
    read_model(&mount.path());
    eventually("it is cached", || is_cached(&mount.join("dir/model")));
    mount.unmount();
    storm.rage(|_| Some(Fault::Reset));
    let mountpoint = tempfile::tempdir().unwrap();
    let source = format!("s3://{}", bucket.name);
    let failed = run(
        &bucket,
        &[
            "mount",
            &source,
            mountpoint.path().to_str().unwrap(),
            "--endpoint-url",
            &bucket.url,
            "--cache-dir",
            cache.path().to_str().unwrap(),
            "--cache-min-free=0",
        ],
    );
    assert_eq!(failed.status.code(), Some(5), "{failed:?}");
    let mount = Mount::with(&bucket, &options);
    read_model(&mount.path());
    storm.calm();
    bucket.put("later", "of somebody else");
    eventually("what is new is seen", || fs::read(mount.join("later")).is_ok());
}
