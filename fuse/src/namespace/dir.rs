//! A directory and what is known of its names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::Found;
use super::file::FileNode;
use super::inode::ROOT_INO;
use super::listing::Listing;
use super::walk::Direction;
use crate::model::key::DirPrefix;
use crate::model::version::ObjectInfo;

/// Most absent names that a directory remembers.
const ABSENT_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// Names removed here that a directory remembers before it looks which are still needed.
const REMOVED_MAX: usize = 4096;
/// How long a removed name is needed: longer than any listing takes.
const REMOVED_KEPT: Duration = Duration::from_secs(600);

/// A directory. Its nodeid never changes while the mount lives.
pub struct Dir {
    /// Its nodeid.
    pub ino: u64,
    place: Mutex<Place>,
    state: Mutex<DirState>,
    /// Held by the one who fetches a listing.
    pub(super) gate: tokio::sync::Mutex<()>,
}

struct Place {
    parent: Option<Arc<Dir>>,
    /// Name in the parent; the prefix for the root.
    name: Box<str>,
}

#[derive(Default)]
struct DirState {
    entries: BTreeMap<Box<str>, Entry>,
    /// Every directory that was ever shown here, so that it keeps its nodeid.
    dirs: HashMap<Box<str>, Arc<Dir>>,
    absent: Option<LruCache<Box<str>, Instant>>,
    /// Names removed here, so that an older listing does not bring them back.
    removed: HashMap<Box<str>, Instant>,
    listed: Option<Listed>,
    /// More than one page: single names are asked for one by one.
    large: bool,
    /// Lookups that had to ask for a single name.
    asked: u32,
    snapshot: Option<Arc<Vec<DirEntry>>>,
    /// What the kernel's directory cache was filled from last.
    shown: Option<Arc<Vec<DirEntry>>>,
    /// Fingerprint of the listing that the index keeps, and when it was put there.
    kept: Option<(u64, Instant)>,
}

#[derive(Clone, Copy)]
struct Listed {
    started: Instant,
    pages: u32,
    marker: bool,
}

struct Entry {
    kind: Kind,
    /// When the origin was asked about it last, or when it was changed here.
    checked: Instant,
    /// When it was changed here: older listings do not count.
    changed: Option<Instant>,
}

enum Kind {
    Dir,
    File {
        info: ObjectInfo,
        node: Weak<FileNode>,
    },
    /// Being written here: the origin's word does not count.
    Writing(Arc<FileNode>),
}

/// What is known of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// There, and recently enough.
    Present,
    /// Not there, and recently enough.
    Absent,
    /// There, but asked for too long ago.
    Expired,
    /// Nothing.
    Unknown,
}

/// One name in a snapshot of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: Box<str>,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// How a name is best asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    /// By listing the directory: one request answers for all its names.
    List,
    /// By the first page of a listing, and alone if there are more.
    FirstPage,
    /// Alone.
    Single,
}

impl Dir {
    /// The directory that shows all keys with this prefix.
    pub fn root(prefix: DirPrefix) -> Arc<Self> {
        Self::new(ROOT_INO, None, prefix.as_str())
    }

    fn new(ino: u64, parent: Option<Arc<Dir>>, name: &str) -> Arc<Self> {
        let place = Place { parent, name: name.into() };
        Arc::new(Self {
            ino,
            place: Mutex::new(place),
            state: Mutex::default(),
            gate: tokio::sync::Mutex::new(()),
        })
    }

    /// The prefix of its keys.
    pub fn prefix(&self) -> DirPrefix {
        let (parent, name) = {
            let place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
            (place.parent.clone(), place.name.clone())
        };
        match parent {
            Some(parent) => parent.prefix().child(&name),
            // The root's name is a prefix that was parsed before.
            None => DirPrefix::parse(&name).unwrap_or_else(|_| DirPrefix::root()),
        }
    }

    /// Parent and name; `None` for the root.
    pub fn place(&self) -> Option<(Arc<Dir>, Box<str>)> {
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        Some((place.parent.clone()?, place.name.clone()))
    }

    /// What is known of `name`, given how long knowledge lasts.
    pub fn known(&self, name: &str, now: Instant, ttl: Duration, negative: Duration) -> Known {
        let mut state = self.state();
        let listed = state.listed.map(|l| l.started);
        if let Some(entry) = state.entries.get(name) {
            let resolved = match &entry.kind {
                Kind::Dir => true,
                Kind::File { info, .. } => info.etag.is_some(),
                Kind::Writing(_) => return Known::Present,
            };
            let checked = listed.map_or(entry.checked, |l| l.max(entry.checked));
            let fresh = now.saturating_duration_since(checked) < ttl;
            return if fresh && resolved { Known::Present } else { Known::Expired };
        }
        let absent = state.absent.as_mut().and_then(|absent| absent.get(name)).copied();
        let checked = absent.into_iter().chain(listed).max();
        match checked {
            Some(at) if now.saturating_duration_since(at) < negative => Known::Absent,
            _ => Known::Unknown,
        }
    }

    /// Whether anything is remembered under this name.
    pub fn has(&self, name: &str) -> bool {
        self.state().entries.contains_key(name)
    }

    /// How long ago the name was asked for.
    pub fn age(&self, name: &str, now: Instant) -> Option<Duration> {
        let state = self.state();
        let checked = state.entries.get(name)?.checked;
        let checked = state.listed.map_or(checked, |l| l.started.max(checked));
        Some(now.saturating_duration_since(checked))
    }

    /// The node under a name, made where needed. `None`: no such entry, or its version is not
    /// known yet.
    pub(super) fn found(
        self: &Arc<Self>,
        name: &str,
        make: impl FnOnce(&Arc<Dir>, &str, &ObjectInfo) -> Arc<FileNode>,
        next_ino: impl FnOnce() -> u64,
    ) -> Option<Found> {
        let mut state = self.state();
        let DirState { entries, dirs, .. } = &mut *state;
        match &mut entries.get_mut(name)?.kind {
            Kind::Dir => {
                let dir = dirs
                    .entry(name.into())
                    .or_insert_with(|| Dir::new(next_ino(), Some(self.clone()), name));
                Some(Found::Dir(dir.clone()))
            }
            Kind::Writing(node) => Some(Found::File(node.clone())),
            Kind::File { info, node } => {
                let version = info.version()?;
                if let Some(known) = node.upgrade()
                    && known.version().as_ref() == Some(&version)
                {
                    known.refresh(info);
                    known.named();
                    return Some(Found::File(known));
                }
                let made = make(self, name, info);
                *node = Arc::downgrade(&made);
                Some(Found::File(made))
            }
        }
    }

    /// Whether the name still shows this node: the same node, or one of the same version.
    pub fn shows(&self, name: &str, node: &Arc<FileNode>) -> bool {
        let mut state = self.state();
        match state.entries.get_mut(name).map(|entry| &mut entry.kind) {
            Some(Kind::Writing(current)) => Arc::ptr_eq(current, node),
            Some(Kind::File { info, node: weak }) => {
                let version = info.version();
                if version.is_none() || version != node.version() {
                    return false;
                }
                match weak.upgrade() {
                    Some(current) => Arc::ptr_eq(&current, node),
                    // Forgotten by the kernel and known again, as by a stale handle.
                    None => {
                        *weak = Arc::downgrade(node);
                        true
                    }
                }
            }
            _ => false,
        }
    }

    /// Makes later lookups of the name find a new node for the same version.
    pub fn detach(&self, name: &str, node: &Arc<FileNode>) {
        if let Some(Entry { kind: Kind::File { node: weak, .. }, .. }) =
            self.state().entries.get_mut(name)
            && weak.as_ptr() == Arc::as_ptr(node)
        {
            *weak = Weak::new();
        }
    }

    pub(super) fn how_to_ask(&self) -> Ask {
        let mut state = self.state();
        state.asked = state.asked.saturating_add(1);
        match (&state.listed, state.large, state.asked) {
            (Some(listed), false, _) if listed.pages == 1 => Ask::List,
            (_, true, _) | (_, false, 1) => Ask::Single,
            _ => Ask::FirstPage,
        }
    }

    /// Whether a listing with this fingerprint is to be put into the index: not the same one
    /// again and again.
    pub(super) fn is_worth_keeping(&self, fingerprint: u64, every: Duration) -> bool {
        let mut state = self.state();
        let known = state.kept.is_some_and(|(of, at)| of == fingerprint && at.elapsed() < every);
        if !known {
            state.kept = Some((fingerprint, Instant::now()));
        }
        !known
    }

    /// Notes that the index keeps no listing any more.
    pub(super) fn forget_kept(&self) {
        self.state().kept = None;
    }

    pub(super) fn set_large(&self) {
        self.state().large = true;
    }

    /// When the last full listing was begun.
    pub fn listed_at(&self) -> Option<Instant> {
        self.state().listed.map(|l| l.started)
    }

    /// Whether a marker object is known to be there.
    pub fn has_marker(&self) -> bool {
        self.state().listed.is_some_and(|l| l.marker)
    }

    /// Takes over a whole listing that was begun at `started`.
    pub(super) fn merge(&self, listing: Listing, started: Instant) {
        let busy = self.busy_among(|name| !listing.entries.contains_key(name));
        let mut state = self.state();
        state.removed.retain(|_, at| *at >= started);
        let DirState { entries, removed, .. } = &mut *state;
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
        state.listed = Some(Listed { started, pages: listing.pages, marker: listing.marker });
        state.large = listing.pages > 1;
        state.absent = None;
        state.snapshot = None;
    }

    /// Takes over what the origin said about one name when asked at `started`.
    pub(super) fn merge_one(
        &self,
        name: &str,
        answer: Option<Option<ObjectInfo>>,
        started: Instant,
    ) {
        let busy = answer.is_none() && !self.busy_among(|other| other == name).is_empty();
        let mut state = self.state();
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

    /// The names, for readdir.
    pub fn snapshot(&self) -> Arc<Vec<DirEntry>> {
        let mut state = self.state();
        if let Some(snapshot) = &state.snapshot {
            return snapshot.clone();
        }
        let shown = state.entries.iter().map(|(name, entry)| DirEntry {
            name: name.clone(),
            is_dir: matches!(entry.kind, Kind::Dir),
        });
        let snapshot = Arc::new(shown.collect::<Vec<_>>());
        state.snapshot = Some(snapshot.clone());
        snapshot
    }

    /// Notes that the kernel is to read this snapshot; says whether the one it read last is equal,
    /// so that it may keep what it remembers.
    pub fn show(&self, snapshot: &Arc<Vec<DirEntry>>) -> bool {
        let before = self.state().shown.replace(snapshot.clone());
        before.is_some_and(|before| Arc::ptr_eq(&before, snapshot) || before == *snapshot)
    }

    /// The names next to `from` in the listing, at most `limit`: directories, or files with what
    /// is known of them.
    pub fn near(
        &self,
        from: &str,
        direction: Direction,
        limit: usize,
        dirs: bool,
    ) -> Vec<(Box<str>, Option<ObjectInfo>)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let state = self.state();
        let wanted = |entry: &Entry| match &entry.kind {
            Kind::Dir if dirs => Some(None),
            Kind::File { info, .. } if !dirs => Some(Some(info.clone())),
            _ => None,
        };
        let entries = &state.entries;
        match direction {
            Direction::Up => {
                let after = entries.range::<str, _>((Excluded(from), Unbounded));
                let found = after.filter_map(|(name, e)| Some((name.clone(), wanted(e)?)));
                found.take(limit).collect()
            }
            Direction::Down => {
                let before = entries.range::<str, _>((Unbounded, Excluded(from))).rev();
                let found = before.filter_map(|(name, e)| Some((name.clone(), wanted(e)?)));
                found.take(limit).collect()
            }
        }
    }

    /// Whether no name is known that the origin holds here, apart from `except`. What is being
    /// written is not at the origin yet.
    pub fn is_empty_but_for(&self, except: &str) -> bool {
        let state = self.state();
        let stored = |entry: &Entry| !matches!(entry.kind, Kind::Writing(_));
        !state.entries.iter().any(|(name, entry)| name.as_ref() != except && stored(entry))
    }

    /// Whether `name` is a file that is being written here.
    pub fn is_writing(&self, name: &str) -> bool {
        let state = self.state();
        matches!(state.entries.get(name), Some(Entry { kind: Kind::Writing(_), .. }))
    }

    /// Notes that a file is being written here, as this node.
    pub fn begin_writing(&self, name: &str, node: &Arc<FileNode>) {
        self.change(name, Some(Kind::Writing(node.clone())));
    }

    /// Notes what a finished write left under the name of this node, if the name still is its.
    /// `None`: it failed, and the origin must be asked what is there.
    pub fn end_writing(&self, name: &str, node: &Arc<FileNode>, info: Option<ObjectInfo>) {
        let still = {
            let mut state = self.state();
            let still = match state.entries.get(name).map(|e| &e.kind) {
                Some(Kind::Writing(current)) => Arc::ptr_eq(current, node),
                _ => false,
            };
            if still && info.is_none() {
                state.entries.remove(name);
                state.listed = None;
                state.snapshot = None;
            }
            still
        };
        if let (true, Some(info)) = (still, info) {
            self.change(name, Some(Kind::File { info, node: Arc::downgrade(node) }));
        }
    }

    /// Notes a file that was put here by a copy on the server.
    pub fn insert_file(&self, name: &str, info: ObjectInfo, node: Option<&Arc<FileNode>>) {
        let node = node.map(Arc::downgrade).unwrap_or_default();
        self.change(name, Some(Kind::File { info, node }));
    }

    /// Notes a directory that was made here.
    pub fn insert_dir(&self, name: &str) {
        self.change(name, Some(Kind::Dir));
    }

    /// Notes that a name was removed here.
    pub fn remove(&self, name: &str) {
        self.change(name, None);
    }

    fn change(&self, name: &str, kind: Option<Kind>) {
        let now = Instant::now();
        let mut state = self.state();
        state.snapshot = None;
        match kind {
            Some(kind) => {
                if let Some(absent) = &mut state.absent {
                    absent.pop(name);
                }
                state.removed.remove(name);
                let entry = Entry { kind, checked: now, changed: Some(now) };
                state.entries.insert(name.into(), entry);
            }
            None => {
                state.entries.remove(name);
                if state.removed.len() >= REMOVED_MAX {
                    // No listing takes that long.
                    state.removed.retain(|_, at| at.elapsed() < REMOVED_KEPT);
                }
                state.removed.insert(name.into(), now);
                let absent = state.absent.get_or_insert_with(|| LruCache::new(ABSENT_MAX));
                absent.put(name.into(), now);
            }
        }
    }

    /// Moves a directory node, with all below it, to another place.
    pub fn move_dir(self: &Arc<Self>, name: &str, to: &Arc<Dir>, new_name: &str) {
        let moved = {
            let mut state = self.state();
            state.dirs.remove(name)
        };
        self.change(name, None);
        if let Some(dir) = moved {
            {
                let mut place = dir.place.lock().unwrap_or_else(PoisonError::into_inner);
                place.parent = Some(to.clone());
                place.name = new_name.into();
            }
            dir.expire();
            to.state().dirs.insert(new_name.into(), dir);
        }
        to.change(new_name, Some(Kind::Dir));
    }

    /// Makes everything known here be asked for again.
    pub fn expire(&self) {
        let children: Vec<Arc<Dir>> = {
            let mut state = self.state();
            state.listed = None;
            state.snapshot = None;
            state.absent = None;
            state.entries.retain(|_, entry| matches!(entry.kind, Kind::Writing(_) | Kind::Dir));
            state.dirs.values().cloned().collect()
        };
        children.iter().for_each(|child| child.expire());
    }

    fn state(&self) -> MutexGuard<'_, DirState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Whether what happened here is newer than an answer asked for at `started`.
    fn outlives(&self, started: Instant) -> bool {
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
