//! What each role of a node may do, and whom the mounter listens to.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use weir_fuse::blocking::MayBlock;
use weir_node::mounter::client::Mounter;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, Setup, TestVolume};
use weir_tests::eventually;

/// Nobody, on any machine.
const STANDBY: u32 = 65531;

/// A line of what the kernel says of a process or thread.
fn status(path: &str, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{path}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

#[test]
fn a_standby_that_is_not_root_takes_volumes_away() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let setup = Setup {
        node_flags: vec![format!("--csi-group={STANDBY}")],
        mounter_flags: vec![format!("--visitor-group={STANDBY}")],
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

#[cfg(target_arch = "x86_64")]
#[test]
fn who_breaks_into_the_mounter_gets_nothing_more_of_the_kernel() {
    use weir_tests::injected::Injected;

    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let node = CsiNode::new(&bucket);
    let volume = TestVolume::new(&bucket, "pod");
    let target = node.publish(&volume).unwrap();
    let mounter = node.mounter_pid();
    for task in fs::read_dir(format!("/proc/{mounter}/task")).unwrap() {
        let task = task.unwrap().file_name().into_string().unwrap();
        assert_eq!(status(&format!("{mounter}/task/{task}"), "Seccomp"), "2");
    }
    // With arguments that do no harm where they are let through.
    let (none, nobody) = (u64::MAX, 0x7fff_ffff);
    let calls: &[(&str, i64, [u64; 6])] = &[
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
    let answers =
        calls.iter().map(|(name, number, arguments)| (*name, broken.call(*number, *arguments)));
    let allowed: Vec<_> =
        answers.filter(|(_, answer)| *answer != -i64::from(libc::EPERM)).collect();
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
