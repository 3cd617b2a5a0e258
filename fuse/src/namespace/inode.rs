//! Which nodeids the kernel knows.
//!
//! How many there are is decided by who walks the tree and by the memory that the kernel has, so they
//! count towards the memory for names ([`super::memory`]). Where that is passed, the kernel is asked
//! to forget those that nobody uses (`FUSE_NOTIFY_PRUNE`, Linux 6.18), and files that nobody has open
//! are given up without it: the next use of such a nodeid is answered ESTALE, and the kernel then
//! looks the name up again.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

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
    /// by [`InodeTable::forget`].
    fn prune(&self, inodes: Vec<u64>);
}

/// How nodes are given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Urgency {
    /// Files, and what the kernel gives up when it is asked to.
    Files,
    /// Directories as well, whatever the kernel does: what is mounted in one is detached, and who
    /// works in one has to go there again.
    All,
}

struct Entry {
    node: Node,
    lookups: u64,
    /// The table's time when it was used last.
    used: AtomicU32,
}

/// Nodes by nodeid, with the kernel's references to them.
pub struct InodeTable {
    nodes: RwLock<HashMap<u64, Entry>>,
    first: u64,
    next: AtomicU64,
    memory: Arc<NameMemory>,
    kernel: OnceLock<Weak<dyn KernelNodes>>,
}

impl InodeTable {
    /// A table that knows the root. The nodeids that it gives are above `first`.
    pub fn new(root: Node, first: u64, memory: Arc<NameMemory>) -> Arc<Self> {
        let entry = Entry { node: root, lookups: 1, used: AtomicU32::new(0) };
        let first = first.max(ROOT_INO) + 1;
        let table = Arc::new(Self {
            nodes: RwLock::new(HashMap::from([(ROOT_INO, entry)])),
            first,
            next: AtomicU64::new(first),
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

    /// Notes that the kernel was told of a node once more. No directory's state may be locked.
    pub fn referenced(&self, ino: u64, node: Node) {
        let used = self.now();
        let mut nodes = unpoisoned(self.nodes.write());
        let before = nodes.len();
        let new = || Entry { node, lookups: 0, used: AtomicU32::new(used) };
        let entry = nodes.entry(ino).or_insert_with(new);
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
        let mut nodes = unpoisoned(self.nodes.write());
        let unused =
            nodes.iter().filter(|(ino, entry)| **ino != ROOT_INO && entry.node.is_unused());
        let mut unused: Vec<(u32, u64)> =
            unused.map(|(ino, entry)| (entry.used.load(Ordering::Relaxed), *ino)).collect();
        if wanted < unused.len() {
            unused.select_nth_unstable(wanted);
            unused.truncate(wanted);
        }
        let inodes: Vec<u64> = unused.into_iter().map(|(_, ino)| ino).collect();
        let mut gone = Vec::new();
        for ino in &inodes {
            let is_dir = nodes.get(ino).is_some_and(|entry| matches!(entry.node, Node::Dir(_)));
            if !is_dir || urgency == Urgency::All {
                gone.extend(nodes.remove(ino));
            }
        }
        drop(nodes);
        // Their directories may go with them.
        gone.into_iter().for_each(|gone: Entry| self.memory.give_node_back(&gone.node));
        if let Some(kernel) = self.kernel.get().and_then(Weak::upgrade)
            && !inodes.is_empty()
        {
            kernel.prune(inodes);
        }
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

impl Drop for InodeTable {
    fn drop(&mut self) {
        let nodes = unpoisoned(self.nodes.get_mut());
        let known = nodes.iter().filter(|(ino, _)| **ino != ROOT_INO);
        known.for_each(|(_, known)| self.memory.give_node_back(&known.node));
    }
}

#[cfg(test)]
mod tests;
