//! Names that somebody else may have changed, and the kernel, which takes what it was told of one for
//! true while that has a lifetime.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::kernel::KernelPort;
use super::session::Session;
use crate::feed::Change;
use crate::feed::hearing::Listener;
use crate::namespace::Node;

/// Longest time from the use of a directory to an answer that tells the kernel of one of its names.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Names of a directory that wait until its requests are answered; others end with their lifetime.
const WAITING_MAX: usize = 1024;

/// The kernel, as far as it is to be told of names, and the directories about which it waits for us.
///
/// To be told of a name it locks the directory, which it has locked while it waits for a name in it.
/// So nothing is told of a directory before what it asked of that is answered: who asks for another
/// name there does not wait behind the first; and what was found out before the name was changed has
/// reached the kernel by then, and is not believed any more.
pub(crate) struct KernelNames {
    port: OnceLock<Arc<dyn KernelPort>>,
    asked: Mutex<HashMap<u64, Asked>>,
    started: Instant,
    /// When it asked for a name last, in seconds from the start.
    last: AtomicU64,
}

impl Default for KernelNames {
    fn default() -> Self {
        let (port, asked) = (OnceLock::new(), Mutex::default());
        Self { port, asked, started: Instant::now(), last: AtomicU64::new(0) }
    }
}

/// A directory of which something was asked.
#[derive(Default)]
struct Asked {
    requests: usize,
    expired: BTreeSet<Box<str>>,
}

/// A request about names of a directory, until it is answered.
pub(crate) struct Asking {
    names: Arc<KernelNames>,
    parent: u64,
}

impl KernelNames {
    fn asked(&self) -> MutexGuard<'_, HashMap<u64, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>, parent: u64) -> Option<Asking> {
        self.port.get()?;
        self.last.store(self.started.elapsed().as_secs(), Ordering::Relaxed);
        self.asked().entry(parent).or_default().requests += 1;
        Some(Asking { names: self.clone(), parent })
    }

    /// Whether it asked for a name so lately.
    fn asked_within(&self, age: Duration) -> bool {
        let last = Duration::from_secs(self.last.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last) <= age
    }

    fn expire(&self, parent: u64, name: &str) {
        static TOLD: Once = Once::new();
        let Some(port) = self.port.get() else {
            let text = "this kernel cannot be told that names expired (Linux 6.2 can): what others \
                        change is seen after --metadata-ttl";
            return TOLD.call_once(|| tracing::info!("{text}"));
        };
        if let Some(asked) = self.asked().get_mut(&parent) {
            if asked.expired.len() < WAITING_MAX {
                asked.expired.insert(name.into());
            }
            return;
        }
        port.expire(parent, name);
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut all = self.names.asked();
        let Some(asked) = all.get_mut(&self.parent) else { return };
        asked.requests -= 1;
        if asked.requests > 0 {
            return;
        }
        let expired = all.remove(&self.parent).map(|asked| asked.expired).unwrap_or_default();
        drop(all);
        if let Some(port) = self.names.port.get() {
            expired.iter().for_each(|name| port.expire(self.parent, name));
        }
    }
}

impl Session {
    /// The kernel can be told of names by this port.
    pub fn connect_names(&self, port: Arc<dyn KernelPort>) {
        let _ = self.kernel_names.port.set(port);
    }

    /// Notes that the kernel asks for names of this directory, until it is answered.
    pub(crate) fn begin_asking(&self, parent: u64) -> Option<Asking> {
        self.kernel_names.begin(parent)
    }

    /// Tells the kernel, soon, that this name of a directory may lead elsewhere by now: it asks at the
    /// next use. What is remembered here is to be doubted before. Nothing is told of a directory of which
    /// the kernel believes nothing any more.
    pub fn expire(&self, parent: u64, name: &str) {
        let Some(Node::Dir(dir)) = self.names.inodes.peek(parent) else { return };
        if dir.was_used_within(self.belief()) {
            self.kernel_names.expire(parent, name);
        }
    }

    /// How long the kernel may believe what it was told, from when its directory was used.
    fn belief(&self) -> Duration {
        self.names.ttl().max(self.negative_ttl()).saturating_add(ANSWER_MAX)
    }
}

impl Listener for Session {
    /// A name that the kernel knows may be that of the object, or of a directory that came with it, or is
    /// gone with it.
    fn changed(&self, change: &Change) {
        let prefix = self.names.settings.prefix.as_str();
        let Some(mut rest) = change.key.strip_prefix(prefix) else { return };
        if !self.kernel_names.asked_within(self.belief()) {
            return;
        }
        let mut dir = self.names.root().clone();
        loop {
            let (name, behind) = match rest.split_once('/') {
                Some((name, behind)) => (name, Some(behind)),
                None => (rest, None),
            };
            if name.is_empty() {
                return;
            }
            let below = behind.and_then(|_| dir.shown_dir(name));
            if below.is_none() || change.gone {
                self.expire(dir.ino, name);
            }
            let (Some(below), Some(behind)) = (below, behind) else { return };
            (dir, rest) = (below, behind);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;

    use super::*;
    use crate::blocking::MayBlock;

    #[derive(Default)]
    struct Told(Mutex<Vec<(u64, String)>>);

    impl KernelPort for Told {
        fn open_backing(&self, _: &MayBlock, _: &File) -> io::Result<u32> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn close_backing(&self, _: u32) {}

        fn expire(&self, parent: u64, name: &str) {
            self.0.lock().unwrap().push((parent, name.to_owned()));
        }
    }

    #[test]
    fn a_name_is_told_once_all_that_was_asked_of_its_directory_is_answered() {
        let (names, told) = (Arc::new(KernelNames::default()), Arc::new(Told::default()));
        let taken = || std::mem::take(&mut *told.0.lock().unwrap());
        names.expire(1, "nobody to tell");
        assert!(names.begin(1).is_none());
        names.port.set(told.clone()).ok().unwrap();
        let (one, two) = (names.begin(1), names.begin(1));
        for (parent, name) in [(1, "a"), (1, "a"), (1, "b"), (2, "c")] {
            names.expire(parent, name);
        }
        assert_eq!(taken(), [(2, "c".to_owned())]);
        drop(one);
        assert_eq!(taken(), []);
        drop(two);
        assert_eq!(taken(), [(1, "a".to_owned()), (1, "b".to_owned())]);
        names.expire(1, "a");
        assert_eq!(taken(), [(1, "a".to_owned())]);
        assert!(names.asked().is_empty());
    }
}
