//! Filters of the kernel's calls (seccomp(2)), which a process gives itself and cannot take off. The
//! mounter's own is `mounter/filter.rs`.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use rustix::io::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule};

/// Calls that start a program.
const PROGRAMS: &[c_long] = &[libc::SYS_execve, libc::SYS_execveat];

/// The same by the numbers of the x32 ABI, which a filter for x86_64 sees too
/// (arch/x86/entry/syscalls/syscall_64.tbl).
#[cfg(target_arch = "x86_64")]
const PROGRAMS_X32: &[c_long] = &[0x4000_0000 + 520, 0x4000_0000 + 545];
#[cfg(not(target_arch = "x86_64"))]
const PROGRAMS_X32: &[c_long] = &[];

/// Starts no program from now on, in any thread of this process: that is EPERM. The GPU's library, which
/// starts `nvidia-modprobe` (its manual: where device files are missing), goes on without.
///
/// # Errors
/// What seccomp(2) reports, as EINVAL where the kernel has no filters.
pub(crate) fn give_up_programs() -> io::Result<()> {
    let calls = PROGRAMS.iter().chain(PROGRAMS_X32);
    let rules = calls.map(|call| (*call, Vec::new())).collect();
    let denied = SeccompAction::Errno(Errno::PERM.raw_os_error().unsigned_abs());
    apply(rules, SeccompAction::Allow, denied)
}

/// Has calls with these rules, of which one must hold, come to `then`, all others to `else_`, in every
/// thread of this process.
///
/// # Errors
/// What seccomp(2) reports, as EINVAL where the kernel has no filters.
pub(crate) fn apply(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    else_: SeccompAction,
    then: SeccompAction,
) -> io::Result<()> {
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, else_, then, arch).map_err(io::Error::other)?;
    let program = BpfProgram::try_from(filter).map_err(io::Error::other)?;
    seccompiler::apply_filter_all_threads(&program).map_err(io::Error::other)
}
