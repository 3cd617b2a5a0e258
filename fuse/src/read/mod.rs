//! Reading: from memory, from the cache's disk, or from the origin, each range fetched once.

pub mod complete;
pub mod fetch;
pub mod walk;
pub mod window;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::buffers::{Block, Buffers, Share};
use crate::cache::flight::Flight;
use crate::cache::hot::HotBlocks;
use crate::cache::{CachedVersion, NodeCache};
use crate::metrics::Metrics;
use crate::model::blocks::{self, BLOCK};
use crate::origin::{Origin, OriginError};

/// GETs under way at once, over all mounts of the node.
const GETS_MAX: usize = 32;

/// Reads versions for all mounts of a node.
pub struct Reader {
    cache: Arc<NodeCache>,
    buffers: Arc<Buffers>,
    hot: HotBlocks,
    metrics: Arc<Metrics>,
    runtime: Handle,
    gets: Semaphore,
    /// Blocks in one GET, at most.
    part_blocks: u32,
    completing: Mutex<HashSet<u64>>,
}

/// Where the bytes of a version come from.
#[derive(Clone)]
pub struct Source {
    /// The bucket.
    pub origin: Arc<dyn Origin>,
    /// The version.
    pub version: Arc<CachedVersion>,
}

impl Reader {
    /// `part_bytes` is the most that one GET asks for.
    pub fn new(
        cache: Arc<NodeCache>,
        buffers: Arc<Buffers>,
        metrics: Arc<Metrics>,
        runtime: Handle,
        part_bytes: u64,
    ) -> Arc<Self> {
        // A part is at most a sixteenth of the memory, so that several readers make progress.
        let part_bytes = part_bytes.min(buffers.total() / 16).max(BLOCK);
        Arc::new(Self {
            cache,
            hot: HotBlocks::new(buffers.total() / 2),
            buffers,
            metrics,
            runtime,
            gets: Semaphore::new(GETS_MAX),
            part_blocks: u32::try_from(part_bytes / BLOCK).unwrap_or(u32::MAX),
            completing: Mutex::default(),
        })
    }

    /// Bytes in one GET, at most.
    pub fn part_bytes(&self) -> u64 {
        u64::from(self.part_blocks) * BLOCK
    }

    /// The buffers that everything here is cut from.
    pub fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// The bytes at `offset`, if they are here; may read the disk.
    pub fn read_now(&self, version: &Arc<CachedVersion>, offset: u64, len: u64) -> Option<Bytes> {
        self.gather(version, offset, len, &[])
    }

    /// The bytes at `offset`, fetched where needed. `extra` is how many bytes beyond are worth
    /// fetching in the same request, `then` what to fetch after that if memory is free.
    ///
    /// # Errors
    /// What the origin reports for the bytes that are not here.
    pub async fn read(
        self: &Arc<Self>,
        source: &Source,
        offset: u64,
        len: u64,
        extra: u64,
        mut then: Range<u64>,
    ) -> Result<Bytes, OriginError> {
        let version = &source.version;
        let wanted = blocks::covering(offset, len, version.size());
        let mut mine: Vec<Arc<Flight>> = Vec::new();
        loop {
            let changed = version.flights.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = tokio::task::block_in_place(|| self.gather(version, offset, len, &mine));
            if let Some(bytes) = found {
                return Ok(bytes);
            }
            if let Some(error) = mine.iter().find_map(|f| f.outcome()?.as_ref().err()) {
                return Err(error.clone());
            }
            self.demand(source, wanted.clone(), extra, &mut mine);
            self.prefetch(source, std::mem::take(&mut then));
            // A block may have landed between looking and asking; then nobody would wake us.
            let under_way = wanted.clone().any(|b| version.flights.find(b).is_some());
            if under_way {
                changed.await;
            } else {
                // All is held, but there is no memory to read it into yet.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// Sees to it that every missing block of `wanted` is being fetched.
    fn demand(
        self: &Arc<Self>,
        source: &Source,
        wanted: Range<u32>,
        extra: u64,
        mine: &mut Vec<Arc<Flight>>,
    ) {
        let version = &source.version;
        let longest = self.longest(wanted.len() as u32);
        let more = u32::try_from(extra / BLOCK).unwrap_or(u32::MAX).min(longest);
        let end = wanted.end.saturating_add(more).min(blocks::count(version.size()));
        let held = |block| version.has(block) || self.hot.get(version.id, block).is_some();
        // What is wanted first; a run beyond it only if it starts within.
        for flight in version.flights.begin(wanted.start..end, longest, 64, held) {
            if flight.range().start < wanted.end {
                mine.push(flight.clone());
            }
            self.launch(source.clone(), flight, None);
        }
        for block in wanted {
            if let Some(flight) = version.flights.find(block)
                && !mine.iter().any(|f| Arc::ptr_eq(f, &flight))
            {
                mine.push(flight);
            }
        }
    }

    /// Fetches `wanted` for later, as far as memory is free. Starts whole parts only.
    pub fn prefetch(self: &Arc<Self>, source: &Source, wanted: Range<u64>) {
        let version = &source.version;
        let size = version.size();
        let mut at = wanted.start;
        let end = wanted.end.min(size);
        while at < end {
            let part_end = (at + u64::from(self.part_blocks) * BLOCK).min(end);
            let range = blocks::covering(at, part_end - at, size);
            at = part_end;
            let held = |block| version.has(block) || self.hot.get(version.id, block).is_some();
            if range.clone().all(|b| held(b) || version.flights.find(b).is_some()) {
                continue;
            }
            let Some(share) = self.try_share((range.len() as u64 * BLOCK) as usize) else { return };
            let mut begun = version.flights.begin(range, self.part_blocks, 1, held);
            if let Some(flight) = begun.pop() {
                self.launch(source.clone(), flight, Some(share));
            }
        }
    }

    /// Fetches a whole version that is small.
    ///
    /// # Errors
    /// What the origin reports.
    pub async fn fetch_whole(self: &Arc<Self>, source: &Source) -> Result<(), OriginError> {
        self.read(source, 0, source.version.size(), 0, 0..0).await.map(|_| ())
    }

    /// The longest run to ask for at once, given the memory that is free.
    fn longest(&self, least: u32) -> u32 {
        let free = self.buffers.total().saturating_sub(self.buffers.used()) + self.hot_bytes();
        let roomy = free > 4 * u64::from(self.part_blocks) * BLOCK;
        if roomy { self.part_blocks } else { least.min(self.part_blocks).max(1) }
    }

    fn hot_bytes(&self) -> u64 {
        self.hot.bytes() as u64
    }

    /// Collects the bytes if all of them are here.
    fn gather(
        &self,
        version: &Arc<CachedVersion>,
        offset: u64,
        len: u64,
        mine: &[Arc<Flight>],
    ) -> Option<Bytes> {
        let size = version.size();
        let wanted = blocks::covering(offset, len, size);
        let end = offset.saturating_add(len).min(size);
        let cut = |block: u32, data: &Block| {
            let start = u64::from(block) * BLOCK;
            let from = offset.saturating_sub(start) as usize;
            let to = (end - start).min(BLOCK) as usize;
            data.bytes().slice(from..to)
        };
        if wanted.len() == 1 {
            return Some(cut(wanted.start, &self.block(version, wanted.start, mine)?));
        }
        // Nothing is read from the disk in vain.
        let here = |b: u32| version.has(b) || self.in_memory(version, b, mine).is_some();
        if !wanted.clone().all(here) {
            return None;
        }
        let mut out = BytesMut::with_capacity((end.saturating_sub(offset)) as usize);
        for block in wanted {
            out.extend_from_slice(&cut(block, &self.block(version, block, mine)?));
        }
        Some(out.freeze())
    }

    fn block(&self, version: &Arc<CachedVersion>, n: u32, mine: &[Arc<Flight>]) -> Option<Block> {
        if let Some(data) = self.in_memory(version, n, mine) {
            return Some(data);
        }
        if !version.has(n) {
            return None;
        }
        let whole = blocks::len_of(n, version.size()).next_multiple_of(crate::buffers::ALIGN);
        let mut share = self.try_share(whole)?;
        let data = version.read_block(n, &mut share).ok()?;
        self.hot.insert(version.id, n, data.clone());
        Some(data)
    }

    fn in_memory(&self, version: &CachedVersion, n: u32, mine: &[Arc<Flight>]) -> Option<Block> {
        self.hot
            .get(version.id, n)
            .or_else(|| mine.iter().find_map(|f| f.block(n)))
            .or_else(|| version.flights.find(n)?.block(n))
    }

    /// Memory for `bytes`, taken from blocks that nobody waits for if none is free.
    fn try_share(&self, bytes: usize) -> Option<Share> {
        loop {
            if let Some(share) = self.buffers.try_share(bytes) {
                return Some(share);
            }
            if !self.hot.reclaim(bytes) {
                return None;
            }
        }
    }

    /// Memory for `bytes`, waiting until there is.
    async fn share(&self, bytes: usize) -> Option<Share> {
        if let Some(share) = self.try_share(bytes) {
            return Some(share);
        }
        let waiting = self.buffers.share(bytes);
        tokio::pin!(waiting);
        loop {
            tokio::select! {
                share = &mut waiting => return share,
                () = tokio::time::sleep(Duration::from_millis(5)) => {
                    self.hot.reclaim(bytes);
                }
            }
        }
    }

    fn completing(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.completing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
