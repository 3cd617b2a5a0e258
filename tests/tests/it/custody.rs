//! What the mounter keeps, what it lets others do, and what becomes of a session that nobody can
//! serve.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Resource;
use weir_fuse::adapter::mount::{MountEntry, mount_table};
use weir_fuse::blocking::MayBlock;
use weir_fuse::engine::owner::{FileId, Proc, Processes};
use weir_node::mounter::client::{Mounter, NewEntry};
use weir_node::mounter::wire;
use weir_tests::attacks::on_mounter;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, Setup, TestVolume};
use weir_tests::hostile::{self, Question};
use weir_tests::storm::{Fault, Storm};
use weir_tests::sts::{Issuer, store};
use weir_tests::{eventually, random_bytes};

/// Mounts a file system of memory.
fn tmpfs(at: &Path) {
    fs::create_dir_all(at).unwrap();
    rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
}

fn detach(at: &Path) {
    rustix::mount::unmount(at, UnmountFlags::DETACH).unwrap();
}

/// Another engine, which says that it is the node's: one that somebody has broken into.
fn another(node: &CsiNode) -> std::sync::Arc<Mounter> {
    Mounter::new(&node.join("mounter.sock"), "hostile".into())
}

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
    let mounter = another(&node);
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
    let (may, mounter) = (MayBlock::own_thread(), another(node));
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
    let kept = another(&node).sessions(&may).unwrap();
    make_hang(&node, std::slice::from_ref(&target));
    node.start_node();
    node.take_node().terminate();
    assert!(!node.logs().contains(GIVEN_UP));
    assert_eq!(another(&node).sessions(&may).unwrap(), kept);
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

/// The mounts of this machine, but for those in folders of tests that run beside this one.
fn mounts(node: &CsiNode) -> Vec<MountEntry> {
    let (own, temporary) = (node.join(""), [std::env::temp_dir(), "/var/tmp".into()]);
    let mut all = mount_table().unwrap();
    all.retain(|mount| {
        let is_below = |folder: &PathBuf| mount.mountpoint.starts_with(folder);
        is_below(&own) || !temporary.iter().any(is_below)
    });
    all
}

#[test]
fn a_broken_node_reaches_no_target_but_its_own() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let node = CsiNode::new(&bucket);
    let volume = TestVolume::new(&bucket, "pod");
    node.publish(&volume).unwrap();
    let pods = node.pods();
    // What kubelet has in other pods: a token, a configuration, another driver's volume, and a
    // folder of the host that it shows for subPath.
    let token = pods.join("victim/volumes/kubernetes.io~projected/kube-api-access-x");
    let other = pods.join("victim/volumes/kubernetes.io~csi/theirs/mount");
    let (host, subpath) = (node.join("etc"), pods.join("victim/volume-subpaths/hostetc/agent/0"));
    for folder in [&token, &other] {
        tmpfs(folder);
        fs::write(folder.join("secret"), "theirs").unwrap();
    }
    let data = r#"{"driverName": "other.csi.example"}"#;
    fs::write(other.parent().unwrap().join("vol_data.json"), data).unwrap();
    fs::create_dir_all(host.join("volumes/kubernetes.io~csi/x")).unwrap();
    fs::create_dir_all(&subpath).unwrap();
    rustix::mount::mount_bind(&host, &subpath).unwrap();
    // A mount on the way to what has the right form, with kubelet's own file in it.
    let bound = pods.join("bound");
    fs::create_dir_all(&bound).unwrap();
    rustix::mount::mount_bind(&host, &bound).unwrap();
    node.prepare(&bound.join("volumes/kubernetes.io~csi/x/mount"));
    let covered = pods.join("covered/volumes/kubernetes.io~csi/data/mount");
    node.prepare(&covered);
    tmpfs(&covered);
    // Of nobody: kubelet has written nothing.
    let bare = pods.join("bare/volumes/kubernetes.io~csi/data/mount");
    fs::create_dir_all(bare.parent().unwrap()).unwrap();

    // Of two engines each ends the other's connections.
    node.take_node().kill();
    let targets = [
        token.clone(),
        other.clone(),
        subpath.clone(),
        subpath.join("cron.d"),
        bound.join("volumes/kubernetes.io~csi/x/mount"),
        covered.clone(),
        bare.clone(),
        pods.clone(),
        pods.join("victim"),
        pods.join("victim/../pod/volumes/kubernetes.io~csi/data/mount"),
        node.join("etc"),
        "/etc".into(),
        "/".into(),
        "relative".into(),
    ];
    let files =
        ["/etc/passwd".into(), "/proc/self/maps".into(), node.cache_dir().join("index.redb")];
    let before = mounts(&node);
    for attack in on_mounter(&node.join("mounter.sock"), &targets, &files) {
        assert!(attack.outcome.is_err(), "{}", attack.name);
    }
    // Its own log is what the mounter can see that a process has open.
    let log = fs::metadata(node.join("log")).unwrap();
    let device = (rustix::fs::major(log.dev()), rustix::fs::minor(log.dev()));
    let device = format!("{}:{}", device.0, device.1);
    let file = FileId { device: &device, ino: log.ino(), name: "log" };
    let may = MayBlock::own_thread();
    assert!(Proc.holds(&may, node.mounter_pid(), &file));
    assert!(!another(&node).holds(&may, node.mounter_pid(), &file));
    assert_eq!(fs::read_dir(node.join("sessions")).unwrap().count(), 1, "a refused mount's folder");
    assert_eq!(mounts(&node), before);
    for folder in [&token, &other] {
        assert_eq!(fs::read(folder.join("secret")).unwrap(), b"theirs");
    }
    assert!(!bare.exists() && fs::read_dir(&host).unwrap().count() == 1);
    for mounted in [&token, &other, &subpath, &bound, &covered] {
        detach(mounted);
    }
}

#[test]
fn visitors_learn_and_change_nothing_but_what_is_left_behind() {
    let bucket = Bucket::new(Server::Minio);
    let node = CsiNode::new(&bucket);
    let volume = TestVolume::new(&bucket, "pod");
    let target = node.publish(&volume).unwrap();
    // Each socket is for one kind of peer, whatever that says of itself.
    assert!(
        Mounter::visit(&node.join("mounter.sock")).has_engine(&MayBlock::own_thread()).is_err()
    );
    let visitor = Mounter::visit(&node.visitor_socket());
    assert!(
        visitor.has_engine(&MayBlock::own_thread()).unwrap()
            && visitor.is_showing(&MayBlock::own_thread()).unwrap()
    );
    for refused in [
        visitor.sessions(&MayBlock::own_thread()).map(|_| ()),
        visitor.take(&MayBlock::own_thread(), "ab").map(|_| ()),
        visitor.targets(&MayBlock::own_thread(), "ab").map(|_| ()),
        visitor.end(&MayBlock::own_thread(), "ab"),
        visitor.unbind(&MayBlock::own_thread(), &target),
    ] {
        assert!(refused.is_err());
    }
    assert!(fs::read_dir(&target).is_ok());
    node.take_node().kill();
    eventually("nobody is there", || !visitor.has_engine(&MayBlock::own_thread()).unwrap());
    visitor.unbind(&MayBlock::own_thread(), &target).unwrap();
    assert!(!visitor.is_showing(&MayBlock::own_thread()).unwrap() && !target.exists());
}

#[test]
fn a_name_that_is_no_text_stops_nobody() {
    let bucket = Bucket::new(Server::Minio);
    let node = CsiNode::new(&bucket);
    let volume = TestVolume::new(&bucket, "pod");
    // As kubelet shows a folder of an emptyDir by a subPath that leads to it.
    let folder = node.join("emptydir").join(std::ffi::OsStr::from_bytes(b"\xff"));
    let subpath = node.pods().join("other/volume-subpaths/e/c/0");
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir_all(&subpath).unwrap();
    rustix::mount::mount_bind(&folder, &subpath).unwrap();
    let target = node.publish(&volume).unwrap();
    fs::read_dir(&target).unwrap();
    node.unpublish(&volume).unwrap();
    detach(&subpath);
}

#[test]
fn a_folder_of_the_nodes_disk_is_never_shown() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let node = CsiNode::new(&bucket);
    let (one, two) = (TestVolume::new(&bucket, "one"), TestVolume::new(&bucket, "two"));
    let first = node.publish(&one).unwrap();
    let session = fs::read_dir(node.join("sessions")).unwrap().next().unwrap().unwrap().path();
    detach(&session);
    // The pod that has it shows where it is.
    let second = node.publish(&two).unwrap();
    fs::write(second.join("g"), "more").unwrap();
    assert_eq!(bucket.get("g").unwrap(), b"more");
    node.unpublish(&one).unwrap();
    node.unpublish(&two).unwrap();
    assert!(!first.exists() && node.mounts().is_empty());
    // Nobody has it: it is mounted anew.
    let first = node.publish(&one).unwrap();
    detach(&first);
    detach(&fs::read_dir(node.join("sessions")).unwrap().next().unwrap().unwrap().path());
    let second = node.publish(&two).unwrap();
    assert_eq!(fs::read(second.join("f")).unwrap(), b"bytes");
}

#[test]
fn a_mounter_without_descriptors_keeps_what_it_has() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("big", random_bytes(1, 1 << 20));
    let node = CsiNode::with(&bucket, Setup::default());
    let volume = TestVolume::new(&bucket, "pod");
    let target = node.publish(&volume).unwrap();
    let pid = rustix::process::Pid::from_raw(node.mounter_pid() as i32);
    let limit = |current| {
        let limit = rustix::process::Rlimit { current: Some(current), maximum: Some(4096) };
        rustix::process::prlimit(pid, Resource::Nofile, limit).unwrap();
    };
    let open = fs::read_dir(format!("/proc/{}/fd", node.mounter_pid())).unwrap().count();
    limit(open as u64 - 1);
    // None of them can be served.
    let refused: Vec<_> = (0..20).map(|_| Mounter::visit(&node.visitor_socket())).collect();
    let asking: Vec<_> = refused
        .iter()
        .map(|visitor| {
            let visitor = visitor.clone();
            std::thread::spawn(move || visitor.has_engine(&MayBlock::own_thread()))
        })
        .collect();
    eventually("the lack is told", || node.logs().contains("a connection is not served"));
    limit(4096);
    for asked in asking {
        let _ = asked.join().unwrap();
    }
    node.take_node().kill();
    node.start_node();
    assert!(fs::read(target.join("big")).unwrap() == random_bytes(1, 1 << 20));
}

#[test]
fn a_mounter_without_room_for_threads_keeps_what_it_has() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("big", random_bytes(1, 1 << 20));
    let node = CsiNode::new(&bucket);
    let target = node.publish(&TestVolume::new(&bucket, "pod")).unwrap();
    let pid = rustix::process::Pid::from_raw(node.mounter_pid() as i32);
    let limit = |current| {
        let limit = rustix::process::Rlimit { current, maximum: None };
        rustix::process::prlimit(pid, Resource::As, limit).unwrap();
    };
    let statm = fs::read_to_string(format!("/proc/{}/statm", node.mounter_pid())).unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    // Less than a stack takes: whoever is root may have any number of threads, but each has one.
    limit(Some(pages * 4096 + (1 << 20)));
    // Stacks of threads before are used again: as many at once as there cannot be.
    let connect = || wire::connect(&node.visitor_socket(), weir_tests::PATIENCE).unwrap();
    let waiting: Vec<_> = (0..40).map(|_| connect()).collect();
    eventually("the lack is told", || node.logs().contains("a connection is not served"));
    limit(None);
    drop(waiting);
    node.take_node().kill();
    node.start_node();
    assert!(fs::read(target.join("big")).unwrap() == random_bytes(1, 1 << 20));
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

#[test]
fn the_kernel_reads_no_file_but_the_caches() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let node = CsiNode::new(&bucket);
    node.publish(&TestVolume::new(&bucket, "pod")).unwrap();
    // Of two engines each ends the other's connections, and files are not registered again and again.
    node.take_node().kill();
    let mounter = another(&node);
    let session = mounter.sessions(&MayBlock::own_thread()).unwrap().remove(0);
    let port = weir_node::mounter::client::SessionPort { mounter, session };
    use weir_fuse::engine::kernel::KernelPort;
    let mine = node.cache_dir().join("objects/ab/00000000000000ab");
    fs::create_dir_all(mine.parent().unwrap()).unwrap();
    fs::write(&mine, "bytes").unwrap();
    let id = port.open_backing(&MayBlock::own_thread(), &fs::File::open(&mine).unwrap()).unwrap();
    port.close_backing(id);
    let index = fs::File::open(node.cache_dir().join("index.redb")).unwrap();
    let elsewhere = fs::File::open("/proc/self/mounts").unwrap();
    for file in [index, elsewhere, fs::File::open(node.cache_dir()).unwrap()] {
        let error = port.open_backing(&MayBlock::own_thread(), &file).unwrap_err();
        assert!(error.to_string().contains("a backing file must be"), "{error}");
    }
}

#[test]
fn the_mounter_keeps_no_connection_that_is_none_of_fuse() {
    let bucket = Bucket::new(Server::Embedded);
    let node = CsiNode::new(&bucket);
    let may = MayBlock::own_thread();
    let volume = TestVolume::new(&bucket, "pod");
    node.publish(&volume).unwrap();
    node.take_node().kill();
    let mounter = another(&node);
    let served = mounter.sessions(&may).unwrap().remove(0);
    let null = OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let disk = OwnedFd::from(fs::File::open(node.join("")).unwrap());
    let (socket, _other) = UnixStream::pair().unwrap();
    let deposit = |session: &str, device: &OwnedFd| {
        let record = b"{}".as_slice();
        mounter.deposit(&may, &NewEntry { session, generation: 1, record, keys: None, device })
    };
    for device in [null, disk, socket.into()] {
        // Of one that the mounter has, too, though it keeps its own.
        for session in ["ab", served.as_str()] {
            let error = deposit(session, &device).unwrap_err();
            assert!(error.to_string().contains("must be of /dev/fuse"), "{error}");
        }
    }
    assert_eq!(mounter.sessions(&may).unwrap(), std::slice::from_ref(&served));
    deposit("ab", &mounter.take(&may, &served).unwrap().device).unwrap();
}
