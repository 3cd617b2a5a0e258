//! Memory for names, over all mounts of a node: what is kept of directories counts towards one
//! limit. Where it is reached, names that were not used for longest are given up, and asked for
//! again when they are used; a directory that is too large by itself is read page by page
//! ([`super::stream`]).
//!
//! Lock order: the list of directories, then a directory's state.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::dir::Dir;
use crate::sync::unpoisoned;

/// What a name takes, in bytes: itself, tag and place in the tree; one of 30 bytes with the tag of
/// an upload by parts takes as much.
pub(super) const NAME_BYTES: u64 = 320;
/// What a directory takes whose names nobody asked for yet, in bytes.
pub(super) const DIR_BYTES: u64 = 768;
/// What a name takes in a snapshot that an open descriptor goes through.
pub(super) const SNAPSHOT_BYTES: u64 = 80;

/// The limit, and what counts towards it.
pub struct NameMemory {
    total: u64,
    used: AtomicU64,
    /// Beyond so many names are given up.
    due: AtomicU64,
    dirs: Mutex<Vec<Weak<Dir>>>,
}

impl NameMemory {
    /// `total` is the limit in bytes; at least a page of names has room.
    pub fn new(total: u64) -> Arc<Self> {
        let total = total.max(4 * 1000 * NAME_BYTES);
        let (used, due) = (AtomicU64::new(0), AtomicU64::new(total));
        Arc::new(Self { total, used, due, dirs: Mutex::default() })
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
        self.total / 2
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

    /// Gives names up, where the limit is passed, until a quarter is free.
    pub(super) fn settle(&self) {
        let is_due = || self.used() > self.due.load(Ordering::Relaxed);
        if !is_due() {
            return;
        }
        let mut dirs = unpoisoned(self.dirs.lock());
        if !is_due() {
            return;
        }
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
        // Where nearly all is in use, looking for more at each name would find nothing.
        let due = self.total.max(self.used() + self.total / 8);
        self.due.store(due, Ordering::Relaxed);
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
