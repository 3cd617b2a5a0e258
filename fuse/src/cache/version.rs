//! One cached version: what is held of it, and its use.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::body::{BORROWED, Body, OpenBody, UNVERIFIED, Unusable, is_gone};
use super::dir::CacheDir;
use super::disk::Room;
use super::file::CacheFile;
use super::flight::Flights;
use super::records::ObjectRow;
use super::shared::Shared;
use crate::blocking::{MayBlock, Turns};
use crate::buffers::{Block, Buffers, Share};
use crate::logged::LoggedName;
use crate::model::blocks::{self, BlockMap, SEGMENT};
use crate::model::version::VersionKey;
use crate::sync::atomic::{AtomicU64, Ordering};

/// A version in use. It is not evicted while a reference to it lives.
pub struct CachedVersion {
    /// Its identity.
    pub key: VersionKey,
    /// Its id on its disk, never given twice.
    pub(super) id: u64,
    /// Its number among all disks of this process.
    pub number: u64,
    /// Fetches under way.
    pub flights: Flights,
    pub(super) shared: Arc<Shared>,
    body: Body,
    /// Last use, in seconds since 1970; and the one that the index knows.
    last_used: AtomicU64,
    known_use: AtomicU64,
}

/// Bits of an id: each start of a process takes 2^32, so that they last for 16 million starts.
const DISK_SHIFT: u32 = 56;

/// How much the index may lag behind the last use of a version, in seconds.
const USE_LAG_SECS: u64 = 60;

/// Why a block could not be read from the cache.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// It is not held.
    #[error("not held")]
    Absent,
    /// Its checksum does not match; it is forgotten now.
    #[error("checksum does not match")]
    Damaged,
    /// The disk failed; the block is forgotten now.
    #[error("{0}")]
    Disk(io::Error),
}

impl CachedVersion {
    pub(super) fn new(
        shared: Arc<Shared>,
        key: VersionKey,
        id: u64,
        map: BlockMap,
        verified_epoch: u32,
        known_use: u64,
    ) -> Self {
        let place = (shared.dir.folder().clone(), CacheDir::object_name(id));
        let body = Body::new(place, key.version.size, map, verified_epoch);
        Self {
            key,
            id,
            number: u64::from(shared.number) << DISK_SHIFT | id,
            flights: Flights::default(),
            shared,
            body,
            last_used: AtomicU64::new(now_secs()),
            known_use: AtomicU64::new(known_use),
        }
    }

    /// Size of the version in bytes.
    pub fn size(&self) -> u64 {
        self.key.version.size
    }

    /// Whether a block is held on disk.
    pub fn has(&self, block: u32) -> bool {
        self.body.state().map.has(block)
    }

    /// Whether every block is held.
    pub fn is_complete(&self) -> bool {
        self.body.state().map.is_complete()
    }

    /// Whether every block is held and was checked since the last unclean boot.
    pub fn is_trusted(&self) -> bool {
        let state = self.body.state();
        state.map.is_complete() && state.verified_epoch == self.shared.epoch
    }

    /// Notes that bytes come that are not the origin's own: all are to be compared with the tag before the
    /// version is trusted. To be called before any of them is stored.
    pub fn note_borrowed(self: &Arc<Self>) {
        let mut state = self.body.state();
        state.doubts += 1;
        let is_new = std::mem::replace(&mut state.verified_epoch, BORROWED) != BORROWED;
        let is_noted = state.held_bytes > 0;
        drop(state);
        // What is stored later, by another process perhaps, comes to what the index trusts.
        if is_new && is_noted {
            self.queue(0..0);
        }
    }

    /// How often it was doubted so far what is held.
    pub fn doubts(&self) -> u64 {
        self.body.state().doubts
    }

    /// Whether what is held was given up before: what is here now came later.
    pub fn was_given_up(&self) -> bool {
        self.body.state().was_given_up
    }

    /// Which of the files that there were one after the other is here now.
    pub fn incarnation(&self) -> u64 {
        self.body.state().incarnation()
    }

    /// Whether some bytes are not the origin's own, and were not compared with the tag.
    pub fn is_borrowed(&self) -> bool {
        self.body.state().verified_epoch == BORROWED
    }

    /// Bytes held on disk.
    pub fn held_bytes(&self) -> u64 {
        self.body.state().held_bytes
    }

    /// How much of the version is held, in percent; only a complete one has 100.
    pub fn percent(&self) -> u8 {
        let state = self.body.state();
        match self.size() {
            _ if state.map.is_complete() => 100,
            0 => 100,
            size => (state.held_bytes * 100 / size).min(99) as u8,
        }
    }

    /// The runs of blocks in `wanted` that are not held.
    pub fn missing(&self, wanted: Range<u32>) -> Vec<Range<u32>> {
        self.body.state().map.missing(wanted)
    }

    /// Turns at its disk.
    pub fn calls(&self) -> &Turns {
        &self.shared.calls
    }

    /// Turns at its disk of the engine's threads.
    pub fn threads(&self) -> &Arc<Turns> {
        &self.shared.threads
    }

    /// Turns at its disk of those who store what was fetched.
    pub fn stores(&self) -> &Turns {
        &self.shared.stores
    }

    /// Notes a use, for the order of eviction, which is to survive a restart.
    pub(super) fn touch(self: &Arc<Self>) {
        let now = now_secs();
        self.last_used.store(now, Ordering::Relaxed);
        let known = self.known_use.load(Ordering::Relaxed);
        if now > known.saturating_add(USE_LAG_SECS) && self.held_bytes() > 0 {
            self.queue(0..0);
        }
    }

    /// Stores consecutive blocks in room of this version's disk; those that are held are not
    /// written again. They count as held from here on, and after the next commit also for a later
    /// process.
    ///
    /// # Errors
    /// What the disk reports; nothing is then held.
    pub fn store(
        self: &Arc<Self>,
        may: &MayBlock,
        first: u32,
        data: &[Block],
        room: &Room,
    ) -> io::Result<()> {
        let run = first..first + data.len() as u32;
        let sums: Vec<u32> = data.iter().map(|block| crc32c::crc32c(block.bytes())).collect();
        while !self.missing(run.clone()).is_empty() {
            let opened = self.open_or_make(may);
            let written = opened.and_then(|opened| {
                opened.file.write_blocks(may, first, data)?;
                Ok(opened.incarnation)
            });
            self.shared.note_disk(written.as_ref().map(|_| ()));
            // Where another file has taken its place meanwhile, the bytes went nowhere.
            if let Some(added) = self.body.hold(written?, first, &sums) {
                room.fill(self.id, added);
                self.queue(run);
                break;
            }
        }
        Ok(())
    }

    /// The file, made if there is none.
    fn open_or_make(self: &Arc<Self>, may: &MayBlock) -> io::Result<OpenBody> {
        loop {
            match self.body.open_with(may, |_| ()) {
                Ok(Some((opened, ()))) => return Ok(opened),
                Ok(None) => {}
                // Somebody removed or shortened it: what it held is gone.
                Err(unusable) if unusable.is_gone() => self.forget_all(unusable.incarnation),
                Err(unusable) => return Err(unusable.error),
            }
            let (folder, name) = (self.shared.dir.folder(), CacheDir::object_name(self.id));
            let make = || CacheFile::create(may, folder, &name, self.size());
            let (made, _) =
                self.body.replace(|state| state.is_absent(), make, |state, file| state.made(file));
            made?;
        }
    }

    /// Takes over a file that holds the whole version, with the checksums of its blocks: `put` puts
    /// it where it is told. Whatever of the version was here gives way, unless all of it was and can
    /// be trusted. Says whether it did. `room` is what was set aside for it.
    ///
    /// # Errors
    /// What `put` reports.
    pub(super) fn adopt(
        self: &Arc<Self>,
        _: &MayBlock,
        sums: &[u32],
        room: &Room,
        put: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<bool> {
        let epoch = self.shared.epoch;
        let whole =
            |state: &super::body::State| state.map.is_complete() && state.verified_epoch == epoch;
        let (adopted, held) = self.body.replace(
            |state| !whole(state),
            || put(&CacheDir::object_name(self.id)),
            |state, ()| state.fill(self.size(), sums, epoch),
        );
        room.fill(self.id, held);
        if !matches!(adopted, Ok(false)) {
            self.queue(0..blocks::count(self.size()));
        }
        adopted
    }

    /// The file of a version that is whole and trusted, with the checksums of its blocks.
    pub(super) fn whole(&self, may: &MayBlock) -> Option<(OpenBody, Vec<u32>)> {
        let epoch = self.shared.epoch;
        let opened = self.body.open_with(may, |state| {
            let whole = state.map.is_complete().then_some(0..state.map.len())?;
            let sums = state.sums(whole)?;
            (state.verified_epoch == epoch).then_some(sums)
        });
        let (opened, sums) = opened.ok()??;
        Some((opened, sums?))
    }

    /// Reads consecutive held blocks, at most [`crate::buffers::RUN`], and checks each.
    ///
    /// # Errors
    /// [`BlockError`]; a block that fails is forgotten, so that it is fetched again.
    pub fn read_run(
        self: &Arc<Self>,
        may: &MayBlock,
        run: Range<u32>,
        share: &mut Share,
    ) -> Result<Vec<Block>, BlockError> {
        let opened = self.body.open_with(may, |state| state.sums(run.clone()));
        let opened = opened.map_err(|unusable| {
            self.shared.note_disk(Err(&unusable.error));
            self.unreadable(unusable, run.clone())
        })?;
        let Some((opened, Some(expected))) = opened else { return Err(BlockError::Absent) };
        let incarnation = opened.incarnation;
        let bytes = blocks::bytes_of(&run, self.size());
        let mut buffer = share.buffer((bytes.end - bytes.start) as usize);
        let read = opened.file.read_run(may, run.start, &mut buffer);
        self.shared.note_disk(read.as_ref().copied());
        read.map_err(|error| self.unreadable(Unusable { incarnation, error }, run.clone()))?;
        let data = buffer.freeze();
        let mut damaged = false;
        for ((block, data), expected) in run.zip(&data).zip(expected) {
            if crc32c::crc32c(data.bytes()) != expected {
                tracing::warn!(bucket = self.key.bucket.as_str(), key = %LoggedName(&self.key.key), block, "damaged block in the cache; fetching again");
                self.shared.metrics.cache_damaged_bytes.inc_by(data.len() as u64);
                self.forget(incarnation, block..block + 1);
                damaged = true;
            }
        }
        if damaged { Err(BlockError::Damaged) } else { Ok(data) }
    }

    /// Forgets what could not be read: these blocks or, of a file that is gone, all.
    fn unreadable(self: &Arc<Self>, unusable: Unusable, run: Range<u32>) -> BlockError {
        let Unusable { incarnation, error } = unusable;
        tracing::warn!(bucket = self.key.bucket.as_str(), key = %LoggedName(&self.key.key), block = run.start, %error, "cache file unreadable; fetching again");
        match is_gone(&error) {
            true => self.forget_all(incarnation),
            false => self.forget(incarnation, run),
        }
        BlockError::Disk(error)
    }

    /// The blocks that are held.
    pub fn held_blocks(&self) -> Vec<u32> {
        self.body.state().map.held_blocks().collect()
    }

    /// Checks held blocks and forgets those that fail; shows `see` those that are right. Says whether all
    /// were.
    pub fn check(
        self: &Arc<Self>,
        may: &MayBlock,
        buffers: &Arc<Buffers>,
        held: &[u32],
        mut see: impl FnMut(&[u8]),
    ) -> bool {
        let mut right = true;
        for block in held {
            let Some(mut share) = buffers.try_share(blocks::BLOCK as usize) else { return false };
            match self.read_run(may, *block..*block + 1, &mut share) {
                Ok(run) => run.iter().for_each(|block| see(block.bytes())),
                Err(_) => right = false,
            }
        }
        right
    }

    /// Notes that every block was checked, and right, unless it was doubted again since there were so many
    /// `doubts`. Says whether it is trusted now.
    pub fn note_checked(self: &Arc<Self>, doubts: u64) -> bool {
        let mut state = self.body.state();
        if state.doubts != doubts || !state.map.is_complete() {
            return false;
        }
        state.verified_epoch = self.shared.epoch;
        drop(state);
        self.queue(0..0);
        true
    }

    /// Opens the file for the kernel to read. Only for a trusted version.
    ///
    /// # Errors
    /// What open reports; if the file is gone or short, all blocks are forgotten.
    pub fn open_for_passthrough(self: &Arc<Self>, may: &MayBlock) -> io::Result<std::fs::File> {
        let opened = match self.body.open_with(may, |_| ()) {
            Ok(Some((opened, ()))) => Ok(opened),
            Ok(None) => return Err(io::ErrorKind::NotFound.into()),
            Err(unusable) => Err(unusable),
        };
        let reopened = opened.and_then(|OpenBody { file, incarnation }| {
            let reopened = file.reopen_for_passthrough(may).and_then(|file| {
                let whole = file.metadata()?.len() == self.size();
                if whole { Ok(file) } else { Err(io::ErrorKind::InvalidData.into()) }
            });
            // The kernel has its own now; a descriptor a version would be many.
            self.body.close(incarnation);
            reopened.map_err(|error| Unusable { incarnation, error })
        });
        reopened.map_err(|unusable| {
            let error = &unusable.error;
            tracing::warn!(bucket = self.key.bucket.as_str(), key = %LoggedName(&self.key.key), %error, "cache file unusable; fetching again");
            if unusable.is_gone() {
                self.forget_all(unusable.incarnation);
            }
            unusable.error
        })
    }

    /// Gives up all that is held, which is not the version's: it is fetched again.
    pub fn give_up(self: &Arc<Self>, may: &MayBlock) {
        let remove = || {
            self.shared.dir.folder().remove(may, &CacheDir::object_name(self.id))?;
            // Where nothing is put in its place it is absent.
            Err::<(), _>(io::ErrorKind::NotFound.into())
        };
        let (gone, lost) = self.body.replace(|state| !state.is_absent(), remove, |_, ()| ());
        if let Err(error) = gone
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "a cache file that is not used any more cannot be removed");
        }
        let mut state = self.body.state();
        (state.verified_epoch, state.was_given_up) = (self.shared.epoch, true);
        drop(state);
        self.account(lost);
        self.queue(0..blocks::count(self.size()));
    }

    fn forget(self: &Arc<Self>, incarnation: u64, forgotten: Range<u32>) {
        let lost = self.body.forget(incarnation, forgotten.clone());
        if lost != 0 {
            self.account(lost);
            self.queue(forgotten);
        }
    }

    fn forget_all(self: &Arc<Self>, incarnation: u64) {
        let (lost, segments) = self.body.forget_all(incarnation);
        self.account(lost);
        self.shared.committer.version_changed(self, segments, lost.unsigned_abs());
    }

    /// Notes that bytes may not have reached the disk: all of them are checked before the kernel
    /// may read them by itself.
    pub(super) fn distrust(&self) {
        let mut state = self.body.state();
        state.doubts += 1;
        if state.verified_epoch != BORROWED {
            state.verified_epoch = UNVERIFIED;
        }
    }

    /// Puts its bytes onto the medium.
    ///
    /// # Errors
    /// What the disk reports.
    pub(super) fn sync(&self, may: &MayBlock) -> io::Result<()> {
        self.body.sync(may)
    }

    /// Makes the account follow a change of what is held.
    fn account(&self, bytes: i64) {
        if bytes != 0 {
            self.shared.space.versions_mut(|versions| versions.change(self.id, bytes));
        }
    }

    /// Hands changed blocks to the committer.
    fn queue(self: &Arc<Self>, changed: Range<u32>) {
        let segments = changed.start / SEGMENT..changed.end.div_ceil(SEGMENT);
        let bytes = blocks::bytes_of(&changed, self.size());
        self.shared.committer.version_changed(self, segments, bytes.end - bytes.start);
    }

    /// The row that describes this version now.
    pub(super) fn row(&self) -> ObjectRow {
        let last_used = self.last_used.load(Ordering::Relaxed);
        self.known_use.store(last_used, Ordering::Relaxed);
        let state = self.body.state();
        ObjectRow {
            bucket: self.key.bucket.as_str().into(),
            key: self.key.key.as_ref().into(),
            etag: self.key.version.etag.as_str().into(),
            size: self.size(),
            held: state.held_bytes,
            last_used,
            verified_epoch: state.verified_epoch,
        }
    }

    /// One segment of the range map, encoded.
    pub(super) fn segment(&self, segment: u32) -> Vec<u8> {
        super::records::encode_segment(&self.body.state().map, segment)
    }
}

pub(super) fn now_secs() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
