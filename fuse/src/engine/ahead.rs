//! Work done ahead of somebody who goes through a tree: small files are fetched and directories
//! listed before they are asked for.

use std::sync::Arc;

use super::SMALL_MAX;
use super::session::Session;
use crate::model::version::{ObjectInfo, VersionKey};
use crate::namespace::Node;
use crate::namespace::dir::Dir;
use crate::namespace::file::FileNode;
use crate::namespace::walk::{Depth, Direction, Named, Walks};

/// Small files fetched ahead: enough for a link of 1 Gbit/s and tens of milliseconds.
const FILES: Depth = Depth { enough: 2, max: 128 };
/// Directories listed ahead.
const LISTINGS: Depth = Depth { enough: 1, max: 16 };
/// Listings ahead that are under way at once: more than S3 gains nothing, and the walker waits.
const LISTS_MAX: usize = 8;
/// Directories that one walker may be ahead of, when each holds few files.
const DIRS_MAX: usize = 8;

/// Who walks where.
pub(super) struct Walkers {
    files: Walks,
    /// By parent: directories whose files are walked.
    dirs: Walks,
    /// By parent: directories that are listed.
    listings: Walks,
    listing: Arc<tokio::sync::Semaphore>,
}

impl Default for Walkers {
    fn default() -> Self {
        Self {
            files: Walks::new(FILES),
            dirs: Walks::new(LISTINGS),
            listings: Walks::new(LISTINGS),
            listing: Arc::new(tokio::sync::Semaphore::new(LISTS_MAX)),
        }
    }
}

impl Session {
    /// Notes that a small file was opened; `missed` says that its bytes were not here. Fetches
    /// those that are likely next.
    pub(super) fn follow_files(self: &Arc<Self>, node: &Arc<FileNode>, missed: bool) {
        let (dir, name) = node.place();
        if !missed && !self.walkers.files.is_followed(dir.ino) {
            return;
        }
        if dir.listed_at().is_none() {
            let (names, dir) = (self.names.clone(), dir.clone());
            self.engine.runtime.spawn(async move { names.read_dir(&dir).await.map(|_| ()) });
            return;
        }
        let ahead = self.walkers.files.stepped(dir.ino, &name, |from, direction, count| {
            files_near(&dir, from, direction, count)
        });
        let Some(ahead) = ahead else { return };
        let session = self.clone();
        // Who opens the file does not wait for what is looked up of others.
        self.engine.runtime.spawn(async move {
            let fetched = session.fetch_ahead(&dir, &ahead.names).await;
            if fetched == 0 && !ahead.names.is_empty() {
                // All here already: nothing is gained by looking on.
                session.walkers.files.end(dir.ino);
            } else if ahead.lacking > 0 {
                session.follow_into_next(&dir, ahead.direction, ahead.lacking);
            }
        });
    }

    /// Fetches the small ones of these files that are not here; says how many.
    async fn fetch_ahead(self: &Arc<Self>, dir: &Arc<Dir>, files: &[Named<ObjectInfo>]) -> usize {
        let prefix = dir.prefix();
        let mut fetched = 0;
        for (name, info) in files {
            let Some(version) = info.version().filter(|v| v.size > 0 && v.size <= SMALL_MAX) else {
                continue;
            };
            let bucket = self.names.bucket().clone();
            let key = VersionKey { bucket, key: prefix.key_of(name).into(), version };
            let source = self.source_in_turn(&key).await;
            if !source.version.is_complete() {
                let size = source.version.size();
                self.engine.reader.prefetch(&source, 0..size);
                fetched += 1;
            }
        }
        fetched
    }

    /// Goes on in the directory after `dir`, where the directories are walked in order, too.
    fn follow_into_next(self: &Arc<Self>, dir: &Arc<Dir>, direction: Direction, count: usize) {
        let Some((parent, name)) = dir.place() else { return };
        self.walkers.dirs.stepped(parent.ino, &name, |from, direction, count| {
            dirs_near(&parent, from, direction, count)
        });
        if self.walkers.dirs.direction(parent.ino) != Some(direction) {
            return;
        }
        let session = self.clone();
        let first = name;
        self.engine.runtime.spawn(async move {
            let (mut from, mut left) = (first, count);
            for _ in 0..DIRS_MAX {
                let near = dirs_near(&parent, &from, direction, 1);
                let Some((next, ())) = near.into_iter().next() else { return };
                left = session.fetch_dir_ahead(&parent, &next, direction, left).await;
                if left == 0 {
                    return;
                }
                from = next;
            }
        });
    }

    /// Fetches the first files of a directory; says how many more are wanted.
    async fn fetch_dir_ahead(
        self: &Arc<Self>,
        parent: &Arc<Dir>,
        name: &str,
        direction: Direction,
        count: usize,
    ) -> usize {
        let Some(Ok(Node::Dir(dir))) = self.names.present(parent, name) else { return 0 };
        if self.names.read_dir(&dir).await.is_err() {
            return 0;
        }
        let more = self.walkers.files.extend(dir.ino, count, |from, direction, count| {
            files_near(&dir, from, direction, count)
        });
        if let Some((before, files)) = more {
            self.fetch_ahead(&dir, &files).await;
            return count - before - files.len();
        }
        let start = match direction {
            Direction::Up => String::new(),
            Direction::Down => char::MAX.to_string(),
        };
        let files = files_near(&dir, &start, direction, count);
        let Some((front, _)) = files.last() else { return count };
        self.walkers.files.came_from_elsewhere(dir.ino, direction, front, files.len());
        self.fetch_ahead(&dir, &files).await;
        count - files.len()
    }

    /// Notes that a directory was listed. Lists those that are likely next.
    pub(super) fn follow_listings(self: &Arc<Self>, dir: &Arc<Dir>) {
        let Some((parent, name)) = dir.place() else { return };
        let ahead = self.walkers.listings.stepped(parent.ino, &name, |from, direction, count| {
            dirs_near(&parent, from, direction, count)
                .into_iter()
                .map(|(name, ())| (name.clone(), name))
                .collect()
        });
        for (name, _) in ahead.into_iter().flat_map(|ahead| ahead.names) {
            let Some(Ok(Node::Dir(next))) = self.names.present(&parent, &name) else { continue };
            let (names, limit) = (self.names.clone(), self.walkers.listing.clone());
            self.engine.runtime.spawn(async move {
                let _slot = limit.acquire().await;
                // Who comes for it asks again and is told what is wrong.
                let _ = names.read_dir(&next).await;
            });
        }
    }
}

fn files_near(dir: &Dir, from: &str, direction: Direction, count: usize) -> Vec<Named<ObjectInfo>> {
    let near = dir.near(from, direction, count, false).into_iter();
    near.filter_map(|(name, info)| Some((name, info?))).collect()
}

fn dirs_near(dir: &Dir, from: &str, direction: Direction, count: usize) -> Vec<Named<()>> {
    dir.near(from, direction, count, true).into_iter().map(|(name, _)| (name, ())).collect()
}
