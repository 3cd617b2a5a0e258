//! Writers who come back: one who would overwrite a file that readers hold is told ESTALE, so
//! that the kernel looks the name up and gets a new node. Until he has it, readers wait: the
//! first of them would hold the new node just as the old one was held.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::namespace::file::FileNode;

/// How long readers wait for a writer: he comes at once, but for one lookup, or he was killed.
const PATIENCE: Duration = Duration::from_secs(1);

/// By directory and name: until when each of its writers is waited for.
type Expected = HashMap<(u64, Box<str>), Vec<Instant>>;

/// Names whose writers are expected back.
#[derive(Default)]
pub(super) struct Coming {
    names: Mutex<Expected>,
    /// How many names there are: opens look here first.
    count: AtomicUsize,
    changed: Notify,
}

impl Coming {
    /// Expects a writer of this node's name.
    pub(super) fn expect(&self, node: &FileNode) {
        let mut names = self.names();
        let now = Instant::now();
        names.retain(|_, until| {
            until.retain(|until| *until > now);
            !until.is_empty()
        });
        names.entry(place(node)).or_default().push(now + PATIENCE);
        self.count.store(names.len(), Ordering::Release);
    }

    /// Notes that a writer of this node's name has come.
    pub(super) fn arrived(&self, node: &FileNode) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut names = self.names();
        let place = place(node);
        if let Some(until) = names.get_mut(&place) {
            until.pop();
            if until.is_empty() {
                names.remove(&place);
            }
        }
        self.count.store(names.len(), Ordering::Release);
        drop(names);
        self.changed.notify_waiters();
    }

    /// Whether a writer of this node's name is expected.
    pub(super) fn is_expected(&self, node: &FileNode) -> bool {
        self.patience(node).is_some()
    }

    /// Waits until no writer of this node's name is expected any more.
    pub(super) async fn until_arrived(&self, node: &FileNode) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let Some(patience) = self.patience(node) else { return };
            let _ = tokio::time::timeout(patience, changed).await;
        }
    }

    /// How long to wait for the last of them.
    fn patience(&self, node: &FileNode) -> Option<Duration> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let names = self.names();
        let last = names.get(&place(node))?.iter().max()?;
        let left = last.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    fn names(&self) -> MutexGuard<'_, Expected> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(node: &FileNode) -> (u64, Box<str>) {
    let (dir, name) = node.place();
    (dir.ino, name)
}
