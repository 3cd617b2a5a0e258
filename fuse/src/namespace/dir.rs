//! A directory and what is known of its names.

mod change;
pub mod kernel_cache;
mod merge;
mod room;

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::Node;
use super::file::FileNode;
use super::freshness::{Freshness, Heard};
use super::inode::ROOT_INO;
use super::memory::{Account, NameMemory};
use super::walk::Direction;
use crate::feed::marks::PathHash;
use crate::model::key::DirPrefix;
use crate::model::version::ObjectInfo;
use crate::sync::unpoisoned;
use kernel_cache::{KernelCache, Names, Snapshot};

/// Most absent names that a directory remembers.
const ABSENT_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// A directory. Its nodeid never changes while somebody knows it.
pub struct Dir {
    /// Its nodeid.
    pub ino: u64,
    place: Mutex<Place>,
    state: Mutex<DirState>,
    /// Held by the one who fetches a listing.
    pub(super) gate: tokio::sync::Mutex<()>,
    /// Shared by those who change names below it, exclusive for its own rename.
    pub(crate) names_gate: Arc<tokio::sync::RwLock<()>>,
    memory: Arc<NameMemory>,
    /// Itself.
    me: Weak<Dir>,
}

enum Place {
    /// The root of the mount, which shows this prefix.
    Root(DirPrefix),
    /// Below another directory, under this name.
    Below(Arc<Dir>, Box<str>),
}

struct DirState {
    entries: BTreeMap<Box<str>, Entry>,
    /// Directories that were shown here, so that each keeps its nodeid while somebody knows it.
    dirs: HashMap<Box<str>, Arc<Dir>>,
    absent: Option<LruCache<Box<str>, Instant>>,
    /// Names removed here, so that an older listing does not bring them back.
    removed: HashMap<Box<str>, Instant>,
    listed: Option<LastListing>,
    /// Single names are asked for one by one: there is more than one page, or no right to list.
    singly: bool,
    /// Lookups that had to ask for a single name.
    asked: u32,
    snapshot: Option<Snapshot>,
    kernel_cache: KernelCache,
    /// Fingerprint of the listing that the index keeps, and when it was put there.
    kept: Option<(u64, Instant)>,
    /// Too large to be kept here: it is read page by page.
    vast: bool,
    /// How often names were given up for others'.
    given_up: u64,
    used: Instant,
    account: Account,
    /// Whether names can be given up already.
    watched: bool,
}

impl DirState {
    fn new(account: Account) -> Self {
        Self {
            entries: BTreeMap::new(),
            dirs: HashMap::new(),
            absent: None,
            removed: HashMap::new(),
            listed: None,
            singly: false,
            asked: 0,
            snapshot: None,
            kernel_cache: KernelCache::default(),
            kept: None,
            vast: false,
            given_up: 0,
            used: Instant::now(),
            account,
            watched: false,
        }
    }
}

impl DirState {
    /// How long what is known of a name that is there is still taken as true.
    fn left(&self, name: &str, freshness: &Freshness<'_>, heard: Heard) -> Option<Duration> {
        let entry = self.entries.get(name)?;
        let asked = self.listed.map_or(entry.checked, |listed| listed.started.max(entry.checked));
        Some(match &entry.kind {
            Kind::Dir => freshness.dir_left(asked, heard),
            Kind::File { .. } => freshness.file_left(asked, heard),
            // What others do under its name does not count.
            Kind::Writing(_) => freshness.file_left(asked, Heard::default()),
        })
    }

    fn is_answered(&mut self, name: &str, freshness: &Freshness<'_>, heard: Heard) -> bool {
        if let Some(left) = self.left(name, freshness, heard) {
            return !left.is_zero();
        }
        let absent = self.absent.as_mut().and_then(|absent| absent.get(name)).copied();
        let asked = absent.into_iter().chain(self.listed.map(|listed| listed.started)).max();
        asked.is_some_and(|asked| freshness.is_absent(asked, heard))
    }
}

#[derive(Clone, Copy)]
struct LastListing {
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
pub enum Knowledge {
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
    pub fn root(prefix: DirPrefix, memory: Arc<NameMemory>) -> Arc<Self> {
        Self::new(ROOT_INO, Place::Root(prefix), memory)
    }

    fn new(ino: u64, place: Place, memory: Arc<NameMemory>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            ino,
            place: Mutex::new(place),
            state: Mutex::new(DirState::new(memory.account())),
            gate: tokio::sync::Mutex::new(()),
            names_gate: Arc::default(),
            memory,
            me: me.clone(),
        })
    }

    /// A directory below another one, for tests.
    #[cfg(test)]
    pub(crate) fn below(parent: &Arc<Dir>, name: &str, ino: u64) -> Arc<Self> {
        Self::new(ino, Place::Below(parent.clone(), name.into()), parent.memory.clone())
    }

    /// The prefix of its keys.
    pub fn prefix(&self) -> DirPrefix {
        let (parent, name) = match &*unpoisoned(self.place.lock()) {
            Place::Root(prefix) => return prefix.clone(),
            Place::Below(parent, name) => (parent.clone(), name.clone()),
        };
        parent.prefix().child(&name)
    }

    /// Parent and name; `None` for the root.
    pub fn place(&self) -> Option<(Arc<Dir>, Box<str>)> {
        match &*unpoisoned(self.place.lock()) {
            Place::Root(_) => None,
            Place::Below(parent, name) => Some((parent.clone(), name.clone())),
        }
    }

    /// Hash of the prefix of its keys, which go on from `root`.
    pub(super) fn path_hash(&self, root: PathHash) -> PathHash {
        let (parent, name) = match &*unpoisoned(self.place.lock()) {
            Place::Root(prefix) => return root.then(prefix.as_str()),
            Place::Below(parent, name) => (parent.clone(), name.clone()),
        };
        parent.path_hash(root).then(&name).then("/")
    }

    /// The directory of this name below this one, if it was shown to somebody.
    pub(crate) fn shown_dir(&self, name: &str) -> Option<Arc<Dir>> {
        self.state().dirs.get(name).cloned()
    }

    /// What is known of `name`, given how long knowledge lasts.
    pub(super) fn known(&self, name: &str, freshness: &Freshness<'_>) -> Knowledge {
        let heard = freshness.heard(self, name);
        let mut state = self.state();
        state.used = freshness.now();
        let answered = state.is_answered(name, freshness, heard);
        match state.entries.get(name).map(|entry| &entry.kind) {
            Some(Kind::Writing(_)) => Knowledge::Present,
            Some(Kind::File { info, .. }) if info.etag.is_none() => Knowledge::Expired,
            Some(_) if answered => Knowledge::Present,
            Some(_) => Knowledge::Expired,
            None if answered => Knowledge::Absent,
            None => Knowledge::Unknown,
        }
    }

    /// Whether the origin's answer about a name is known and still true, if not always the version.
    pub(super) fn is_answered(&self, name: &str, freshness: &Freshness<'_>) -> bool {
        let heard = freshness.heard(self, name);
        self.state().is_answered(name, freshness, heard)
    }

    /// How long what is known of a name that is there is still taken as true. Who is told uses it.
    pub(super) fn left(&self, name: &str, freshness: &Freshness<'_>) -> Option<Duration> {
        let heard = freshness.heard(self, name);
        let mut state = self.state();
        state.used = freshness.now();
        state.left(name, freshness, heard)
    }

    /// Whether anything is remembered under this name.
    pub fn has(&self, name: &str) -> bool {
        self.state().entries.contains_key(name)
    }

    /// Whether the origin was asked about a name, there or not, at most so long ago.
    pub fn asked_within(&self, name: &str, age: Duration) -> bool {
        self.asked_at(name).is_some_and(|at| at.elapsed() <= age)
    }

    /// When the origin was asked about a name last, there or not.
    pub(super) fn asked_at(&self, name: &str) -> Option<Instant> {
        let mut state = self.state();
        let listed = state.listed.map(|l| l.started);
        let entry = state.entries.get(name).map(|entry| entry.checked);
        let absent = state.absent.as_mut().and_then(|absent| absent.get(name)).copied();
        listed.into_iter().chain(entry).chain(absent).max()
    }

    /// Whether a name was asked for, or told, so lately.
    pub(crate) fn was_used_within(&self, age: Duration) -> bool {
        self.state().used.elapsed() <= age
    }

    /// The node under a name, made where needed. `None`: no such entry, or its version is not
    /// known yet.
    pub(super) fn found(
        self: &Arc<Self>,
        name: &str,
        make: impl FnOnce(&Arc<Dir>, &str, &ObjectInfo) -> Arc<FileNode>,
        next_ino: impl FnOnce() -> u64,
    ) -> Option<Node> {
        let mut state = self.state();
        let DirState { entries, dirs, .. } = &mut *state;
        match &mut entries.get_mut(name)?.kind {
            Kind::Dir => {
                if let Some(dir) = dirs.get(name) {
                    return Some(Node::Dir(dir.clone()));
                }
                let place = Place::Below(self.clone(), name.into());
                let dir = Dir::new(next_ino(), place, self.memory.clone());
                dirs.insert(name.into(), dir.clone());
                drop(state);
                self.update(|_| ());
                Some(Node::Dir(dir))
            }
            Kind::Writing(node) => Some(Node::File(node.clone())),
            Kind::File { info, node } => {
                let version = info.version()?;
                if let Some(known) = node.upgrade()
                    && known.version().as_ref() == Some(&version)
                {
                    known.refresh(info);
                    known.named();
                    return Some(Node::File(known));
                }
                let made = make(self, name, info);
                *node = Arc::downgrade(&made);
                Some(Node::File(made))
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
                    None if node.is_nameless() => false,
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
        node.give_name_up();
    }

    pub(super) fn how_to_ask(&self) -> Ask {
        let mut state = self.state();
        state.asked = state.asked.saturating_add(1);
        match (&state.listed, state.singly, state.asked) {
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

    /// From now on single names are asked for one by one, until the directory is listed whole.
    pub(super) fn ask_singly(&self) {
        self.state().singly = true;
    }

    /// When the last full listing was begun.
    pub fn listed_at(&self) -> Option<Instant> {
        self.state().listed.map(|l| l.started)
    }

    /// Whether a marker object is known to be there.
    pub fn has_marker(&self) -> bool {
        self.state().listed.is_some_and(|l| l.marker)
    }

    /// The names, for readdir, if they were listed and the beginning of that was recent enough.
    pub(super) fn listed_names(&self, recent: impl Fn(Instant) -> bool) -> Option<Snapshot> {
        let mut state = self.state();
        state.used = Instant::now();
        if !state.listed.is_some_and(|listed| recent(listed.started)) {
            return None;
        }
        if let Some(snapshot) = &state.snapshot {
            return Some(snapshot.clone());
        }
        let shown = state.entries.iter().map(|(name, entry)| DirEntry {
            name: name.clone(),
            is_dir: matches!(entry.kind, Kind::Dir),
        });
        let snapshot = Arc::new(Names::new(shown.collect(), self.memory.account()));
        state.snapshot = Some(snapshot.clone());
        Some(snapshot)
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

    /// Whether a file is being written here.
    pub fn has_writers(&self) -> bool {
        self.state().entries.values().any(|entry| matches!(entry.kind, Kind::Writing(_)))
    }

    /// Whether `name` is a file that is being written here.
    pub fn is_writing(&self, name: &str) -> bool {
        let state = self.state();
        matches!(state.entries.get(name), Some(Entry { kind: Kind::Writing(_), .. }))
    }

    fn state(&self) -> MutexGuard<'_, DirState> {
        unpoisoned(self.state.lock())
    }
}
