//! Which nodeids the kernel knows.

use std::collections::HashMap;
use std::sync::Arc;

use super::dir::Dir;
use super::file::FileNode;
use crate::sync::atomic::{AtomicU64, Ordering};
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

struct Entry {
    node: Node,
    lookups: u64,
}

/// Nodes by nodeid, with the kernel's references to them.
pub struct InodeTable {
    nodes: RwLock<HashMap<u64, Entry>>,
    next: AtomicU64,
}

impl InodeTable {
    /// A table that knows the root. The nodeids that it gives are above `first`.
    pub fn new(root: Node, first: u64) -> Self {
        let nodes = HashMap::from([(ROOT_INO, Entry { node: root, lookups: 1 })]);
        Self { nodes: RwLock::new(nodes), next: AtomicU64::new(first.max(ROOT_INO) + 1) }
    }

    /// A nodeid that was never given before.
    pub fn next_ino(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The node with this nodeid.
    pub fn get(&self, ino: u64) -> Option<Node> {
        let nodes = unpoisoned(self.nodes.read());
        nodes.get(&ino).map(|entry| entry.node.clone())
    }

    /// Notes that the kernel was told of a node once more.
    pub fn referenced(&self, ino: u64, node: Node) {
        let mut nodes = unpoisoned(self.nodes.write());
        nodes.entry(ino).or_insert(Entry { node, lookups: 0 }).lookups += 1;
    }

    /// Notes that the kernel gave up `count` references.
    pub fn forget(&self, ino: u64, count: u64) {
        let mut nodes = unpoisoned(self.nodes.write());
        let Some(entry) = nodes.get_mut(&ino) else { return };
        entry.lookups = entry.lookups.saturating_sub(count);
        if entry.lookups == 0 && ino != ROOT_INO {
            nodes.remove(&ino);
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
