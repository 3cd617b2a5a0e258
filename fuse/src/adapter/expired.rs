//! Tells the kernel that a name may lead elsewhere by now: `FUSE_NOTIFY_INVAL_ENTRY` with
//! `FUSE_EXPIRE_ONLY` (Linux 6.2, FUSE 7.38, include/uapi/linux/fuse.h). Its next use is a LOOKUP, and
//! what is mounted on it, or below it, stays. An older kernel does not read the flag, and takes the
//! name away with all of that, as any kernel does without it: so it is told nothing.
//!
//! The kernel locks the directory for it, which whoever looks a name up there has locked until he is
//! answered (fs/fuse/dir.c, `fuse_reverse_inval_entry`): so a thread waits that does nothing else. It
//! keeps the connection meanwhile, also where its process is killed.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::model::key::check_name;

/// The notification's number.
const NOTIFY_INVAL_ENTRY: i32 = 3;
/// The flag.
const EXPIRE_ONLY: u32 = 1 << 0;
/// `fuse_out_header` and `fuse_notify_inval_entry_out`, in bytes.
const HEADERS: usize = 16 + 16;
/// Names that wait. What is not told ends with the lifetime that the kernel was given.
const WAITING_MAX: usize = 1024;

/// Names that the kernel at the other end of a connection is about to be told of.
pub struct ExpiredNames {
    device: Arc<OwnedFd>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Each with the nodeid of its directory.
    waiting: BTreeSet<(u64, Box<str>)>,
    /// Whether a thread tells them.
    is_told: bool,
    /// Whether the kernel has said that it does not know the notification.
    is_unknown: bool,
}

impl ExpiredNames {
    /// `device` is a descriptor of the connection, of a kernel that knows the flag.
    pub fn new(device: Arc<OwnedFd>) -> Arc<Self> {
        Arc::new(Self { device, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the kernel of one, soon; waits for nothing.
    pub fn add(self: &Arc<Self>, parent: u64, name: &str) {
        if check_name(name).is_err() {
            return;
        }
        let mut state = self.state();
        if state.is_unknown || state.waiting.len() >= WAITING_MAX {
            return;
        }
        state.waiting.insert((parent, name.into()));
        if std::mem::replace(&mut state.is_told, true) {
            return;
        }
        drop(state);
        let names = self.clone();
        let thread = std::thread::Builder::new().name("expired".into());
        if let Err(error) = thread.spawn(move || names.tell()) {
            tracing::debug!(%error, "the kernel is not told of names that expired");
            *self.state() = State::default();
        }
    }

    fn tell(&self) {
        while let Some((parent, name)) = self.next() {
            match rustix::io::write(&*self.device, &message(parent, &name)) {
                // It may know no such name, nor such a directory.
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error @ (Errno::INVAL | Errno::NOSYS)) => {
                    tracing::info!(%error, "this kernel is not told of names that expired");
                    self.state().is_unknown = true;
                }
                // The connection has ended.
                Err(error) => tracing::debug!(%error, "an expired name is not told"),
            }
        }
    }

    /// One of those that wait; where there is none, the thread has ended.
    fn next(&self) -> Option<(u64, Box<str>)> {
        let mut state = self.state();
        if state.is_unknown {
            state.waiting.clear();
        }
        let next = state.waiting.pop_first();
        state.is_told = next.is_some();
        next
    }
}

fn message(parent: u64, name: &str) -> Vec<u8> {
    let length = HEADERS + name.len() + 1;
    let mut message = Vec::with_capacity(length);
    // Length, notification, and a unique of 0.
    message.extend((length as u32).to_ne_bytes());
    message.extend(NOTIFY_INVAL_ENTRY.to_ne_bytes());
    message.extend(0u64.to_ne_bytes());
    message.extend(parent.to_ne_bytes());
    message.extend((name.len() as u32).to_ne_bytes());
    message.extend(EXPIRE_ONLY.to_ne_bytes());
    message.extend(name.as_bytes());
    message.push(0);
    message
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;

    fn eventually(what: &str, mut check: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(60);
        while !check() {
            assert!(Instant::now() < until, "never happened: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn the_message_is_the_kernels_and_has_the_flag() {
        let mut expected = Vec::new();
        expected.extend(36u32.to_ne_bytes());
        expected.extend(3i32.to_ne_bytes());
        expected.extend([0; 8]);
        expected.extend(7u64.to_ne_bytes());
        expected.extend(3u32.to_ne_bytes());
        expected.extend(1u32.to_ne_bytes());
        expected.extend("ü1\0".as_bytes());
        assert_eq!(message(7, "ü1"), expected);
    }

    #[test]
    fn names_are_told_once_and_not_all_of_a_flood() {
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (kernel, device) = rustix::net::socketpair(kind.0, kind.1, kind.2, None).unwrap();
        let names = ExpiredNames::new(Arc::new(device));
        let read = || {
            let mut buffer = [0; 512];
            let read = rustix::io::read(&kernel, &mut buffer).unwrap();
            buffer[..read].to_vec()
        };
        // Its thread waits for who does not read; the others wait behind.
        let long = "x".repeat(255);
        for n in 0..4000 {
            names.add(n, &long);
        }
        let last = (u64::MAX, "last");
        eventually("it waits", || names.state().waiting.len() == WAITING_MAX);
        names.add(last.0, last.1);
        names.state().waiting.pop_first();
        names.add(last.0, last.1);
        names.add(last.0, last.1);
        assert_eq!(names.state().waiting.len(), WAITING_MAX);
        let mut told = Vec::new();
        while told.last() != Some(&message(last.0, last.1)) {
            told.push(read());
        }
        eventually("its thread ends", || !names.state().is_told);
        assert!(told.len() < 4000);
        names.add(1, "again");
        assert_eq!(read(), message(1, "again"));
    }

    #[test]
    fn a_kernel_that_knows_no_such_message_is_told_once() {
        use rustix::process::{PidfdFlags, getpid, pidfd_open};
        // What cannot be written to is EINVAL, as of a kernel that does not know it.
        let deaf = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let names = ExpiredNames::new(Arc::new(deaf));
        names.add(1, "a");
        eventually("it is known", || names.state().is_unknown && !names.state().is_told);
        names.add(1, "b");
        assert!(names.state().waiting.is_empty() && !names.state().is_told);
    }
}
