//! Calls of the kernel that another process is made to do: as if somebody had broken into it.
#![allow(unsafe_code, reason = "ptrace(2), which takes pointers")]

use std::ptr;

/// A process that is stopped in a call of the kernel, and goes on with that call when this is dropped.
pub struct Injected {
    pid: libc::pid_t,
    before: libc::user_regs_struct,
}

impl Injected {
    /// Stops a process's first thread, which must wait in a call that can be begun again.
    pub fn into(pid: u32) -> Self {
        let pid = libc::pid_t::try_from(pid).unwrap();
        request(libc::PTRACE_ATTACH, pid, ptr::null_mut());
        stopped(pid);
        Self { pid, before: registers(pid) }
    }

    /// What the call answers: an errno is a negative number.
    pub fn call(&self, number: i64, arguments: [u64; 6]) -> i64 {
        let mut registers = self.before;
        // The instruction that it waits in is two bytes long: a call of the kernel.
        registers.rip -= 2;
        registers.rax = number.cast_unsigned();
        // None that the kernel is to begin again.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] =
            arguments;
        self.set(registers);
        request(libc::PTRACE_SINGLESTEP, self.pid, ptr::null_mut());
        stopped(self.pid);
        self::registers(self.pid).rax.cast_signed()
    }

    fn set(&self, mut registers: libc::user_regs_struct) {
        request(libc::PTRACE_SETREGS, self.pid, ptr::from_mut(&mut registers).cast());
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        // It may be gone; a second panic would take the other tests along.
        if std::thread::panicking() {
            return;
        }
        self.set(self.before);
        request(libc::PTRACE_DETACH, self.pid, ptr::null_mut());
    }
}

fn registers(pid: libc::pid_t) -> libc::user_regs_struct {
    // SAFETY: numbers alone, of which any bits are one.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, pid, ptr::from_mut(&mut registers).cast());
    registers
}

fn request(what: libc::c_uint, pid: libc::pid_t, data: *mut libc::c_void) {
    // SAFETY: `data` is null, or leads to registers, which is what these requests read and write.
    let answer = unsafe { libc::ptrace(what, pid, ptr::null_mut::<libc::c_void>(), data) };
    assert_eq!(answer, 0, "ptrace {what}: {}", std::io::Error::last_os_error());
}

fn stopped(pid: libc::pid_t) {
    let mut status = 0;
    // SAFETY: it writes one number.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    assert!(waited == pid && libc::WIFSTOPPED(status), "{waited}: status {status:#x}");
}
