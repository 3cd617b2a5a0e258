//! What the origin says about a directory's names, taken over where nothing newer happened here.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Instant;

use lru::LruCache;

use super::{ABSENT_MAX, Dir, DirState, Entry, Kind, LastListing};
use crate::model::version::ObjectInfo;
use crate::namespace::listing::Listing;

impl Dir {
    /// Takes over a whole listing that was begun at `started`.
    pub(in crate::namespace) fn merge(&self, listing: Listing, started: Instant) {
        let busy = self.busy_among(|name| !listing.entries.contains_key(name));
        self.update(|state| state.merge(listing, &busy, started));
    }

    /// As [`Dir::merge`], of a listing that was kept, unless one was taken over while the disk was waited
    /// for. Says whether it was taken over.
    pub(in crate::namespace) fn merge_kept(&self, listing: Listing, started: Instant) -> bool {
        let busy = self.busy_among(|name| !listing.entries.contains_key(name));
        self.update(|state| {
            let is_first = state.listed.is_none();
            if is_first {
                state.merge(listing, &busy, started);
            }
            is_first
        })
    }

    /// Takes over what the origin said about one name when asked at `started`.
    pub(in crate::namespace) fn merge_one(
        &self,
        name: &str,
        answer: Option<Option<ObjectInfo>>,
        started: Instant,
    ) {
        let busy = answer.is_none() && !self.busy_among(|other| other == name).is_empty();
        self.update(|state| {
            state.snapshot = None;
            if state.removed.get(name).is_some_and(|at| *at >= started) {
                return;
            }
            let before = state.entries.remove(name);
            match (before, answer) {
                (Some(entry), _) if busy || entry.outlives(started) => {
                    state.entries.insert(name.into(), entry);
                }
                (before, Some(info)) => {
                    state.entries.insert(name.into(), Entry::merged(before, info, started));
                }
                (_, None) => {
                    let absent = state.absent.get_or_insert_with(|| LruCache::new(ABSENT_MAX));
                    absent.put(name.into(), started);
                }
            }
        });
    }

    /// Those of the directories here, as far as `asked` wants to know, below which a file is being
    /// written: they are there, whatever the origin says.
    fn busy_among(&self, asked: impl Fn(&str) -> bool) -> HashSet<Box<str>> {
        let dirs: Vec<(Box<str>, Arc<Dir>)> = {
            let state = self.state();
            let shown = |name: &str| matches!(state.entries.get(name), Some(e) if matches!(e.kind, Kind::Dir));
            let wanted = state.dirs.iter().filter(|(name, _)| asked(name) && shown(name));
            wanted.map(|(name, dir)| (name.clone(), dir.clone())).collect()
        };
        let busy = dirs.into_iter().filter(|(_, dir)| dir.is_busy());
        busy.map(|(name, _)| name).collect()
    }

    fn is_busy(&self) -> bool {
        let writing = |entry: &Entry| matches!(entry.kind, Kind::Writing(_));
        let here = self.state().entries.values().any(writing);
        here || !self.busy_among(|_| true).is_empty()
    }
}

impl DirState {
    fn merge(&mut self, listing: Listing, busy: &HashSet<Box<str>>, started: Instant) {
        self.removed.retain(|_, at| *at >= started);
        let Self { entries, removed, .. } = self;
        let mut old = std::mem::take(entries);
        for (name, info) in listing.entries {
            if removed.contains_key(&name) {
                continue;
            }
            let before = old.remove(&name);
            let entry = match before {
                Some(entry) if entry.outlives(started) => entry,
                before => Entry::merged(before, info, started),
            };
            entries.insert(name, entry);
        }
        for (name, entry) in old {
            if entry.outlives(started) || busy.contains(&name) {
                entries.insert(name, entry);
            }
        }
        self.listed = Some(LastListing { started, pages: listing.pages, marker: listing.marker });
        self.singly = listing.pages > 1;
        self.vast = false;
        self.absent = None;
        self.snapshot = None;
    }
}

impl Entry {
    /// Whether what happened here is newer than an answer asked for at `started`.
    pub(super) fn outlives(&self, started: Instant) -> bool {
        matches!(self.kind, Kind::Writing(_)) || self.changed.is_some_and(|at| at >= started)
    }

    /// The entry for an answer, keeping the node of the entry before it.
    fn merged(before: Option<Entry>, info: Option<ObjectInfo>, started: Instant) -> Entry {
        let Some(info) = info else {
            return Entry { kind: Kind::Dir, checked: started, changed: None };
        };
        let node = match before.map(|entry| entry.kind) {
            Some(Kind::File { node, .. }) => node,
            _ => Weak::new(),
        };
        Entry { kind: Kind::File { info, node }, checked: started, changed: None }
    }
}
