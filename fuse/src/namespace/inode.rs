//! Which nodeids the kernel knows.
//!
//! How many there are is decided by who walks the tree and by the memory that the kernel has, so they
//! count towards the memory for names ([`super::memory`]). Where that is passed, the kernel is asked
//! to forget those that nobody uses (`FUSE_NOTIFY_PRUNE`, Linux 6.18). Where it cannot be asked, or
//! keeps far too many, files that nobody has open are given up without it, and directories last: the
//! next use of such a nodeid is answered ESTALE, and the kernel then looks the name up again. Where
//! there is no name to look up (a file that is mounted by itself, an O_PATH descriptor) it stays ESTALE:
//! so what the kernel was asked to forget and has not is given up last.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use super::dir::Dir;
use super::file::FileNode;
use super::memory::{NODE_BYTES, NameMemory};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{RwLock, unpoisoned};

/// Nodeid of the root directory (`FUSE_ROOT_ID`).
pub const ROOT_INO: u64 = 1;

/// What a nodeid names.
#[derive(Clone)]
pub enum Node {
    /// A directory; its nodeid lasts as long as somebody knows it.
    Dir(Arc<Dir>),
    /// A version of a file.
    File(Arc<FileNode>),
}

impl Node {
    /// Whether nobody but the table and, for a directory, its parent holds it: it is not open, not
    /// being written, and nothing that lies in it is known.
    fn is_unused(&self) -> bool {
        match self {
            Node::Dir(dir) => Arc::strong_count(dir) <= 2,
            Node::File(file) => Arc::strong_count(file) == 1,
        }
    }
}

/// The kernel, as far as it can be asked to forget.
pub trait KernelNodes: Send + Sync {
    /// Asks it to forget those of these nodes that it does not use, soon. What it forgets comes back
    /// by [`InodeTable::forget`]. Says whether it can be asked, as far as is known.
    fn prune(&self, inodes: Vec<u64>) -> bool;
}

/// How nodes are given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Urgency {
    /// What the kernel gives up when it is asked to; files alone where it cannot be asked.
    Asking,
    /// Whatever the kernel does. Directories only where files are not enough: what is mounted in one is
    /// detached, and who works in one has to go there again.
    Taking,
}

struct Entry {
    node: Node,
    lookups: u64,
    /// The table's time when it was used last.
    used: AtomicU32,
    /// When the kernel was asked first to forget it, in seconds from the table's start; 0 before that.
    asked: u32,
}

/// What the kernel has not forgotten so long after it was asked to, in seconds, it needs.
const FORGETS_WITHIN: u32 = 2;

impl Entry {
    fn new(node: Node, lookups: u64, used: u32) -> Self {
        Self { node, lookups, used: AtomicU32::new(used), asked: 0 }
    }

    fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether the kernel needs it, as far as that shows: what nobody uses it forgets when it is asked.
    fn is_needed(&self, seconds: u32) -> bool {
        self.asked > 0 && seconds.saturating_sub(self.asked) > FORGETS_WITHIN
    }
}

/// Nodes by nodeid, with the kernel's references to them.
pub struct InodeTable {
    nodes: RwLock<HashMap<u64, Entry>>,
    first: u64,
    next: AtomicU64,
    started: Instant,
    memory: Arc<NameMemory>,
    kernel: OnceLock<Weak<dyn KernelNodes>>,
}

impl InodeTable {
    /// A table that knows the root. The nodeids that it gives are above `first`.
    pub fn new(root: Node, first: u64, memory: Arc<NameMemory>) -> Arc<Self> {
        let entry = Entry::new(root, 1, 0);
        let first = first.max(ROOT_INO) + 1;
        let table = Arc::new(Self {
            nodes: RwLock::new(HashMap::from([(ROOT_INO, entry)])),
            first,
            next: AtomicU64::new(first),
            started: Instant::now(),
            memory,
            kernel: OnceLock::new(),
        });
        table.memory.watch_nodes(&table);
        table
    }

    /// From now on the kernel can be asked to forget nodes, for as long as this is there.
    pub fn connect(&self, kernel: &Arc<dyn KernelNodes>) {
        let _ = self.kernel.set(Arc::downgrade(kernel));
    }

    /// A nodeid that was never given before.
    pub fn next_ino(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The node with this nodeid.
    pub fn get(&self, ino: u64) -> Option<Node> {
        let nodes = unpoisoned(self.nodes.read());
        nodes.get(&ino).map(|entry| {
            entry.used.store(self.now(), Ordering::Relaxed);
            entry.node.clone()
        })
    }

    /// The node with this nodeid, for who does not use it.
    pub(crate) fn peek(&self, ino: u64) -> Option<Node> {
        unpoisoned(self.nodes.read()).get(&ino).map(|entry| entry.node.clone())
    }

    /// Notes that the kernel was told of a node once more. No directory's state may be locked.
    pub fn referenced(&self, ino: u64, node: Node) {
        let used = self.now();
        let mut nodes = unpoisoned(self.nodes.write());
        let before = nodes.len();
        let entry = nodes.entry(ino).or_insert_with(|| Entry::new(node, 0, used));
        entry.lookups += 1;
        entry.used.store(used, Ordering::Relaxed);
        let known = entry.node.clone();
        let is_new = nodes.len() > before;
        drop(nodes);
        if is_new {
            self.memory.take_node(&known);
            self.memory.settle();
        }
    }

    /// Notes that the kernel gave up `count` references.
    pub fn forget(&self, ino: u64, count: u64) {
        let mut nodes = unpoisoned(self.nodes.write());
        let Some(entry) = nodes.get_mut(&ino) else { return };
        entry.lookups = entry.lookups.saturating_sub(count);
        if entry.lookups == 0 && ino != ROOT_INO {
            let gone = nodes.remove(&ino);
            drop(nodes);
            gone.inspect(|gone| self.memory.give_node_back(&gone.node));
        }
    }

    /// What tells earlier from later: it goes on with the nodes that are made.
    fn now(&self) -> u32 {
        /// Nodes are told apart no better than this.
        const NODES: u64 = 64;
        let made = self.next.load(Ordering::Relaxed) - self.first;
        u32::try_from(made / NODES).unwrap_or(u32::MAX)
    }

    /// Gives up about so many bytes of nodes that nobody uses, those first whose last use is longest
    /// ago.
    pub(super) fn give_up(&self, bytes: u64, urgency: Urgency) {
        let wanted = usize::try_from(bytes.div_ceil(NODE_BYTES)).unwrap_or(usize::MAX);
        let kernel = self.kernel.get().and_then(Weak::upgrade);
        if let (Some(kernel), Urgency::Asking) = (&kernel, urgency)
            && kernel.prune(self.ask_for(wanted))
        {
            return;
        }
        let gone = self.take_unused(wanted, urgency);
        let inodes: Vec<u64> = gone.iter().map(|(ino, _)| *ino).collect();
        // Their directories may go with them.
        gone.into_iter().for_each(|(_, gone)| self.memory.give_node_back(&gone.node));
        if let Some(kernel) = kernel
            && !inodes.is_empty()
        {
            kernel.prune(inodes);
        }
    }

    /// Seconds from the start, and one.
    fn seconds(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).map_or(u32::MAX, |seconds| seconds + 1)
    }

    /// Those that the kernel is to be asked to forget.
    fn ask_for(&self, wanted: usize) -> Vec<u64> {
        let seconds = self.seconds();
        let mut nodes = unpoisoned(self.nodes.write());
        let order = |entry: &Entry| Some((entry.is_needed(seconds), entry.used()));
        let chosen = first_unused(&nodes, wanted, order);
        for ino in &chosen {
            match nodes.get_mut(ino) {
                Some(entry) if entry.asked == 0 => entry.asked = seconds,
                _ => {}
            }
        }
        chosen
    }

    /// Takes nodes out, whatever the kernel does: files, and directories only where these are not
    /// enough and time is short.
    fn take_unused(&self, wanted: usize, urgency: Urgency) -> Vec<(u64, Entry)> {
        let seconds = self.seconds();
        let mut nodes = unpoisoned(self.nodes.write());
        let order = |entry: &Entry| {
            let is_dir = matches!(entry.node, Node::Dir(_));
            let goes = !is_dir || urgency == Urgency::Taking;
            goes.then(|| (entry.is_needed(seconds), is_dir, entry.used()))
        };
        let chosen = first_unused(&nodes, wanted, order);
        chosen.into_iter().filter_map(|ino| nodes.remove_entry(&ino)).collect()
    }

    /// How many nodes the kernel knows.
    pub fn len(&self) -> usize {
        unpoisoned(self.nodes.read()).len()
    }

    /// Never: the root is always known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// So many of the nodes that nobody uses, those that come first in this `order` and have a place in it.
fn first_unused<T: Ord>(
    nodes: &HashMap<u64, Entry>,
    count: usize,
    order: impl Fn(&Entry) -> Option<T>,
) -> Vec<u64> {
    let unused = nodes.iter().filter(|(ino, entry)| **ino != ROOT_INO && entry.node.is_unused());
    let mut all: Vec<(T, u64)> =
        unused.filter_map(|(ino, entry)| Some((order(entry)?, *ino))).collect();
    if count < all.len() {
        all.select_nth_unstable(count);
        all.truncate(count);
    }
    all.into_iter().map(|(_, ino)| ino).collect()
}

impl Drop for InodeTable {
    fn drop(&mut self) {
        let nodes = unpoisoned(self.nodes.get_mut());
        let known = nodes.iter().filter(|(ino, _)| **ino != ROOT_INO);
        known.for_each(|(_, known)| self.memory.give_node_back(&known.node));
    }
}

#[cfg(test)]
mod tests;
