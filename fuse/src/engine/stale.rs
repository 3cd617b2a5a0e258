//! Who was told ESTALE.
//!
//! The kernel answers ESTALE from open with one lookup and one more open, whatever inode that
//! names; a second ESTALE goes to the process. Where there is no name to look up (a file mounted
//! by subPath, `/proc/self/fd`) it opens the same node again, which must then succeed if it can.
//! So a thread is told at most every other time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::namespace::file::FileNode;

/// How long a thread may take to come back: the kernel asks at once, but for one lookup. One
/// that did not come (it was killed, or the name is gone) is told again after that.
const KEPT: Duration = Duration::from_secs(5);
/// Threads remembered before those who did not come back are looked for.
const THREADS_MAX: usize = 1024;

/// Threads that were told ESTALE and are expected back, with the name that they open.
#[derive(Default)]
pub(super) struct Told {
    threads: Mutex<HashMap<u32, Retry>>,
    /// How many there are: every open looks here first.
    count: AtomicUsize,
}

struct Retry {
    dir: u64,
    name: Box<str>,
    told: Instant,
}

impl Told {
    /// Whether this thread may be told that the node is stale; if so it counts as told. Threads
    /// of a pid namespace that cannot be seen have no number (0): then a node is told once
    /// until a lookup names it.
    pub(super) fn may_tell(&self, thread: u32, node: &FileNode) -> bool {
        if thread == 0 {
            return node.tell_stale_once();
        }
        let (dir, name) = node.place();
        let mut threads = self.threads();
        let comes_back = |retry: &Retry| {
            retry.dir == dir.ino && retry.name == name && retry.told.elapsed() < KEPT
        };
        if threads.get(&thread).is_some_and(comes_back) {
            return false;
        }
        if threads.len() >= THREADS_MAX {
            threads.retain(|_, retry| retry.told.elapsed() < KEPT);
        }
        threads.insert(thread, Retry { dir: dir.ino, name, told: Instant::now() });
        self.count.store(threads.len(), Ordering::Release);
        true
    }

    /// Notes that an open of this thread ended otherwise.
    pub(super) fn ended(&self, thread: u32) {
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

    fn node(dir: &Arc<Dir>, ino: u64, name: &str) -> Arc<FileNode> {
        let mtime = SystemTime::UNIX_EPOCH;
        let info = ObjectInfo { size: 1, etag: None, mtime, version_id: None, writer: None };
        FileNode::new(ino, dir.clone(), name, &info)
    }

    #[test]
    fn a_thread_is_told_every_other_time_whatever_the_node() {
        let root = Dir::root(DirPrefix::root());
        let (old, new, other) = (node(&root, 5, "f"), node(&root, 6, "f"), node(&root, 7, "g"));
        let told = Told::default();
        assert!(told.may_tell(1, &old) && told.may_tell(2, &old));
        assert!(!told.may_tell(1, &new), "the retry found another node of the name");
        told.ended(1);
        assert!(told.may_tell(1, &new) && told.may_tell(1, &other));
        assert!(told.may_tell(0, &old) && !told.may_tell(0, &old) && told.may_tell(0, &new));
    }
}
