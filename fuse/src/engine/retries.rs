//! Which open is the kernel's retry of one that was answered ESTALE: it retries once, at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::admission::Attempt;
use crate::namespace::file::FileNode;

/// How long a thread may take to come back: the kernel asks at once, but for one lookup. One
/// that did not come (it was killed, or the name is gone) makes a first attempt after that.
const KEPT: Duration = Duration::from_secs(5);
/// Threads remembered before those who did not come back are looked for.
const THREADS_MAX: usize = 1024;

/// A name: the nodeid of its directory, and what it is called there.
pub(super) type Place = (u64, Box<str>);

/// Where a node is.
pub(super) fn place_of(node: &FileNode) -> Place {
    let (dir, name) = node.place();
    (dir.ino, name)
}

/// Threads whose retry is expected, with the name that they open. Threads of a pid namespace that
/// cannot be seen have no number (0): they have a retry of a node in common, until a lookup
/// names it, and the node remembers it.
#[derive(Default)]
pub(super) struct Retries {
    threads: Mutex<HashMap<u32, Retry>>,
    /// How many there are: every open looks here first.
    count: AtomicUsize,
}

struct Retry {
    place: Place,
    since: Instant,
}

impl Retries {
    /// Which attempt an open of `node` by this thread is.
    pub(super) fn attempt(&self, thread: u32, node: &FileNode) -> Attempt {
        let retries = match thread {
            0 => node.is_retry_expected(),
            _ if self.count.load(Ordering::Acquire) == 0 => false,
            _ => self
                .threads()
                .get(&thread)
                .is_some_and(|retry| retry.since.elapsed() < KEPT && retry.place == place_of(node)),
        };
        if retries { Attempt::Retry } else { Attempt::First }
    }

    /// Notes that a first attempt is answered ESTALE.
    pub(super) fn expect(&self, thread: u32, node: &FileNode) {
        if thread == 0 {
            return node.expect_retry();
        }
        let mut threads = self.threads();
        if threads.len() >= THREADS_MAX {
            threads.retain(|_, retry| retry.since.elapsed() < KEPT);
        }
        threads.insert(thread, Retry { place: place_of(node), since: Instant::now() });
        self.count.store(threads.len(), Ordering::Release);
    }

    /// Notes that the process itself is answered, whatever it is: its next open is a first one.
    pub(super) fn end(&self, thread: u32) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut threads = self.threads();
        threads.remove(&thread);
        self.count.store(threads.len(), Ordering::Release);
    }

    fn threads(&self) -> MutexGuard<'_, HashMap<u32, Retry>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::model::key::DirPrefix;
    use crate::model::version::ObjectInfo;
    use crate::namespace::dir::Dir;
    use crate::namespace::memory::NameMemory;

    fn node(dir: &Arc<Dir>, ino: u64, name: &str) -> Arc<FileNode> {
        let mtime = SystemTime::UNIX_EPOCH;
        let info = ObjectInfo { size: 1, etag: None, mtime, version_id: None, writer: None };
        FileNode::new(ino, dir.clone(), name, &info)
    }

    #[test]
    fn a_thread_is_told_every_other_time_whatever_the_node() {
        let root = Dir::root(DirPrefix::root(), NameMemory::new(0));
        let (old, new, other) = (node(&root, 5, "f"), node(&root, 6, "f"), node(&root, 7, "g"));
        let retries = Retries::default();
        // Whether it may be told; if so it is.
        let tell = |thread, node| match retries.attempt(thread, node) {
            Attempt::First => {
                retries.expect(thread, node);
                true
            }
            Attempt::Retry => false,
        };
        assert!(tell(1, &old) && tell(2, &old));
        assert!(!tell(1, &new), "the retry found another node of the name");
        retries.end(1);
        assert!(tell(1, &new) && tell(1, &other));
        assert!(tell(0, &old) && !tell(0, &old) && tell(0, &new));
    }
}
