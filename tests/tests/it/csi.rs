//! Volumes of a Kubernetes node, as kubelet asks for them, without Kubernetes.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tonic::Code;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::cached::is_cached;
use weir_tests::csi_node::{CsiNode, Setup, TestVolume};
use weir_tests::storm::{Fault, Storm};
use weir_tests::sts::{Issuer, SessionKeys, store};
use weir_tests::{eventually, random_bytes};

const MIB: usize = 1 << 20;

#[test]
fn two_pods_share_a_session_and_each_can_go() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("model", random_bytes(1, 3 * MIB));
    let node = CsiNode::new(&bucket);
    let one = TestVolume::new(&bucket, "one");
    let two = TestVolume { read_only: true, ..one.pod("two") };
    let (first, second) = (node.publish(&one).unwrap(), node.publish(&two).unwrap());
    assert!(fs::read(first.join("model")).unwrap() == random_bytes(1, 3 * MIB));
    assert!(fs::read(second.join("model")).unwrap() == random_bytes(1, 3 * MIB));
    let device = |path: &std::path::Path| fs::metadata(path).unwrap().dev();
    assert_eq!(device(&first), device(&second));
    // A write by one is at S3 when it is closed, and seen by the other.
    fs::write(first.join("note"), "hello").unwrap();
    assert_eq!(bucket.get("note").unwrap(), b"hello");
    assert_eq!(fs::read(second.join("note")).unwrap(), b"hello");
    let refused = fs::write(second.join("other"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    // Repeats are success; another way of showing it is not.
    node.publish(&one).unwrap();
    let other = TestVolume { read_only: true, ..one.clone() };
    assert_eq!(node.publish(&other).unwrap_err().code(), Code::AlreadyExists);
    node.unpublish(&one).unwrap();
    node.unpublish(&one).unwrap();
    assert!(!first.exists());
    assert_eq!(fs::read(second.join("note")).unwrap(), b"hello");
    node.unpublish(&two).unwrap();
    assert_eq!(node.mounts(), Vec::<std::path::PathBuf>::new());
    assert_eq!(fs::read_dir(node.join("sessions")).unwrap().count(), 0);
}

#[test]
fn a_volume_goes_on_when_the_node_is_killed_or_replaced() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("big", random_bytes(1, 5 * MIB));
    for n in 0..20 {
        bucket.put(&format!("dir/f{n}"), format!("bytes {n}"));
    }
    let node = CsiNode::new(&bucket);
    let volume = TestVolume::new(&bucket, "pod");
    let target = node.publish(&volume).unwrap();
    assert!(fs::read(target.join("big")).unwrap() == random_bytes(1, 5 * MIB));
    eventually("it is cached", || is_cached(&target.join("big")));
    assert_eq!(fs::read(target.join("dir/f1")).unwrap(), b"bytes 1");
    for round in 0..4 {
        // Read by the kernel alone, once it is open.
        let mut open = File::open(target.join("big")).unwrap();
        match round % 2 {
            0 => node.take_node().kill(),
            _ => node.take_node().terminate(),
        }
        // Not read_to_end, which asks for attributes, and so for an engine.
        let mut bytes = vec![0; 5 * MIB];
        open.read_exact(&mut bytes).unwrap();
        assert!(bytes == random_bytes(1, 5 * MIB), "{round}");
        // A process that asks meanwhile waits for the next engine.
        let path = target.join(format!("dir/f{}", 10 + round));
        let waiting = std::thread::spawn(move || fs::read(path));
        std::thread::sleep(std::time::Duration::from_millis(100));
        node.start_node();
        let read = waiting.join().unwrap().unwrap();
        assert_eq!(read, format!("bytes {}", 10 + round).as_bytes());
        assert!(fs::read(target.join("big")).unwrap() == random_bytes(1, 5 * MIB));
        fs::write(target.join("dir/written"), format!("round {round}")).unwrap();
        assert_eq!(bucket.get("dir/written").unwrap(), format!("round {round}").as_bytes());
        // It knows what is published where.
        node.publish(&volume).unwrap();
        assert!(node.stats(&volume).is_ok());
    }
    node.unpublish(&volume).unwrap();
    assert!(node.mounts().is_empty());
}

#[test]
fn a_mounter_that_comes_back_is_told_everything_again() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("big", random_bytes(1, MIB));
    let node = CsiNode::new(&bucket);
    let volume = TestVolume::new(&bucket, "pod");
    let target = node.publish(&volume).unwrap();
    node.take_mounter().kill();
    bucket.put("new", random_bytes(2, MIB));
    // Served meanwhile; passthrough waits for the mounter.
    let reader = std::thread::spawn({
        let path = target.join("new");
        move || fs::read(path)
    });
    node.start_mounter();
    assert!(reader.join().unwrap().unwrap() == random_bytes(2, MIB));
    eventually("the session is in custody again", || node.logs().contains("the mounter is back"));
    // Only with what was deposited again can the next engine serve.
    node.take_node().kill();
    node.start_node();
    assert!(fs::read(target.join("big")).unwrap() == random_bytes(1, MIB));
    node.unpublish(&volume).unwrap();
    assert!(node.mounts().is_empty());
}

#[test]
fn without_an_engine_a_mount_ends_after_the_deadline() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let setup = Setup { mounter_flags: vec!["--orphan-timeout=1".into()], ..Setup::default() };
    let node = CsiNode::with(&bucket, setup);
    let volume = TestVolume::new(&bucket, "pod");
    let target = node.publish(&volume).unwrap();
    node.take_node().kill();
    let path = target.join("f");
    // It would wait for ever for an engine.
    let waiting = std::thread::spawn(move || fs::read(path));
    eventually("who waits gets an error", || waiting.is_finished());
    assert!(waiting.join().unwrap().is_err());
    // A node that comes later makes a new session at the same place.
    node.start_node();
    let again = node.publish(&volume).unwrap();
    assert_eq!(fs::read(again.join("f")).unwrap(), b"bytes");
    // The pod, which may still hold the one before, is told once.
    node.publish(&volume).unwrap();
    let told = || node.logs().matches("the mount at a target had ended").count();
    assert_eq!(told(), 1);
    node.unpublish(&volume).unwrap();
    assert!(node.mounts().is_empty());
    // One that begins had no mount.
    node.publish(&volume).unwrap();
    assert_eq!(told(), 1);
}

#[test]
fn what_is_wrong_with_a_volume_is_said_and_can_be_mended() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let node = CsiNode::new(&bucket);
    let good = TestVolume::new(&bucket, "pod");
    let missing = good.clone().attribute("bucketName", "no-such-bucket");
    let no_name = TestVolume { attributes: Default::default(), ..good.clone() };
    let inline = good.clone().attribute("csi.storage.k8s.io/ephemeral", "true");
    for (volume, code, words) in [
        (missing, Code::NotFound, "no-such-bucket"),
        (no_name, Code::InvalidArgument, "bucketName"),
        (good.clone().keys("nobody", "wrong"), Code::PermissionDenied, "InvalidAccessKeyId"),
        (good.clone().option("metadata-tll 5"), Code::InvalidArgument, "metadata-ttl"),
        (good.clone().attribute("buketName", "x"), Code::InvalidArgument, "buketName"),
        (good.clone().attribute("prefix", "a/../b"), Code::InvalidArgument, "prefix"),
        (good.clone().attribute("authenticationSource", "x"), Code::InvalidArgument, "driver"),
        (good.clone().attribute("authenticationSource", "secret"), Code::InvalidArgument, "Secret"),
        (good.clone().attribute("authenticationSource", "pod"), Code::InvalidArgument, "token"),
        (inline.clone(), Code::PermissionDenied, "inline"),
        (inline.attribute("mountOptions", "endpoint-url=x"), Code::InvalidArgument, "endpoint"),
    ] {
        let status = node.publish(&volume).unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(words), "{words}: {}", status.message());
        assert!(node.mounts().is_empty());
    }
    let target = node.publish(&good).unwrap();
    assert_eq!(fs::read(target.join("f")).unwrap(), b"bytes");
}

#[test]
fn targets_outside_the_pods_folder_are_refused() {
    let bucket = Bucket::new(Server::Minio);
    let node = CsiNode::new(&bucket);
    let outside = node.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir_all(node.pods()).unwrap();
    std::os::unix::fs::symlink(&outside, node.pods().join("evil")).unwrap();
    let mut volume = TestVolume::new(&bucket, "evil");
    assert!(node.publish(&volume).is_err());
    volume.pod = "../outside".into();
    assert_eq!(node.publish(&volume).unwrap_err().code(), Code::InvalidArgument);
    volume.id = "../../etc".into();
    volume.pod = "pod".into();
    node.publish(&volume).unwrap();
    assert!(!outside.join("volumes/kubernetes.io~csi/data/mount").exists());
    node.unpublish(&volume).unwrap();
    // The planted link is not ours to remove.
    assert!(node.pods().join("evil").exists());
}

#[test]
fn each_group_sees_its_own_gid_and_keys_are_refreshed_in_place() {
    let issuer = Issuer::start();
    let bucket = &issuer.bucket;
    bucket.put("dir/f", "bytes");
    let node = CsiNode::new(bucket);
    let volume = TestVolume::new(bucket, "one").keys(&bucket.access_key, &bucket.secret_key);
    let one = TestVolume { group: Some(2000), ..volume.clone() };
    let two = TestVolume { group: Some(3000), ..volume.pod("two") };
    let (first, second) = (node.publish(&one).unwrap(), node.publish(&two).unwrap());
    for (path, gid) in [(&first, 2000), (&second, 3000)] {
        let (dir, file) =
            (fs::metadata(path.join("dir")).unwrap(), fs::metadata(path.join("dir/f")).unwrap());
        assert_eq!((dir.gid(), dir.mode() & 0o7777), (gid, 0o2775));
        assert_eq!((file.gid(), file.mode() & 0o7777), (gid, 0o664));
    }
    // Keys that the origin refuses replace none.
    node.publish(&one.clone().keys("nobody", "wrong")).unwrap();
    eventually("it is said", || node.logs().contains("new keys are not used"));
    store(&first.join("dir/g"), "new").unwrap();
    // Other keys are no other volume. These may list.
    let listing = issuer.keys(&["s3:ListBucket"]);
    node.publish(&one.clone().session_keys(&listing)).unwrap();
    eventually("the new keys are used", || fs::read(first.join("dir/f")).is_err());
    assert_eq!(fs::read(second.join("dir/f")).unwrap(), b"bytes");
    node.publish(&one).unwrap();
    eventually("the right keys are used again", || fs::read(first.join("dir/f")).is_ok());
}

#[test]
fn an_origin_that_refuses_shows_as_volume_condition() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("dir/f", "bytes");
    let storm = Storm::new(&bucket.url);
    let node = CsiNode::new(&bucket);
    let one = TestVolume::new(&bucket, "one").attribute("endpointUrl", &storm.url());
    let two = TestVolume::new(&bucket, "two");
    let target = node.publish(&one).unwrap();
    node.publish(&two).unwrap();
    storm.rage(|_| Some(Fault::Status(403)));
    fs::read_dir(target.join("dir")).unwrap_err();
    let condition = node.stats(&one).unwrap().volume_condition.unwrap();
    assert!(condition.abnormal && condition.message.contains("denied"), "{}", condition.message);
    assert!(!node.stats(&two).unwrap().volume_condition.unwrap().abnormal);
    storm.calm();
    eventually("it is as it was", || fs::read_dir(target.join("dir")).is_ok());
    assert!(!node.stats(&one).unwrap().volume_condition.unwrap().abnormal);
}

#[test]
fn keys_are_proven_before_they_make_anybody_somebody_else() {
    let issuer = Issuer::start();
    let bucket = &issuer.bucket;
    bucket.put("f", random_bytes(1, MIB));
    let node = CsiNode::new(bucket);
    let volume = TestVolume::new(bucket, "one");
    let (mine, theirs) = (issuer.reading(), issuer.reading());
    let target = node.publish(&volume.clone().session_keys(&mine)).unwrap();
    assert_eq!(fs::read(target.join("f")).unwrap(), random_bytes(1, MIB));
    // The id of somebody's key is no secret: who puts it into a secret is not him, neither now nor
    // after the next start of the node.
    let pretended = SessionKeys { secret_key: "guessed".into(), ..theirs.clone() };
    node.publish(&volume.clone().session_keys(&pretended)).unwrap();
    node.take_node().kill();
    node.start_node();
    fs::read(target.join("f")).unwrap();
    node.publish(&volume.clone().session_keys(&pretended)).unwrap();
    eventually("it is said again", || node.logs().matches("new keys are not used").count() == 2);
    // A rotation is.
    node.publish(&volume.clone().session_keys(&theirs)).unwrap();
    let again = TestVolume { group: Some(2000), ..volume.pod("two") }.session_keys(&theirs);
    let second = node.publish(&again).unwrap();
    for path in [&target, &second] {
        assert_eq!(fs::read(path.join("f")).unwrap(), random_bytes(1, MIB));
    }
    // Somebody else may list, and may not read.
    let listing = issuer.keys(&["s3:ListBucket"]);
    let third = TestVolume { group: Some(3000), ..volume.pod("three") }.session_keys(&listing);
    let third = node.publish(&third).unwrap();
    let error = fs::read(third.join("f")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn secrets_are_in_no_log_and_sockets_are_private() {
    let bucket = Bucket::new(Server::Minio);
    let node = CsiNode::new(&bucket);
    let canary = "canary-7d1f2c";
    let token = format!("{{\"sts.amazonaws.com\":{{\"token\":\"{canary}\"}}}}");
    let volume = TestVolume::new(&bucket, "pod");
    assert!(node.publish(&volume.clone().keys("nobody", canary)).is_err());
    let with_token = volume
        .attribute("authenticationSource", "pod")
        .attribute("csi.storage.k8s.io/serviceAccount.tokens", &token);
    let status = node.publish(&with_token).unwrap_err();
    assert!(!status.message().contains(canary), "{}", status.message());
    let logs = node.logs();
    assert!(logs.contains("NodePublishVolume") && !logs.contains(canary));
    for socket in ["csi.sock", "mounter.sock", "visitor/mounter.sock"] {
        let mode = fs::metadata(node.join(socket)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{socket}");
    }
}

#[test]
fn a_pod_reads_with_what_its_own_token_is_given() {
    let issuer = Issuer::start();
    let (provider, bucket) = (&issuer.provider, &issuer.bucket);
    bucket.put("f", "bytes");
    let node_flags = vec![format!("--sts-endpoint-url={}", bucket.url)];
    let setup = Setup { node_flags, ..Setup::default() };
    let node = CsiNode::with(bucket, setup);
    let volume = |pod: &str, policy: &str| {
        let token = provider.token(pod, policy);
        let group = if pod == "one" { 1000 } else { 2000 };
        TestVolume { group: Some(group), ..TestVolume::new(bucket, pod) }
            .attribute("authenticationSource", "pod")
            .attribute("csi.storage.k8s.io/pod.namespace", "default")
            .attribute("csi.storage.k8s.io/serviceAccount.name", pod)
            .attribute(
                "csi.storage.k8s.io/serviceAccount.tokens",
                &format!("{{\"sts.amazonaws.com\":{{\"token\":\"{token}\"}}}}"),
            )
    };
    let (one, two) = (volume("one", "readwrite"), volume("two", "readwrite"));
    let (first, second) = (node.publish(&one).unwrap(), node.publish(&two).unwrap());
    let device = |path: &std::path::Path| fs::metadata(path).unwrap().dev();
    assert_ne!(device(&first), device(&second));
    let group = |path: &std::path::Path| fs::metadata(path.join("f")).unwrap().gid();
    assert_eq!((group(&first), group(&second)), (1000, 2000));
    assert_eq!(fs::read(second.join("f")).unwrap(), b"bytes");
    fs::write(first.join("new"), "x").unwrap();
    assert_eq!(bucket.get("new").unwrap(), b"x");
    // A token that is given no right to list (of MinIO's own policies, this one), and one that is
    // no token.
    let status = node.publish(&volume("three", "readonly")).unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    let unsigned = volume("four", "x").attribute(
        "csi.storage.k8s.io/serviceAccount.tokens",
        "{\"sts.amazonaws.com\":{\"token\":\"canary.canary.canary\"}}",
    );
    let status = node.publish(&unsigned).unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(!status.message().contains("canary") && !node.logs().contains("canary"));
    // A repeat with a new token changes nothing that is seen.
    node.publish(&volume("one", "readwrite")).unwrap();
    assert_eq!(fs::read(first.join("f")).unwrap(), b"bytes");
    for volume in [one, two] {
        node.unpublish(&volume).unwrap();
    }
    assert!(node.mounts().is_empty());
}

/// An agent as Amazon's clusters have one on each node: it knows one token, and gives it these keys.
fn agent(token: &str, keys: &SessionKeys) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let wanted = format!("authorization: {token}");
    let body = serde_json::json!({
        "AccessKeyId": keys.access_key, "SecretAccessKey": keys.secret_key, "Token": keys.token,
        "AccountId": "000000000000", "Expiration": "2100-01-01T00:00:00Z",
    })
    .to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines =
                BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let head: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
            let knows = head[0].starts_with("GET /v1/credentials ")
                && head.iter().any(|line| line.eq_ignore_ascii_case(&wanted));
            let (status, body) = if knows { ("200 OK", &*body) } else { ("403 Forbidden", "no") };
            let length = body.len();
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
        }
    });
    url
}

#[test]
fn a_pod_without_a_role_reads_with_what_the_agent_of_its_node_gives() {
    let issuer = Issuer::start();
    let bucket = &issuer.bucket;
    bucket.put("f", "bytes");
    let url = agent("good-token", &issuer.reading());
    let node_flags = vec![format!("--pod-identity-agent-url={url}")];
    let node = CsiNode::with(bucket, Setup { node_flags, ..Setup::default() });
    let volume = |token: &str| {
        TestVolume::new(bucket, "pod").attribute("authenticationSource", "pod").attribute(
            "csi.storage.k8s.io/serviceAccount.tokens",
            &format!("{{\"pods.eks.amazonaws.com\":{{\"token\":\"{token}\"}}}}"),
        )
    };
    let status = node.publish(&volume("canary-token")).unwrap_err();
    assert!(status.message().contains("403"), "{status:?}");
    assert!(!status.message().contains("canary") && !node.logs().contains("canary"));
    let target = node.publish(&volume("good-token")).unwrap();
    assert_eq!(fs::read(target.join("f")).unwrap(), b"bytes");
    assert!(store(&target.join("g"), "x").is_err());
    // Who names a role has it from the security token service.
    let status = node.publish(&volume("good-token").attribute("roleArn", "arn")).unwrap_err();
    assert!(status.message().contains("sts.amazonaws.com"), "{status:?}");
}

#[test]
fn a_request_under_way_when_the_node_is_killed_is_answered_by_the_next() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("dir/asset", random_bytes(1, 5000));
    let storm = Storm::new(&bucket.url);
    let node = CsiNode::new(&bucket);
    let volume = TestVolume::new(&bucket, "pod").attribute("endpointUrl", &storm.url());
    let target = node.publish(&volume).unwrap();
    assert_eq!(fs::read_dir(target.join("dir")).unwrap().count(), 1);
    storm.rage(|asked| {
        let get = asked.method == hyper::Method::GET && asked.path.contains("dir/asset");
        get.then_some(Fault::Stall)
    });
    let path = target.join("dir/asset");
    let waiting = std::thread::spawn(move || fs::read(path));
    eventually("it is being fetched", || storm.met() > 0);
    // The engine has taken the request from the kernel; nobody else ever sees it again.
    node.take_node().kill();
    storm.calm();
    node.start_node();
    eventually("the next engine answers it", || waiting.is_finished());
    assert!(waiting.join().unwrap().unwrap() == random_bytes(1, 5000));
}

#[test]
fn a_connection_that_was_ended_by_force_is_made_anew() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let node = CsiNode::new(&bucket);
    let volume = TestVolume::new(&bucket, "pod");
    let target = node.publish(&volume).unwrap();
    let session = fs::read_dir(node.join("sessions")).unwrap().next().unwrap().unwrap().path();
    let _ = rustix::mount::unmount(session, rustix::mount::UnmountFlags::FORCE);
    assert!(fs::read(target.join("f")).is_err());
    // Before kubelet asks again, which it does once a minute at most.
    eventually("it is cleared away, and its pods are told", || node.stats(&volume).is_err());
    assert!(node.logs().contains("its connection has ended"));
    node.publish(&volume).unwrap();
    assert_eq!(fs::read(target.join("f")).unwrap(), b"bytes");
    node.unpublish(&volume).unwrap();
    assert!(node.mounts().is_empty());
}

#[test]
fn a_disk_of_the_cache_that_cannot_be_used_shows_as_volume_condition() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("no-folder");
    fs::write(&file, "x").unwrap();
    let node_flags = vec![format!("--cache-dir={}", file.display())];
    let node = CsiNode::with(&bucket, Setup { node_flags, ..Setup::default() });
    let volume = TestVolume::new(&bucket, "pod");
    let target = node.publish(&volume).unwrap();
    assert_eq!(fs::read(target.join("f")).unwrap(), b"bytes");
    let condition = node.stats(&volume).unwrap().volume_condition.unwrap();
    assert!(condition.abnormal && condition.message.contains("no-folder"), "{condition:?}");
    node.unpublish(&volume).unwrap();
}
