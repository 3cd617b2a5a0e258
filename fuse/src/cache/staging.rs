//! The file that takes what is being written, with the room that it needs.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use rustix::fs::OFlags;

use super::disk::DiskCache;
use super::share::Share;
use super::shared::Shared;
use crate::blocking::{MayBlock, Turns};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Room is taken in steps, so that few writes have to ask: as much as there is, from the first of
/// these to the second, in bytes.
const STEP: (u64, u64) = (64 * 1024, 8 * 1024 * 1024);

/// There is no room for more of what is being written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// And nothing left to evict.
    #[error(
        "the cache's disk at {dir} has no room for {needed} bytes more of a file being written: \
         {min_free} bytes are to stay free; free some, lower --cache-min-free or give a larger disk"
    )]
    Disk {
        /// The cache directory.
        dir: PathBuf,
        /// Bytes asked for.
        needed: u64,
        /// Bytes that are to stay free.
        min_free: u64,
    },
    /// For this tenant.
    #[error(
        "the files that this volume and others of its tenant are writing would take more than their \
         share of the cache's disk at {dir} (half, with those of other tenants three quarters, and \
         alone all but a sixteenth): write less at once or give a larger disk"
    )]
    Share {
        /// The cache directory.
        dir: PathBuf,
    },
}

/// A file that is being written, on the disk of a cache. Dropping it gives back its room and
/// leaves the file: bytes that are stored nowhere else are removed by [`StagingFile::remove`]
/// alone.
pub struct StagingFile {
    file: Arc<File>,
    path: PathBuf,
    /// In the cache directory.
    name: PathBuf,
    disk: Arc<DiskCache>,
    /// Whose it is; nobody's where it has no bytes.
    share: Option<Arc<Share>>,
    /// What `claim` has, to be looked at without its lock.
    reserved: AtomicU64,
    claim: Mutex<Claim>,
}

/// Room that a staging file has in the account of its disk.
#[derive(Default)]
struct Claim {
    /// Bytes from the file's start.
    bytes: u64,
    /// Those of them that the file system does not count as taken.
    unwritten: u64,
}

impl StagingFile {
    /// Makes an empty one.
    ///
    /// # Errors
    /// What open reports.
    pub(super) fn create(
        may: &MayBlock,
        disk: Arc<DiskCache>,
        name: PathBuf,
        share: Option<Arc<Share>>,
    ) -> io::Result<Self> {
        let folder = disk.shared.dir.folder();
        let file = folder.file(may, &name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        let path = folder.path().join(&name);
        let reserved = AtomicU64::new(0);
        Ok(Self {
            file: Arc::new(file),
            path,
            name,
            disk,
            share,
            reserved,
            claim: Mutex::default(),
        })
    }

    /// Turns at its disk.
    pub fn calls(&self) -> &Arc<Turns> {
        &self.disk.shared.calls
    }

    /// Turns at its disk of the engine's threads.
    pub fn threads(&self) -> &Arc<Turns> {
        &self.disk.shared.threads
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name in the cache directory.
    pub(super) fn name(&self) -> &Path {
        &self.name
    }

    /// The open file, for reading and writing. Before a write beyond what was written there must
    /// be a [`StagingFile::reserve`].
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Sees to it that there is room for the bytes before `end`; what is cached makes place.
    /// Cheap where there is already.
    ///
    /// # Errors
    /// [`NoRoom`]: the disk would be left with less than is to stay free, or the tenant would have
    /// more than its share.
    pub fn reserve(&self, may: &MayBlock, end: u64) -> Result<(), NoRoom> {
        if end <= self.reserved.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut claim = self.claim();
        let needed = end.saturating_sub(claim.bytes);
        if needed == 0 {
            return Ok(());
        }
        let Shared { space, dir, number, .. } = &*self.disk.shared;
        let share = self.share.as_ref().map(|share| (share, *number));
        if share.is_some_and(|(share, disk)| !share.take(disk, needed, space.writable(dir))) {
            return Err(self.no_share());
        }
        let Some(given) = self.disk.claim(may, needed, end.clamp(STEP.0, STEP.1)) else {
            share.inspect(|(share, disk)| share.give_back(*disk, needed));
            return Err(self.no_room(needed));
        };
        share.inspect(|(share, disk)| share.take_given(*disk, given.saturating_sub(needed)));
        claim.bytes += given;
        claim.unwritten += given;
        self.reserved.store(claim.bytes, Ordering::Release);
        let unwritten = claim.bytes.saturating_sub(self.taken());
        space.set_unwritten(claim.unwritten, unwritten);
        claim.unwritten = unwritten;
        drop(claim);
        self.disk.shared.note_use();
        Ok(())
    }

    /// Whether there could be room for the bytes before `end`: for what is to be zeros, which take
    /// none. Nothing gives way for them.
    ///
    /// # Errors
    /// As [`StagingFile::reserve`].
    pub fn could_have(&self, end: u64) -> Result<(), NoRoom> {
        let needed = end.saturating_sub(self.reserved());
        let Shared { space, dir, number, .. } = &*self.disk.shared;
        let allows = |share: &Arc<Share>| share.allows(*number, needed, space.writable(dir));
        if !self.share.as_ref().is_none_or(allows) {
            return Err(self.no_share());
        }
        match needed <= space.attainable(dir) {
            true => Ok(()),
            false => Err(self.no_room(needed)),
        }
    }

    fn no_share(&self) -> NoRoom {
        NoRoom::Share { dir: self.disk.shared.dir.root().to_owned() }
    }

    fn no_room(&self, needed: u64) -> NoRoom {
        let Shared { space, dir, .. } = &*self.disk.shared;
        NoRoom::Disk { dir: dir.root().to_owned(), needed, min_free: space.limits().min_free }
    }

    /// Gives back the room beyond `end`, after the file was cut there.
    pub fn shrink(&self, end: u64) {
        let mut claim = self.claim();
        let back = claim.bytes.saturating_sub(end);
        if back > 0 {
            self.give_back(&mut claim, back);
        }
    }

    /// Gives back all room, as when the bytes are accounted for elsewhere.
    pub(super) fn release(&self) {
        self.shrink(0);
    }

    /// Bytes reserved.
    pub(super) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Acquire)
    }

    /// Removes the file; who has it open goes on, and its room is given back with this.
    pub fn remove(&self, may: &MayBlock) {
        match self.disk.shared.dir.folder().remove(may, &self.name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "staging file stays");
            }
            _ => {}
        }
    }

    /// The disk that it is on.
    pub(super) fn disk(&self) -> &Arc<DiskCache> {
        &self.disk
    }

    fn give_back(&self, claim: &mut Claim, bytes: u64) {
        let left = claim.bytes - bytes;
        let unwritten = left.saturating_sub(self.taken()).min(claim.unwritten);
        let shared = &self.disk.shared;
        shared.space.unclaim(bytes, claim.unwritten - unwritten);
        if let Some(share) = &self.share {
            share.give_back(shared.number, bytes);
        }
        *claim = Claim { bytes: left, unwritten };
        self.reserved.store(left, Ordering::Release);
        self.disk.shared.note_use();
    }

    /// Bytes that the file takes on the disk.
    fn taken(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512)
    }

    fn claim(&self) -> MutexGuard<'_, Claim> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StagingFile {
    fn drop(&mut self) {
        self.release();
    }
}
