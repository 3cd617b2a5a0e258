//! What the mounter still asks of the kernel once it serves: a privileged container has no seccomp
//! profile, so it gives itself one. Calls are named that it makes; any other is EPERM. It starts no
//! program and no process, makes no socket, enters no namespace, changes no owner and no mode, and has
//! no memory that is executed but what it began with.
//!
//! Facts: seccomp(2); the calls of glibc, std and rustix (none of which the mounter can choose) were
//! found by running the tests with a filter that ends the process instead.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use rustix::io::Errno;
use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use crate::seccomp::apply;

/// Calls that may have any arguments.
const FREE: &[c_long] = &[
    // Mounts, and the names below which they lie.
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_readlinkat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    // Open files.
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    // Conversations at sockets that are there.
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    // Who it is.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_geteuid,
    libc::SYS_getegid,
    // Threads and their memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getrandom,
    // Clocks that are read without a call on most machines.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    // Seen by the other filter: its arguments are in memory, where no filter looks.
    libc::SYS_clone3,
];

/// Calls that glibc and rustix make on this architecture alone.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[libc::SYS_open, libc::SYS_readlink];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

/// Flags of clone(2) that make a thread, and nothing else of it.
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
/// Flags of clone(2) that make a namespace.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// Flags with which a session is mounted (weir-fuse, `adapter/mount.rs`).
const OF_SESSION: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOATIME;
/// Flags with which what is shown is made read-only (`roots.rs`).
const READ_ONLY: u64 = OF_SESSION | libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY;

/// `FUSE_DEV_IOC_BACKING_OPEN` and `..._CLOSE` (include/uapi/linux/fuse.h).
const BACKINGS: [u64; 2] = [0x4010_e501, 0x4004_e502];

/// Keeps the calls above, for every thread of this process; none can be had again.
///
/// # Errors
/// What seccomp(2) reports, as EINVAL where the kernel has no filters.
pub(super) fn install() -> io::Result<()> {
    // glibc asks for threads by the older call where it is told that there is no newer one.
    let newer = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let absent = SeccompAction::Errno(Errno::NOSYS.raw_os_error().unsigned_abs());
    apply(newer, SeccompAction::Allow, absent)?;
    let denied = SeccompAction::Errno(Errno::PERM.raw_os_error().unsigned_abs());
    apply(rules()?, denied, SeccompAction::Allow)
}

/// Calls by number; of those with rules, one must hold.
fn rules() -> io::Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let free = FREE.iter().chain(OLD).map(|call| (*call, Vec::new()));
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = free.collect();
    let not_executed = || one_of(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), &[0]);
    let this = u64::from(std::process::id());
    rules.extend([
        (libc::SYS_mount, one_of(3, SeccompCmpOp::Eq, &[OF_SESSION, READ_ONLY])?),
        (libc::SYS_ioctl, one_of(1, SeccompCmpOp::Eq, &BACKINGS)?),
        (libc::SYS_mmap, not_executed()?),
        (libc::SYS_mprotect, not_executed()?),
        (libc::SYS_prctl, one_of(0, SeccompCmpOp::Eq, &[libc::PR_SET_NAME as u64])?),
        (libc::SYS_clone, one_of(0, SeccompCmpOp::MaskedEq(THREAD | NAMESPACES), &[THREAD])?),
        // How abort(3) ends it.
        (libc::SYS_tgkill, one_of(0, SeccompCmpOp::Eq, &[this])?),
    ]);
    Ok(rules)
}

/// Rules of which one holds where an argument has one of these values.
fn one_of(argument: u8, compared: SeccompCmpOp, values: &[u64]) -> io::Result<Vec<SeccompRule>> {
    let rule = |value: &u64| {
        let width = SeccompCmpArgLen::Dword;
        let condition = SeccompCondition::new(argument, width, compared.clone(), *value);
        SeccompRule::new(vec![condition?])
    };
    values.iter().map(rule).collect::<Result<_, _>>().map_err(io::Error::other)
}
