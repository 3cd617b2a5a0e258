//! What happens to a directory's names here: newer than whatever the origin said before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::{ABSENT_MAX, Dir, Entry, Kind, Place};
use crate::model::version::ObjectInfo;
use crate::namespace::file::FileNode;
use crate::sync::unpoisoned;

/// Names removed here that a directory remembers before it looks which are still needed.
const REMOVED_MAX: usize = 4096;
/// How long it is known what was changed here: longer than any listing takes.
pub(super) const CHANGED_KEPT: Duration = Duration::from_secs(600);

impl Dir {
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
                state.count();
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

    /// Forgets what is known of a name that is not being written here: the origin is asked at its
    /// next use.
    pub fn forget(&self, name: &str) {
        self.update(|state| {
            if matches!(state.entries.get(name), Some(Entry { kind: Kind::Writing(_), .. })) {
                return;
            }
            state.entries.remove(name);
            state.listed = None;
            state.snapshot = None;
            if let Some(absent) = &mut state.absent {
                absent.pop(name);
            }
        });
    }

    /// Notes that a name was removed here.
    pub fn remove(&self, name: &str) {
        self.change(name, None);
    }

    fn change(&self, name: &str, kind: Option<Kind>) {
        let now = Instant::now();
        self.update(|state| {
            state.snapshot = None;
            if let Some(kind) = kind {
                if let Some(absent) = &mut state.absent {
                    absent.pop(name);
                }
                state.removed.remove(name);
                let entry = Entry { kind, checked: now, changed: Some(now) };
                state.entries.insert(name.into(), entry);
                return;
            }
            state.entries.remove(name);
            if state.removed.len() >= REMOVED_MAX {
                // No listing takes that long.
                state.removed.retain(|_, at| at.elapsed() < CHANGED_KEPT);
            }
            state.removed.insert(name.into(), now);
            let absent = state.absent.get_or_insert_with(|| LruCache::new(ABSENT_MAX));
            absent.put(name.into(), now);
        });
    }

    /// Moves a directory node, with all below it, to another place.
    pub fn move_dir(self: &Arc<Self>, name: &str, to: &Arc<Dir>, new_name: &str) {
        let moved = {
            let mut state = self.state();
            state.dirs.remove(name)
        };
        self.change(name, None);
        if let Some(dir) = moved {
            *unpoisoned(dir.place.lock()) = Place::Below(to.clone(), new_name.into());
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
            state.count();
            state.dirs.values().cloned().collect()
        };
        children.iter().for_each(|child| child.expire());
    }
}
