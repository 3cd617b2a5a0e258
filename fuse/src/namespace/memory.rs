//! Memory for names, over all mounts of a node: what is kept of directories, the nodes that the
//! kernel knows, and open descriptors count towards one limit. Where it is reached, names that were
//! not used for longest are given up, and asked for again when they are used; a directory that is too
//! large by itself is read page by page ([`super::stream`]). Nodes are given up where they take more
//! than half ([`super::inode`]), those of the mount first that has most of them. Descriptors cannot
//! be: their number has a limit.
//!
//! Lock order: the list of directories, then a directory's state or a table of nodes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::dir::Dir;
use super::inode::{InodeTable, Node, Urgency};
use crate::sync::unpoisoned;

/// What a name takes, in bytes: itself, tag and place in the tree; one of 30 bytes with the tag of
/// an upload by parts takes as much.
pub(super) const NAME_BYTES: u64 = 320;
/// What a directory takes whose names nobody asked for yet, in bytes.
pub(super) const DIR_BYTES: u64 = 768;
/// What a node takes that the kernel knows: itself, its name, its version and its place in a table.
pub(super) const NODE_BYTES: u64 = 320;
/// What an open descriptor takes: itself, how it is served, and what is known of the bytes.
const HANDLE_BYTES: u64 = 1024;
/// Descriptors that a mount may always have, while there are few mounts, and however many there are.
const HANDLES_MIN: u64 = 1024;
const HANDLES_LEAST: u64 = 64;
/// What all mounts may always have, but for the least that each may.
const HANDLES_ALL_MIN: u64 = 16 * HANDLES_MIN;
/// What a name takes in a snapshot that an open descriptor goes through.
pub(super) const SNAPSHOT_BYTES: u64 = 80;

/// Where nearly all was in use, it is looked again for names to give up after so long.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The limit, and what counts towards it.
pub struct NameMemory {
    total: u64,
    /// Names, nodes and descriptors.
    used: AtomicU64,
    /// Nodes, with the directories that they hold among the names.
    nodes: AtomicU64,
    /// Open descriptors alone.
    handles: AtomicU64,
    /// Who may have some.
    mounts: AtomicU64,
    /// Beyond so many names are given up at once; above the limit where a look found too few.
    due: AtomicU64,
    started: Instant,
    /// When the last look ended, in milliseconds from the start.
    looked: AtomicU64,
    dirs: Mutex<Vec<Weak<Dir>>>,
    tables: Mutex<Vec<Weak<InodeTable>>>,
}

impl NameMemory {
    /// `total` is the limit in bytes; at least a page of names has room.
    pub fn new(total: u64) -> Arc<Self> {
        let total = total.max(4 * 1000 * NAME_BYTES);
        Arc::new(Self {
            total,
            used: AtomicU64::new(0),
            nodes: AtomicU64::new(0),
            handles: AtomicU64::new(0),
            mounts: AtomicU64::new(0),
            due: AtomicU64::new(total),
            started: Instant::now(),
            looked: AtomicU64::new(0),
            dirs: Mutex::default(),
            tables: Mutex::default(),
        })
    }

    /// The limit in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The most that one directory's names may take.
    pub(super) fn dir_max(&self) -> u64 {
        self.total / 3 * 2
    }

    /// Whether names fit, where needed by giving others up.
    pub(super) fn has_room(&self) -> bool {
        self.settle();
        self.used() <= self.total
    }

    /// An account of its own; nothing is taken yet.
    pub(super) fn account(self: &Arc<Self>) -> Account {
        Account { memory: self.clone(), bytes: 0 }
    }

    /// From now on the names of this directory can be given up.
    pub(super) fn watch(&self, dir: Weak<Dir>) {
        unpoisoned(self.dirs.lock()).push(dir);
    }

    /// From now on nodes of this table can be given up.
    pub(super) fn watch_nodes(&self, table: &Arc<InodeTable>) {
        let mut tables = unpoisoned(self.tables.lock());
        tables.retain(|table| table.strong_count() > 0);
        tables.push(Arc::downgrade(table));
    }

    /// Counts a node that the kernel knows from now on.
    pub(super) fn take_node(&self, node: &Node) {
        self.nodes.fetch_add(bytes_of(node), Ordering::Relaxed);
        self.used.fetch_add(NODE_BYTES, Ordering::Relaxed);
    }

    /// Counts it no longer.
    pub(super) fn give_node_back(&self, node: &Node) {
        self.nodes.fetch_sub(bytes_of(node), Ordering::Relaxed);
        self.used.fetch_sub(NODE_BYTES, Ordering::Relaxed);
    }

    /// Counts a mount, that may have descriptors.
    pub(crate) fn mount_begins(&self) {
        self.mounts.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts it no longer.
    pub(crate) fn mount_ends(&self) {
        self.mounts.fetch_sub(1, Ordering::Relaxed);
    }

    /// Descriptors that each mount may have in any case.
    fn handles_min(&self) -> u64 {
        let mounts = self.mounts.load(Ordering::Relaxed).max(1);
        (HANDLES_ALL_MIN / mounts).clamp(HANDLES_LEAST, HANDLES_MIN)
    }

    /// Whether a mount that has `count` descriptors open may have one more: all mounts together have
    /// half of the limit for them, and one a quarter.
    pub(crate) fn has_room_for_handle(&self, count: usize) -> bool {
        let own = (count as u64).saturating_add(1);
        let all = self.handles.load(Ordering::Relaxed) + HANDLE_BYTES;
        own <= self.handles_min() || own * HANDLE_BYTES <= self.total / 4 && all <= self.total / 2
    }

    /// Counts a descriptor that is open from now on.
    pub(crate) fn take_handle(&self) {
        self.handles.fetch_add(HANDLE_BYTES, Ordering::Relaxed);
        self.used.fetch_add(HANDLE_BYTES, Ordering::Relaxed);
    }

    /// Counts descriptors no longer.
    pub(crate) fn give_handles_back(&self, count: usize) {
        let bytes = count as u64 * HANDLE_BYTES;
        self.handles.fetch_sub(bytes, Ordering::Relaxed);
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Gives names and nodes up, where the limit is passed, until a quarter is free. Neither a
    /// directory's state nor a table of nodes may be locked.
    pub(super) fn settle(&self) {
        if !self.is_due() {
            return;
        }
        let mut dirs = unpoisoned(self.dirs.lock());
        if !self.is_due() {
            return;
        }
        self.give_nodes_up();
        self.give_names_up(&mut dirs);
        // Where nearly all is in use, looking for more at each name would find nothing.
        let due = self.total.max(self.used() + self.total / 8);
        self.due.store(due, Ordering::Relaxed);
        self.looked.store(self.millis(), Ordering::Relaxed);
    }

    fn give_names_up(&self, dirs: &mut Vec<Weak<Dir>>) {
        // None is held meanwhile: what nobody else holds can go.
        let known = dirs.drain(..).filter_map(|dir| Some((dir.upgrade()?.used_at(), dir)));
        let mut known: Vec<_> = known.collect();
        known.sort_by_key(|(at, _)| *at);
        for (_, weak) in known {
            let enough = self.used() <= self.total / 4 * 3;
            let Some(dir) = weak.upgrade() else { continue };
            if enough || dir.give_names_up() {
                dirs.push(weak);
            }
        }
    }

    /// Gives nodes up, where they take more than half, until they take three eighths.
    fn give_nodes_up(&self) {
        let taken = || self.nodes.load(Ordering::Relaxed);
        if taken() <= self.total / 2 {
            return;
        }
        let tables = unpoisoned(self.tables.lock()).clone();
        let mut tables: Vec<_> = tables.iter().filter_map(Weak::upgrade).collect();
        tables.sort_by_cached_key(|table| std::cmp::Reverse(table.len()));
        // What the kernel is asked for it gives up later. It is taken from it where that is not enough.
        let far = self.used() > self.total + self.total / 4;
        for table in tables {
            let more = taken().saturating_sub(self.total / 8 * 3);
            if more == 0 {
                return;
            }
            table.give_up(more, if far { Urgency::Taking } else { Urgency::Asking });
        }
    }

    /// Whether it is time to look for names to give up.
    fn is_due(&self) -> bool {
        let used = self.used();
        if used <= self.total {
            // What the kernel was asked for has come back.
            if self.due.load(Ordering::Relaxed) != self.total {
                self.due.store(self.total, Ordering::Relaxed);
            }
            return false;
        }
        let looked = Duration::from_millis(self.looked.load(Ordering::Relaxed));
        used > self.due.load(Ordering::Relaxed) || self.started.elapsed() >= looked + LOOK_AGAIN
    }

    fn millis(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// What gives way with a node.
fn bytes_of(node: &Node) -> u64 {
    match node {
        Node::Dir(_) => NODE_BYTES + DIR_BYTES,
        Node::File(_) => NODE_BYTES,
    }
}

/// What somebody has taken of the memory for names. Given back when dropped.
pub(super) struct Account {
    memory: Arc<NameMemory>,
    bytes: u64,
}

impl Account {
    /// Takes so many bytes, in place of what was taken before.
    pub(super) fn set(&mut self, bytes: u64) {
        match bytes >= self.bytes {
            true => self.memory.used.fetch_add(bytes - self.bytes, Ordering::Relaxed),
            false => self.memory.used.fetch_sub(self.bytes - bytes, Ordering::Relaxed),
        };
        self.bytes = bytes;
    }

    /// Like [`Account::set`], for a directory's names that others may have to make place for. Says
    /// whether there is room.
    pub(super) fn set_with_room(&mut self, bytes: u64) -> bool {
        self.set(bytes);
        bytes <= self.memory.dir_max() && self.memory.has_room()
    }

    /// Whether something is taken.
    pub(super) fn is_used(&self) -> bool {
        self.bytes > 0
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::key::DirPrefix;

    #[test]
    fn one_mount_opens_no_more_than_a_quarter_and_all_no_more_than_half() {
        let memory = NameMemory::new(64 << 20);
        let open = |before: usize| {
            let more = (before..).take_while(|count| memory.has_room_for_handle(*count));
            more.inspect(|_| memory.take_handle()).count()
        };
        let most = (16 << 20) / HANDLE_BYTES as usize;
        assert_eq!((open(0), open(0)), (most, most));
        assert_eq!(open(0), HANDLES_MIN as usize, "what everybody may have");
        memory.give_handles_back(2 * most);
        assert_eq!(open(HANDLES_MIN as usize), most - HANDLES_MIN as usize);
        memory.give_handles_back(most);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn what_mounts_may_open_in_any_case_is_little_where_they_are_many() {
        let memory = NameMemory::new(0);
        let open = || {
            let more = (0..).take_while(|count| memory.has_room_for_handle(*count));
            more.inspect(|_| memory.take_handle()).count()
        };
        let mut opened = 0;
        for mounts in 1..=1000 {
            memory.mount_begins();
            let more = open();
            let min = (HANDLES_ALL_MIN / mounts).clamp(HANDLES_LEAST, HANDLES_MIN);
            assert_eq!(more as u64, min, "{mounts}");
            opened += more;
        }
        memory.give_handles_back(opened);
        let all: usize = (0..1000).map(|_| open()).sum();
        let half = memory.total() / 2 / HANDLE_BYTES;
        assert!(all as u64 <= half + 1000 * HANDLES_LEAST, "{all}");
        (0..1000).for_each(|_| memory.mount_ends());
        assert_eq!(memory.handles_min(), HANDLES_MIN);
    }

    #[test]
    fn what_was_in_use_is_given_up_when_it_no_longer_is() {
        let memory = NameMemory::new(0);
        let mut others = memory.account();
        others.set(memory.total() + NAME_BYTES);
        assert!(!memory.has_room(), "nobody can give up anything");
        others.set(memory.total() - NAME_BYTES);
        let dir = Dir::root(DirPrefix::root(), memory.clone());
        (0..3).for_each(|n| {
            dir.merge_one(&n.to_string(), Some(None), Instant::now());
        });
        let begun = Instant::now();
        while !memory.has_room() {
            assert!(begun.elapsed() < Duration::from_secs(60), "never looked again");
            std::thread::sleep(LOOK_AGAIN / 10);
        }
        assert!(memory.used() <= memory.total());
    }
}
