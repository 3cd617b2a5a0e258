//! What each role of a node may do, and whom the mounter listens to.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use tonic::Code;
use weir_csi::proto::identity_client::IdentityClient;
use weir_csi::proto::node_client::NodeClient;
use weir_csi::proto::{
    GetPluginInfoRequest, NodeGetInfoRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    NodeUnpublishVolumeRequest, ProbeRequest,
};
use weir_fuse::blocking::MayBlock;
use weir_node::mounter::client::Mounter;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, Setup, TestVolume};
#[cfg(target_arch = "x86_64")]
use weir_tests::injected::Injected;
use weir_tests::mount::{Mount, cache_dir, is_mounted, weir};
use weir_tests::{eventually, runtime};

/// Nobody, on any machine.
const STANDBY: u32 = 65531;

/// A line of what the kernel says of a process or thread.
fn status(path: &str, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{path}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

/// The threads of a process, by where the kernel tells of them.
fn threads(pid: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = threads.map(|thread| thread.unwrap().file_name().into_string().unwrap());
    names.map(|thread| format!("{pid}/task/{thread}")).collect()
}

#[test]
fn a_standby_that_is_not_root_takes_volumes_away() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let setup = Setup {
        node_flags: vec![format!("--csi-group={STANDBY}")],
        mounter_flags: vec![format!("--visitor-group={STANDBY}")],
        ..Setup::default()
    };
    let mut node = CsiNode::with(&bucket, setup);
    let volume = TestVolume::new(&bucket, "pod");
    let target = node.publish(&volume).unwrap();
    for (socket, mode) in [(node.socket(), 0o660), (node.visitor_socket(), 0o660)] {
        let socket = fs::metadata(socket).unwrap();
        assert_eq!((socket.permissions().mode() & 0o777, socket.gid()), (mode, STANDBY));
    }
    // The engine's socket is no business of the standby's.
    let engines = fs::metadata(node.join("mounter.sock")).unwrap();
    assert_eq!((engines.permissions().mode() & 0o777, engines.gid()), (0o600, 0));
    node.start_standby_as(STANDBY, STANDBY);
    node.take_node().kill();
    eventually("the standby steps in", || {
        node.standby_logs().contains("pods can be deleted meanwhile")
    });
    assert_eq!(status(&node.standby_pid().to_string(), "Uid").split('\t').next(), Some("65531"));
    node.unpublish(&volume).unwrap();
    assert!(!target.exists());
    node.start_node();
    // The standby gives the socket up.
    eventually("the node is back", || node.logs().matches("serving CSI calls").count() == 2);
    node.publish(&volume).unwrap();
    assert_eq!(fs::read(target.join("f")).unwrap(), b"bytes");
}

#[test]
fn who_is_of_the_sockets_group_learns_what_the_plugin_is_and_is_not_taken_for_kubelet() {
    let bucket = Bucket::new(Server::Embedded);
    bucket.put("f", "bytes");
    let node_flags = vec![format!("--csi-group={STANDBY}")];
    let node = CsiNode::with(&bucket, Setup { node_flags, ..Setup::default() });
    let volume = TestVolume::new(&bucket, "pod");
    let target = node.publish(&volume).unwrap();
    let channel = node.channel_of(STANDBY, STANDBY);
    let (mut identity, mut calls) =
        (IdentityClient::new(channel.clone()), NodeClient::new(channel));
    let path = target.to_str().unwrap().to_owned();
    runtime().block_on(async {
        let plugin = identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap();
        assert_eq!(plugin.into_inner().name, "s3.csi.weir.dev");
        identity.probe(ProbeRequest {}).await.unwrap();
        let (id, path) = (volume.id.clone(), path.clone());
        let take_away =
            NodeUnpublishVolumeRequest { volume_id: id.clone(), target_path: path.clone() };
        let show = NodePublishVolumeRequest {
            volume_id: id.clone(),
            target_path: path.clone(),
            ..Default::default()
        };
        let ask =
            NodeGetVolumeStatsRequest { volume_id: id, volume_path: path, ..Default::default() };
        let refusals = [
            calls.node_unpublish_volume(take_away).await.map(|_| ()),
            calls.node_publish_volume(show).await.map(|_| ()),
            calls.node_get_volume_stats(ask).await.map(|_| ()),
            calls.node_get_info(NodeGetInfoRequest {}).await.map(|_| ()),
        ];
        for refusal in refusals {
            let status = refusal.unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
            assert!(status.message().starts_with("user 65531 may ask"), "{status:?}");
        }
    });
    assert_eq!(fs::read(target.join("f")).unwrap(), b"bytes");
    node.unpublish(&volume).unwrap();
}

#[test]
fn who_sits_at_the_sockets_of_node_and_mounter_keeps_neither_from_starting() {
    let bucket = Bucket::new(Server::Embedded);
    bucket.put("f", "bytes");
    let node = CsiNode::new(&bucket);
    node.take_node().terminate();
    node.take_mounter().terminate();
    for folder in ["csi.new", "mounter.new", "visitor/mounter.new"] {
        fs::create_dir(node.join(folder)).unwrap();
    }
    for socket in [node.join("mounter.sock"), node.visitor_socket()] {
        fs::remove_file(&socket).unwrap();
        fs::create_dir_all(socket.join("below")).unwrap();
    }
    node.start_mounter();
    eventually("the mounter serves", || {
        Mounter::visit(&node.visitor_socket()).has_engine(&MayBlock::own_thread()).is_ok()
    });
    // It ends for no node plugin.
    fs::remove_file(node.socket()).unwrap();
    let _listener = UnixListener::bind(node.socket()).unwrap();
    let serving = || node.logs().matches("serving CSI calls").count();
    let before = serving();
    node.start_node();
    eventually("the node serves", || serving() > before);
    let volume = TestVolume::new(&bucket, "pod");
    let target = node.publish(&volume).unwrap();
    assert_eq!(fs::read(target.join("f")).unwrap(), b"bytes");
    node.unpublish(&volume).unwrap();
}

#[test]
fn the_memory_of_no_role_that_holds_keys_is_written_or_read() {
    let bucket = Bucket::new(Server::Embedded);
    let mut node = CsiNode::new(&bucket);
    node.start_controller();
    node.start_standby_as(STANDBY, STANDBY);
    let mount = Mount::new(&bucket);
    let roles = [
        ("node", node.node_pid()),
        ("mounter", node.mounter_pid()),
        ("controller", node.controller_pid()),
        ("standby", node.standby_pid()),
        ("mount", mount.pid()),
    ];
    for (role, pid) in roles {
        eventually(role, || {
            let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            let cores = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
            let cores: Vec<_> = cores.unwrap().split_whitespace().collect();
            cores == ["0", "0", "bytes"] && status(&pid.to_string(), "Umask") == "0077"
        });
    }
    // proc(5): of a process that cannot be dumped these are root's, whoever it is.
    let pid = node.standby_pid();
    let owner = || fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid();
    eventually("its user cannot look into it either", || owner() == 0);
    assert_eq!(status(&pid.to_string(), "Uid").split('\t').next(), Some("65531"));
}

#[test]
fn who_is_in_no_pod_of_weirs_is_sent_away() {
    let bucket = Bucket::new(Server::Minio);
    let mut node = CsiNode::new(&bucket);
    let told = |node: &CsiNode, peer: &str| {
        let logs = node.logs();
        let mut lines = logs.lines().filter(|line| line.contains("a connection is refused"));
        lines.any(|line| line.contains(peer) && line.contains("is in no pod of this node"))
    };
    Mounter::visit(&node.visitor_socket()).has_engine(&MayBlock::own_thread()).unwrap();
    node.take_mounter().kill();
    node.add_mounter_flags(&["--engine-volume=weir-engine", "--visitor-volume=weir-visitor"]);
    node.start_mounter();
    // The node comes by itself.
    eventually("the engine is sent away", || told(&node, "Engine"));
    Mounter::visit(&node.visitor_socket()).has_engine(&MayBlock::own_thread()).unwrap_err();
    eventually("so is the visitor", || told(&node, "Visitor"));
}

/// A call's name, number and arguments.
#[cfg(target_arch = "x86_64")]
type Call = (&'static str, i64, [u64; 6]);

/// Those of the calls that are not refused, and what the kernel answers.
#[cfg(target_arch = "x86_64")]
fn allowed(broken: &Injected, calls: &[Call]) -> Vec<(&'static str, i64)> {
    let answers =
        calls.iter().map(|(name, number, arguments)| (*name, broken.call(*number, *arguments)));
    answers.filter(|(_, answer)| *answer != -i64::from(libc::EPERM)).collect()
}

#[cfg(target_arch = "x86_64")]
#[test]
fn who_breaks_into_the_mounter_gets_nothing_more_of_the_kernel() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let node = CsiNode::new(&bucket);
    let volume = TestVolume::new(&bucket, "pod");
    let target = node.publish(&volume).unwrap();
    let mounter = node.mounter_pid();
    assert!(threads(mounter).iter().all(|thread| status(thread, "Seccomp") == "2"));
    // With arguments that do no harm where they are let through.
    let (none, nobody) = (u64::MAX, 0x7fff_ffff);
    let calls: &[Call] = &[
        ("ptrace", libc::SYS_ptrace, [16, nobody, 0, 0, 0, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [nobody, 0, 0, 0, 0, 0]),
        ("process_vm_writev", libc::SYS_process_vm_writev, [nobody, 0, 0, 0, 0, 0]),
        ("kill", libc::SYS_kill, [nobody, 0, 0, 0, 0, 0]),
        ("tgkill of another", libc::SYS_tgkill, [nobody, nobody, 0, 0, 0, 0]),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, [none, 0, 0, 0, 0, 0]),
        ("execve", libc::SYS_execve, [0; 6]),
        ("execveat", libc::SYS_execveat, [none, 0, 0, 0, 0, 0]),
        ("clone of no thread", libc::SYS_clone, [0x1_0000, 0, 0, 0, 0, 0]),
        ("clone into a namespace", libc::SYS_clone, [0x1001_0900, 0, 0, 0, 0, 0]),
        ("unshare", libc::SYS_unshare, [0; 6]),
        ("setns", libc::SYS_setns, [none, 0, 0, 0, 0, 0]),
        ("chroot", libc::SYS_chroot, [0; 6]),
        ("pivot_root", libc::SYS_pivot_root, [0; 6]),
        ("mknodat", libc::SYS_mknodat, [none, 0, 0, 0, 0, 0]),
        ("mount of anything", libc::SYS_mount, [0; 6]),
        ("bind mount", libc::SYS_mount, [0, 0, 0, 4096, 0, 0]),
        ("fsopen", libc::SYS_fsopen, [0; 6]),
        ("fsmount", libc::SYS_fsmount, [none, 0, 0, 0, 0, 0]),
        ("mount_setattr", libc::SYS_mount_setattr, [none, 0, 0, 0, 0, 0]),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, [none, 0, 0, 0, 0, 0]),
        ("init_module", libc::SYS_init_module, [0; 6]),
        ("finit_module", libc::SYS_finit_module, [none, 0, 0, 0, 0, 0]),
        ("kexec_load", libc::SYS_kexec_load, [none, none, 0, 0, 0, 0]),
        ("bpf", libc::SYS_bpf, [none, 0, 0, 0, 0, 0]),
        ("perf_event_open", libc::SYS_perf_event_open, [0, 0, 0, 0, 0, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, [none, 0, 0, 0, 0, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0; 6]),
        ("keyctl", libc::SYS_keyctl, [none, 0, 0, 0, 0, 0]),
        ("add_key", libc::SYS_add_key, [0; 6]),
        ("socket of this machine", libc::SYS_socket, [1, 1, 0, 0, 0, 0]),
        ("socket of the network", libc::SYS_socket, [2, 1, 0, 0, 0, 0]),
        ("netlink socket", libc::SYS_socket, [16, 3, 0, 0, 0, 0]),
        ("connect", libc::SYS_connect, [none, 0, 0, 0, 0, 0]),
        ("bind", libc::SYS_bind, [none, 0, 0, 0, 0, 0]),
        ("fchmodat", libc::SYS_fchmodat, [none, 0, 0, 0, 0, 0]),
        ("fchownat", libc::SYS_fchownat, [none, 0, 0, 0, 0, 0]),
        ("linkat", libc::SYS_linkat, [none, 0, none, 0, 0, 0]),
        ("symlinkat", libc::SYS_symlinkat, [0, none, 0, 0, 0, 0]),
        ("ioctl of a terminal", libc::SYS_ioctl, [none, 0x5412, 0, 0, 0, 0]),
        ("prctl", libc::SYS_prctl, [none, 0, 0, 0, 0, 0]),
        ("capset", libc::SYS_capset, [0; 6]),
        ("memory that is executed", libc::SYS_mmap, [0, 4096, 5, 0x22, none, 0]),
        ("memory made executable", libc::SYS_mprotect, [0, 0, 4, 0, 0, 0]),
    ];
    let broken = Injected::into(mounter);
    // It does what it is told.
    assert_eq!(broken.call(libc::SYS_getpid, [0; 6]), i64::from(mounter));
    assert_eq!(broken.call(libc::SYS_close, [none, 0, 0, 0, 0, 0]), -i64::from(libc::EBADF));
    let allowed = allowed(&broken, calls);
    assert!(allowed.is_empty(), "{allowed:?}");
    // By which glibc learns that it is to take the older one.
    assert_eq!(broken.call(libc::SYS_clone3, [0; 6]), -i64::from(libc::ENOSYS));
    drop(broken);
    // And it goes on.
    assert_eq!(fs::read(target.join("f")).unwrap(), b"bytes");
    let second = node.publish(&volume.pod("second")).unwrap();
    node.take_node().kill();
    node.start_node();
    assert_eq!(fs::read(second.join("f")).unwrap(), b"bytes");
    node.unpublish(&volume.pod("second")).unwrap();
    node.unpublish(&volume).unwrap();
    assert!(node.mounts().is_empty());
}

#[cfg(target_arch = "x86_64")]
#[test]
fn who_breaks_into_a_role_starts_no_program() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let mut node = CsiNode::new(&bucket);
    let target = node.publish(&TestVolume::new(&bucket, "pod")).unwrap();
    node.start_controller();
    node.start_standby();
    eventually("the standby runs", || node.standby_logs().contains("serving probes"));
    let none = u64::MAX;
    let calls: &[Call] = &[
        ("execve", libc::SYS_execve, [0; 6]),
        ("execveat", libc::SYS_execveat, [none, 0, 0, 0, 0, 0]),
        // By the numbers of the x32 ABI.
        ("execve", 0x4000_0000 + 520, [0; 6]),
        ("execveat", 0x4000_0000 + 545, [none, 0, 0, 0, 0, 0]),
    ];
    for (role, pid) in [
        ("node", node.node_pid()),
        ("controller", node.controller_pid()),
        ("standby", node.standby_pid()),
    ] {
        for thread in threads(pid) {
            let held = (status(&thread, "Seccomp"), status(&thread, "NoNewPrivs"));
            assert_eq!(held, ("2".into(), "1".into()), "{role}");
        }
        let broken = Injected::into(pid);
        // It does what it is told.
        assert_eq!(broken.call(libc::SYS_getpid, [0; 6]), i64::from(pid));
        let allowed = allowed(&broken, calls);
        assert!(allowed.is_empty(), "{role}: {allowed:?}");
    }
    assert_eq!(fs::read(target.join("f")).unwrap(), b"bytes");
}

#[test]
fn a_profile_with_a_program_is_refused_on_a_node_and_taken_by_a_mount() {
    let bucket = Bucket::new(Server::Minio);
    let dir = tempfile::tempdir().unwrap();
    let (config, started) = (dir.path().join("config"), dir.path().join("started"));
    let keys = serde_json::json!({
        "Version": 1, "AccessKeyId": bucket.access_key, "SecretAccessKey": bucket.secret_key,
    });
    let program = format!("touch {}; echo '{keys}'", started.display());
    fs::write(&config, format!("[profile keys]\ncredential_process = {program}\n")).unwrap();
    let config = config.to_str().unwrap().to_owned();
    let environment = vec![("AWS_CONFIG_FILE".to_owned(), config.clone())];
    let node = CsiNode::with(&bucket, Setup { environment, ..Setup::default() });
    let volume = TestVolume::new(&bucket, "pod").option("profile keys");
    let refused = node.publish(&volume).unwrap_err();
    for word in [bucket.name.as_str(), "credential_process", "keys in a Secret"] {
        assert!(refused.message().contains(word), "{refused}");
    }
    assert!(!started.exists());

    let (mnt, cache) = (dir.path().join("mnt"), cache_dir());
    fs::create_dir(&mnt).unwrap();
    let call = |args: &[&str]| {
        let mut command = weir(&bucket);
        command.args(args).env("AWS_CONFIG_FILE", &config).env("WEIR_RUN_DIR", dir.path());
        command.output().unwrap()
    };
    let (source, mnt_text) = (format!("s3://{}", bucket.name), mnt.to_str().unwrap());
    let mount = ["mount", &source, mnt_text, "--endpoint-url", &bucket.url, "--profile", "keys"];
    let cache = ["--cache-dir", cache.path().to_str().unwrap(), "--cache-min-free", "0"];
    let mounted = call(&[mount.as_slice(), &cache].concat());
    assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    assert!(is_mounted(&mnt) && started.exists());
    eventually("it is taken away", || call(&["umount", mnt_text]).status.success());
}
