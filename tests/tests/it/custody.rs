//! What the mounter keeps, and what it lets others do.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Resource;
use weir_fuse::adapter::mount::{MountEntry, mount_table};
use weir_fuse::blocking::MayBlock;
use weir_fuse::engine::kernel::KernelPort;
use weir_fuse::engine::owner::{FileId, Proc, Processes};
use weir_node::mounter::client::{Mounter, NewEntry, SessionPort};
use weir_node::mounter::wire;
use weir_tests::attacks::on_mounter;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, Setup, TestVolume};
use weir_tests::tmpfs::Tmpfs;
use weir_tests::{eventually, random_bytes};

/// Mounts a file system of memory.
fn tmpfs(at: &Path) {
    fs::create_dir_all(at).unwrap();
    rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
}

fn detach(at: &Path) {
    rustix::mount::unmount(at, UnmountFlags::DETACH).unwrap();
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
    assert!(!node.other_engine().holds(&may, node.mounter_pid(), &file));
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

#[test]
fn the_kernel_reads_no_file_but_the_caches() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let node = CsiNode::new(&bucket);
    node.publish(&TestVolume::new(&bucket, "pod")).unwrap();
    // Of two engines each ends the other's connections, and files are not registered again and again.
    node.take_node().kill();
    let mounter = node.other_engine();
    let session = mounter.sessions(&MayBlock::own_thread()).unwrap().remove(0);
    let port = SessionPort { mounter, session };
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
fn who_has_a_session_forgotten_and_keeps_its_connection_keeps_no_file_of_it_with_the_kernel() {
    let bucket = Bucket::new(Server::Embedded);
    // Of its files the disk says how many there are, also without names.
    let disk = Tmpfs::with_inodes(1, 100);
    let mounter_flags = vec![format!("--cache-dir={}", disk.path().display())];
    let node = CsiNode::with(&bucket, Setup { mounter_flags, ..Setup::default() });
    let may = MayBlock::own_thread();
    node.publish(&TestVolume::new(&bucket, "pod")).unwrap();
    node.take_node().kill();
    let mounter = node.other_engine();
    let session = mounter.sessions(&may).unwrap().remove(0);
    let port = SessionPort { mounter: mounter.clone(), session: session.clone() };
    let folder = disk.path().join("objects/ab");
    fs::create_dir_all(&folder).unwrap();
    let free = || rustix::fs::statvfs(disk.path()).unwrap().f_ffree;
    let before = free();
    for name in ["one", "two"] {
        let path = folder.join(name);
        fs::write(&path, "bytes").unwrap();
        port.open_backing(&may, &fs::File::open(&path).unwrap()).unwrap();
        fs::remove_file(path).unwrap();
    }
    assert_eq!(free(), before - 2);
    let device = mounter.take(&may, &session).unwrap().device;
    mounter.unmount(&may, &session).unwrap();
    eventually("the kernel has none of them", || free() == before);
    let record = b"{}".as_slice();
    let again = NewEntry { session: &session, generation: 1, record, keys: None, device: &device };
    mounter.deposit(&may, &again).unwrap();
    assert_eq!(mounter.sessions(&may).unwrap(), std::slice::from_ref(&session));
    mounter.end(&may, &session).unwrap();
}

#[test]
fn the_mounter_keeps_no_connection_that_is_none_of_fuse() {
    let bucket = Bucket::new(Server::Embedded);
    let node = CsiNode::new(&bucket);
    let may = MayBlock::own_thread();
    let volume = TestVolume::new(&bucket, "pod");
    node.publish(&volume).unwrap();
    node.take_node().kill();
    let mounter = node.other_engine();
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
