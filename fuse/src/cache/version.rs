//! One cached version: which of its blocks are held, and its file.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use super::commit::Committer;
use super::dir::CacheDir;
use super::file::CacheFile;
use super::flight::Flights;
use super::health::DiskHealth;
use super::records::{ObjectRow, SEGMENT};
use super::space::Space;
use crate::buffers::{Block, Buffers, Share};
use crate::metrics::Metrics;
use crate::model::blocks::{self, BlockMap};
use crate::model::version::VersionKey;
use crate::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// What all versions of a cache share.
pub(super) struct Shared {
    pub(super) dir: CacheDir,
    pub(super) space: Space,
    pub(super) committer: Committer,
    pub(super) metrics: Arc<Metrics>,
    pub(super) epoch: u32,
    /// Number of the disk.
    pub(super) number: u8,
    pub(super) health: DiskHealth,
    /// Bytes that the metric counts for it.
    pub(super) noted: AtomicI64,
}

impl Shared {
    pub(super) fn note_use(&self) {
        let used = i64::try_from(self.space.used()).unwrap_or(i64::MAX);
        let before = self.noted.swap(used, Ordering::Relaxed);
        self.metrics.cache_bytes.add(used - before);
    }

    /// Notes how a call of the disk ended.
    pub(super) fn note_disk(&self, done: Result<(), &io::Error>) {
        if let Some(fails) = self.health.note(self.dir.root(), done) {
            let dir = self.dir.root().display().to_string();
            self.metrics.cache_disk_failing.with_label_values(&[&dir]).set(i64::from(fails));
        }
    }
}

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
    state: Mutex<State>,
    file: Mutex<Option<Arc<CacheFile>>>,
    /// Last use, in seconds since 1970; and the one that the index knows.
    last_used: AtomicU64,
    known_use: AtomicU64,
}

/// Bits of an id: each start of a process takes 2^32, so that they last for 16 million starts.
const DISK_SHIFT: u32 = 56;

/// How much the index may lag behind the last use of a version, in seconds.
const USE_LAG_SECS: u64 = 60;

struct State {
    map: BlockMap,
    held_bytes: u64,
    verified_epoch: u32,
    /// Whether anything was ever put into the file, so that it must exist.
    on_disk: bool,
}

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
        let size = key.version.size;
        let held_bytes =
            (0..map.len()).filter(|b| map.has(*b)).map(|b| blocks::len_of(b, size) as u64).sum();
        let state = State { on_disk: map.held() > 0, map, held_bytes, verified_epoch };
        Self {
            key,
            id,
            number: u64::from(shared.number) << DISK_SHIFT | id,
            flights: Flights::default(),
            shared,
            state: Mutex::new(state),
            file: Mutex::default(),
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
        self.state().map.has(block)
    }

    /// Whether every block is held.
    pub fn is_complete(&self) -> bool {
        self.state().map.is_complete()
    }

    /// Whether every block is held and was checked since the last unclean boot.
    pub fn is_trusted(&self) -> bool {
        let state = self.state();
        state.map.is_complete() && state.verified_epoch == self.shared.epoch
    }

    /// Bytes held on disk.
    pub fn held_bytes(&self) -> u64 {
        self.state().held_bytes
    }

    /// How much of the version is held, in percent; only a complete one has 100.
    pub fn percent(&self) -> u8 {
        let state = self.state();
        match self.size() {
            _ if state.map.is_complete() => 100,
            0 => 100,
            size => (state.held_bytes * 100 / size).min(99) as u8,
        }
    }

    /// The runs of blocks in `wanted` that are not held.
    pub fn missing(&self, wanted: Range<u32>) -> Vec<Range<u32>> {
        let state = self.state();
        BlockMap::runs(wanted, |b| !state.map.has(b))
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

    /// Stores consecutive blocks. They count as held from here on, and after the next commit
    /// also for a later process.
    ///
    /// # Errors
    /// What the disk reports; nothing is then held.
    pub fn store(self: &Arc<Self>, first: u32, data: &[Block]) -> io::Result<()> {
        let written = self.file_for_writing().and_then(|file| file.write_blocks(first, data));
        self.shared.note_disk(written.as_ref().copied());
        written?;
        let mut added = 0;
        let sums: Vec<u32> = data.iter().map(|block| crc32c::crc32c(block.bytes())).collect();
        {
            let mut state = self.state();
            for ((block, bytes), sum) in (first..).zip(data).zip(&sums) {
                if !state.map.has(block) {
                    added += bytes.len() as u64;
                }
                state.map.insert(block, *sum);
            }
            state.held_bytes += added;
            state.on_disk = true;
        }
        self.shared.space.add(added);
        self.queue(first..first + data.len() as u32);
        Ok(())
    }

    /// Takes over a file that holds the whole version, with the checksums of its blocks.
    pub(super) fn adopt(self: &Arc<Self>, sums: &[u32]) {
        let size = self.size();
        let before = {
            let mut state = self.state();
            for (block, crc) in (0..).zip(sums) {
                state.map.insert(block, *crc);
            }
            state.on_disk = true;
            state.verified_epoch = self.shared.epoch;
            std::mem::replace(&mut state.held_bytes, size)
        };
        self.shared.space.add(size - before.min(size));
        self.queue(0..blocks::count(size));
    }

    /// Reads consecutive held blocks, at most [`crate::buffers::RUN`], and checks each.
    ///
    /// # Errors
    /// [`BlockError`]; a block that fails is forgotten, so that it is fetched again.
    pub fn read_run(
        self: &Arc<Self>,
        run: Range<u32>,
        share: &mut Share,
    ) -> Result<Vec<Block>, BlockError> {
        let expected: Option<Vec<u32>> = {
            let state = self.state();
            run.clone().map(|block| state.map.get(block)).collect()
        };
        let expected = expected.ok_or(BlockError::Absent)?;
        let bytes = blocks::bytes_of(&run, self.size());
        let mut buffer = share.buffer((bytes.end - bytes.start) as usize);
        let read = self.file_for_reading().and_then(|file| file.read_run(run.start, &mut buffer));
        self.shared.note_disk(read.as_ref().copied());
        if let Err(error) = read {
            tracing::warn!(key = %self.key.key, block = run.start, %error, "cache file unreadable; fetching again");
            run.for_each(|block| self.forget(block));
            return Err(BlockError::Disk(error));
        }
        let data = buffer.freeze();
        let mut damaged = false;
        for ((block, data), expected) in run.zip(&data).zip(expected) {
            if crc32c::crc32c(data.bytes()) != expected {
                tracing::warn!(key = %self.key.key, block, "damaged block in the cache; fetching again");
                self.shared.metrics.cache_damaged_bytes.inc_by(data.len() as u64);
                self.forget(block);
                damaged = true;
            }
        }
        if damaged { Err(BlockError::Damaged) } else { Ok(data) }
    }

    /// Checks every held block and forgets those that fail. Says whether all were right.
    pub fn verify(self: &Arc<Self>, buffers: &Arc<Buffers>) -> bool {
        let mut right = true;
        for block in 0..blocks::count(self.size()) {
            if !self.has(block) {
                continue;
            }
            let Some(mut share) = buffers.try_share(blocks::BLOCK as usize) else { return false };
            right &= self.read_run(block..block + 1, &mut share).is_ok();
        }
        if right {
            self.state().verified_epoch = self.shared.epoch;
            self.queue(0..0);
        }
        right
    }

    /// Where its file is.
    pub(super) fn path(&self) -> PathBuf {
        self.shared.dir.object_path(self.id)
    }

    /// Opens the file for the kernel to read. Only for a trusted version.
    ///
    /// # Errors
    /// What open reports; if the file is gone or short, all blocks are forgotten.
    pub fn open_for_passthrough(self: &Arc<Self>) -> io::Result<std::fs::File> {
        let open = || {
            let file = self.file_for_reading()?.reopen_for_passthrough()?;
            if file.metadata()?.len() != self.size() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Ok(file)
        };
        let opened = open();
        if opened.is_ok() {
            // The kernel has its own now; a descriptor a version would be many.
            *self.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        opened.inspect_err(|error| {
            tracing::warn!(key = %self.key.key, %error, "cache file unusable; fetching again");
            self.forget_all();
        })
    }

    fn forget(self: &Arc<Self>, block: u32) {
        let mut state = self.state();
        if state.map.remove(block) {
            let len = blocks::len_of(block, self.size()) as u64;
            state.held_bytes -= len.min(state.held_bytes);
            drop(state);
            self.shared.space.subtract(len);
            self.queue(block..block + 1);
        }
    }

    fn forget_all(self: &Arc<Self>) {
        let count = blocks::count(self.size());
        let mut state = self.state();
        let held = std::mem::take(&mut state.held_bytes);
        state.map = BlockMap::empty(count);
        state.on_disk = false;
        drop(state);
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.shared.space.subtract(held);
        self.queue(0..count);
    }

    fn file_for_reading(&self) -> io::Result<Arc<CacheFile>> {
        let mut slot = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*slot {
            return Ok(file.clone());
        }
        let file = Arc::new(CacheFile::open(&self.path(), self.size())?);
        *slot = Some(file.clone());
        Ok(file)
    }

    fn file_for_writing(self: &Arc<Self>) -> io::Result<Arc<CacheFile>> {
        if self.state().on_disk {
            match self.file_for_reading() {
                Ok(file) => return Ok(file),
                // Somebody removed or shortened it: what it held is gone.
                Err(_) => self.forget_all(),
            }
        }
        let mut slot = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*slot {
            return Ok(file.clone());
        }
        let file = Arc::new(CacheFile::create(&self.path(), self.size())?);
        *slot = Some(file.clone());
        Ok(file)
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
        let state = self.state();
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
        super::records::encode_segment(&self.state().map, segment)
    }

    /// Checksums of all blocks, if all are held.
    pub(super) fn sums(&self) -> Option<Vec<u32>> {
        let state = self.state();
        (0..state.map.len()).map(|b| state.map.get(b)).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
