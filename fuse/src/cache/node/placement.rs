//! Which disk a version is on: it is looked for in memory and in the disks' indexes, and one that is
//! nowhere gets a disk. No lock is held while a disk is waited for.

use std::sync::Arc;

use super::{NodeCache, lock};
use crate::blocking::{MayBlock, in_place};
use crate::cache::disk::{DiskCache, Seen};
use crate::cache::space::Need;
use crate::cache::staging::StagingFile;
use crate::cache::version::CachedVersion;
use crate::model::version::VersionKey;

/// What some disks' indexes say of a version; of one that is held, the last of them.
type Looked<'a> = Vec<(&'a Arc<DiskCache>, Seen)>;

fn is_found(looked: &Looked<'_>) -> bool {
    looked.last().is_some_and(|(_, seen)| seen.is_held())
}

impl NodeCache {
    /// The version with this identity, held or not. It is not evicted while the result lives.
    pub fn acquire(
        &self,
        may: &MayBlock,
        key: &VersionKey,
        preference: &[u8],
    ) -> Arc<CachedVersion> {
        if let [only] = &self.disks[..] {
            return only.acquire(may, key);
        }
        loop {
            if let Some(version) = self.find_in_use(key) {
                return version;
            }
            let mut looked = Vec::new();
            for disk in self.in_use() {
                looked.push((disk, disk.look(may, key)));
                if is_found(&looked) {
                    break;
                }
            }
            if let Some(version) = self.place(key, preference, looked) {
                return version;
            }
        }
    }

    /// As [`NodeCache::acquire`], for a task.
    pub async fn acquire_in_turn(&self, key: &VersionKey, preference: &[u8]) -> Arc<CachedVersion> {
        loop {
            if let Some(version) = self.find_in_use(key) {
                return version;
            }
            let looked = self.look(key).await;
            if let Some(version) = self.place(key, preference, looked) {
                return version;
            }
        }
    }

    /// The version with this identity, if it is in use at one of the disks.
    fn find_in_use(&self, key: &VersionKey) -> Option<Arc<CachedVersion>> {
        self.in_use().find_map(|disk| disk.find_in_use(key))
    }

    /// What the disks' indexes say of a version, up to the one that holds something of it.
    async fn look(&self, key: &VersionKey) -> Looked<'_> {
        let mut looked = Vec::new();
        let mut later = Vec::new();
        // One at which nobody waits may do.
        for disk in self.in_use() {
            let Some(_turn) = disk.shared.calls.try_take() else {
                later.push(disk);
                continue;
            };
            looked.push((disk, in_place(|may| disk.look(may, key))));
            if is_found(&looked) {
                return looked;
            }
        }
        for disk in later {
            let Some(_turn) = self.turn_at(disk).await else { continue };
            looked.push((disk, in_place(|may| disk.look(may, key))));
            if is_found(&looked) {
                break;
            }
        }
        looked
    }

    /// Takes a version up where it is held or, as it is nowhere, at the disk that is chosen for it.
    /// `None`: it has to be looked for again.
    fn place(
        &self,
        key: &VersionKey,
        preference: &[u8],
        looked: Looked<'_>,
    ) -> Option<Arc<CachedVersion>> {
        let disk = match looked.last() {
            Some((disk, _)) if is_found(&looked) => *disk,
            _ => self.choose(key.version.size, preference),
        };
        let (_, seen) = looked.into_iter().find(|(of, _)| Arc::ptr_eq(of, disk))?;
        self.take_up(key, disk, seen)
    }

    /// Takes a version up at this disk, unless it is in use at another one by now.
    fn take_up(
        &self,
        key: &VersionKey,
        disk: &DiskCache,
        seen: Seen,
    ) -> Option<Arc<CachedVersion>> {
        let _placing = lock(&self.placing);
        self.find_in_use(key).or_else(|| disk.take_up(key, seen))
    }

    /// The version for bytes that are at this disk: what another's index says is not looked at.
    fn acquire_at(&self, may: &MayBlock, disk: &DiskCache, key: &VersionKey) -> Arc<CachedVersion> {
        loop {
            if let Some(version) = self.find_in_use(key) {
                return version;
            }
            let seen = disk.look(may, key);
            if let Some(version) = self.take_up(key, disk, seen) {
                return version;
            }
        }
    }

    /// Like [`NodeCache::acquire`], but only a version of which something is held or in use.
    pub fn peek(&self, may: &MayBlock, key: &VersionKey) -> Option<Arc<CachedVersion>> {
        self.in_use().find_map(|disk| disk.peek(may, key))
    }

    /// As [`NodeCache::peek`], for a task.
    async fn peek_in_turn(&self, key: &VersionKey) -> Option<Arc<CachedVersion>> {
        loop {
            if let Some(version) = self.find_in_use(key) {
                return Some(version);
            }
            let (disk, seen) = self.look(key).await.pop().filter(|(_, seen)| seen.is_held())?;
            if let Some(version) = self.take_up(key, disk, seen) {
                return Some(version);
            }
        }
    }

    /// Makes a staging file that holds all bytes of `key`, with their checksums by block, the
    /// cached version, to which its room passes. The file is moved; where that fails or there is
    /// no room it is removed.
    pub fn adopt(&self, may: &MayBlock, key: &VersionKey, staging: &StagingFile, sums: &[u32]) {
        let adopted = || {
            key.version.etag.is_strong().then_some(())?;
            let disk = staging.disk();
            let need = Need { bytes: key.version.size, files: 1 };
            let room = disk.make_place(may, need, staging.reserved())?;
            let version = self.acquire_at(may, disk, key);
            let here = Arc::ptr_eq(&disk.shared, &version.shared);
            (here && disk.adopt(may, &version, staging, sums, &room)).then_some(())
        };
        if adopted().is_none() {
            staging.remove(may);
        }
    }

    /// Notes that the server has copied `from` to `to` for a rename: what is held of the one is
    /// held of the other, and who reads the one is led to the other ([`NodeCache::place_of`]).
    pub async fn moved(&self, from: &VersionKey, to: &VersionKey) {
        let source = self.peek_in_turn(from).await;
        let is_read = source.as_ref().is_some_and(|version| Arc::strong_count(version) > 1);
        self.moves.note(from, to, is_read);
        if let Some(source) = source
            && let Some(_turn) = self.turn_at(self.disk_of(&source)).await
        {
            in_place(|may| self.link_to(may, &source, to));
        }
        self.discard(from).await;
    }

    /// As what the origin holds the bytes of `key` now, as far as they were moved here.
    pub fn place_of(&self, key: &VersionKey) -> Option<VersionKey> {
        self.moves.place_of(key)
    }

    /// Makes what is held of `from` also the cached version `to`: the same bytes under another
    /// name, after a copy by the server.
    pub fn link(&self, may: &MayBlock, from: &VersionKey, to: &VersionKey) {
        if let Some(source) = self.peek(may, from) {
            self.link_to(may, &source, to);
        }
    }

    fn link_to(&self, may: &MayBlock, source: &Arc<CachedVersion>, to: &VersionKey) {
        if !to.version.etag.is_strong() {
            return;
        }
        let Some((opened, sums)) = source.whole(may) else { return };
        let disk = self.disk_of(source);
        // Of a file that is there.
        let need = Need { bytes: to.version.size, files: 0 };
        let Some(room) = disk.make_place(may, need, 0) else { return };
        let version = self.acquire_at(may, disk, to);
        if Arc::ptr_eq(&disk.shared, &version.shared) {
            disk.link(may, &version, &opened.file, &sums, &room);
        }
    }

    /// Forgets a version that its bucket no longer has, unless it is in use.
    pub async fn discard(&self, key: &VersionKey) {
        for disk in self.in_use() {
            if let Some(_turn) = self.turn_at(disk).await {
                in_place(|may| disk.discard(may, key));
            }
        }
    }
}
