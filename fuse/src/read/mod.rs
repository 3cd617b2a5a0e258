//! Reading: from memory, from the cache's disk, or from the origin, each range fetched once.

pub mod complete;
mod doubted;
pub mod fetch;
pub mod lane;
mod late;
pub mod window;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::blocking::MayBlock;
use crate::buffers::{Block, Buffers, RUN, Share};
use crate::cache::flight::{AskerId, Flight};
use crate::cache::hot::HotBlocks;
use crate::cache::{CachedVersion, NodeCache};
use crate::metrics::Metrics;
use crate::model::blocks::{self, BLOCK};
use crate::model::version::BucketId;
use crate::origin::{Origin, OriginError};
use crate::sync::unpoisoned;
use lane::{Lane, Lanes, Toll};

/// GETs under way at once, over all mounts of the node.
const GETS_MAX: usize = 64;

/// Reads versions for all mounts of a node.
pub struct Reader {
    cache: Arc<NodeCache>,
    buffers: Arc<Buffers>,
    hot: HotBlocks,
    metrics: Arc<Metrics>,
    runtime: Handle,
    gets: Semaphore,
    lanes: Lanes,
    /// Blocks in one GET, at most.
    part_blocks: u32,
    completing: Mutex<HashSet<u64>>,
    late: late::LateStores,
    doubted: doubted::DoubtedVersions,
}

/// What bytes are read for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// For the kernel, which keeps them in its page cache.
    Serve,
    /// To be here when they are asked for.
    Hold,
}

/// Where the bytes of a version come from.
#[derive(Clone)]
pub struct Source {
    /// The bucket.
    pub origin: Arc<dyn Origin>,
    /// What it may have.
    pub lane: Arc<Lane>,
    /// The version.
    pub version: Arc<CachedVersion>,
}

/// Memory of a flight, of all there is and of what its origin may have.
struct Cargo {
    share: Share,
    _toll: Toll,
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
            lanes: Lanes::new(buffers.total(), GETS_MAX),
            buffers,
            metrics,
            runtime,
            gets: Semaphore::new(GETS_MAX),
            part_blocks: u32::try_from(part_bytes / BLOCK).unwrap_or(u32::MAX),
            completing: Mutex::default(),
            late: late::LateStores::default(),
            doubted: doubted::DoubtedVersions::default(),
        })
    }

    /// What an origin may have, to be held as long as it is mounted.
    pub fn lane(&self, bucket: &BucketId) -> Arc<Lane> {
        self.lanes.of(bucket.endpoint())
    }

    /// Bytes in one GET, at most.
    pub fn part_bytes(&self) -> u64 {
        u64::from(self.part_blocks) * BLOCK
    }

    /// The buffers that everything here is cut from.
    pub fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// The bytes at `offset`, if they are in memory.
    pub fn read_now(
        self: &Arc<Self>,
        version: &Arc<CachedVersion>,
        offset: u64,
        len: u64,
        purpose: Purpose,
    ) -> Option<Bytes> {
        self.gather(None, version, offset..offset.saturating_add(len), &[], purpose)
    }

    /// The bytes at `offset`, if they are in memory or on the disk, which may be read.
    pub fn read_disk(
        self: &Arc<Self>,
        may: &MayBlock,
        version: &Arc<CachedVersion>,
        offset: u64,
        len: u64,
        purpose: Purpose,
    ) -> Option<Bytes> {
        self.gather(Some(may), version, offset..offset.saturating_add(len), &[], purpose)
    }

    /// Whether the bytes at `offset` are in memory or on the disk.
    pub fn is_here(&self, version: &CachedVersion, offset: u64, len: u64) -> bool {
        let mut wanted = blocks::covering(offset, len, version.size());
        wanted.all(|block| version.has(block) || self.in_memory(version, block, &[]).is_some())
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
        purpose: Purpose,
    ) -> Result<Bytes, OriginError> {
        let asked = offset..offset.saturating_add(len);
        let version = &source.version;
        let wanted = blocks::covering(offset, len, version.size());
        let mut mine: Vec<Arc<Flight>> = Vec::new();
        loop {
            let changed = version.flights.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(bytes) = self.gather(None, version, asked.clone(), &mine, purpose) {
                return Ok(bytes);
            }
            if wanted.clone().any(|block| version.has(block)) {
                let from_disk =
                    |may: &_| self.gather(Some(may), version, asked.clone(), &mine, purpose);
                if let Some(bytes) = version.calls().in_place(from_disk).await {
                    return Ok(bytes);
                }
            }
            if let Some(error) = failure(&mut mine, AskerId::of(&source.origin)) {
                return Err(error);
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
        let asker = AskerId::of(&source.origin);
        let longest = self.longest(wanted.len() as u32);
        let extra = if self.may_fetch_ahead(source) { extra } else { 0 };
        let more = u32::try_from(extra / BLOCK).unwrap_or(u32::MAX).min(longest);
        let end = wanted.end.saturating_add(more).min(blocks::count(version.size()));
        let held = |block| version.has(block) || self.hot.get(version.number, block).is_some();
        // What is wanted first; a run beyond it only if it starts within.
        for flight in version.flights.begin(asker, wanted.start..end, wanted.end, longest, 64, held)
        {
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

    /// Whether bytes of a version that nobody waits for yet are to be asked for now.
    pub fn may_fetch_ahead(&self, source: &Source) -> bool {
        let place = self.cache.place_of(&source.version.key);
        let place = place.as_ref().unwrap_or(&source.version.key);
        source.origin.may_fetch_ahead(&place.key, &place.version)
    }

    /// Fetches `wanted` for later, as far as memory is free and it is worth asking for now. Starts whole
    /// parts only.
    pub fn prefetch(self: &Arc<Self>, source: &Source, wanted: Range<u64>) {
        if wanted.is_empty() || !self.may_fetch_ahead(source) {
            return;
        }
        let version = &source.version;
        let asker = AskerId::of(&source.origin);
        let size = version.size();
        let mut at = wanted.start;
        let end = wanted.end.min(size);
        while at < end {
            let part_end = (at + u64::from(self.part_blocks) * BLOCK).min(end);
            let range = blocks::covering(at, part_end - at, size);
            at = part_end;
            let held = |block| version.has(block) || self.hot.get(version.number, block).is_some();
            if range.clone().all(|b| held(b) || version.flights.find(b).is_some()) {
                continue;
            }
            let spare = self.spare(&source.lane, fetch::capacity_of(range.clone(), size));
            let Some(spare) = spare else { return };
            let mut begun = version.flights.begin(asker, range, 0, self.part_blocks, 1, held);
            if let Some(flight) = begun.pop() {
                self.launch(source.clone(), flight, Some(spare));
            }
        }
    }

    /// Fetches a whole version that is small.
    ///
    /// # Errors
    /// What the origin reports.
    pub async fn fetch_whole(self: &Arc<Self>, source: &Source) -> Result<(), OriginError> {
        let size = source.version.size();
        self.read(source, 0, size, 0, 0..0, Purpose::Hold).await.map(|_| ())
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

    /// Collects the bytes if all of them are here: in memory, or on the disk for one who may wait for
    /// that.
    fn gather(
        self: &Arc<Self>,
        may: Option<&MayBlock>,
        version: &Arc<CachedVersion>,
        asked: Range<u64>,
        mine: &[Arc<Flight>],
        purpose: Purpose,
    ) -> Option<Bytes> {
        let size = version.size();
        let wanted = blocks::covering(asked.start, asked.end - asked.start, size);
        let in_memory: Vec<Option<Block>> =
            wanted.clone().map(|b| self.in_memory(version, b, mine)).collect();
        // Nothing is read from the disk in vain.
        let on_disk = |b| may.is_some() && version.has(b);
        let here = |(b, data): (u32, &Option<Block>)| data.is_some() || on_disk(b);
        if !wanted.clone().zip(&in_memory).all(here) {
            return None;
        }
        // A block that was asked for to its end is in the kernel's page cache now: on disk, it
        // need not be in memory, too. Others are likely to be asked for again.
        let is_done = |block: u32| {
            let bytes = blocks::bytes_of(&(block..block + 1), size);
            let whole = asked.start <= bytes.start && bytes.end <= asked.end;
            purpose == Purpose::Serve && whole && version.has(block)
        };
        let mut found = Vec::with_capacity(wanted.len());
        let mut late = false;
        let mut at = wanted.start;
        while at < wanted.end {
            let place = (at - wanted.start) as usize;
            if let Some(data) = &in_memory[place] {
                if is_done(at) {
                    self.hot.forget(version.number, at);
                }
                late = late || (purpose == Purpose::Serve && self.is_in_memory_only(version, at));
                found.push(data.clone());
                at += 1;
                continue;
            }
            let missing = in_memory[place..].iter().take_while(|data| data.is_none()).count();
            let end = (at + missing as u32).min(at + RUN);
            let incarnation = version.incarnation();
            let run = self.read_run(may?, version, at..end)?;
            for (block, data) in (at..).zip(&run) {
                if !is_done(block) {
                    // Of a file that was given up meanwhile nothing is kept.
                    let is_right = || version.incarnation() == incarnation;
                    let data = std::slice::from_ref(data);
                    self.hot.insert_if(version.number, block, data, is_right);
                }
            }
            found.extend(run);
            at = end;
        }
        if late {
            self.store_late(version);
        }
        if purpose == Purpose::Serve {
            self.count_served(&asked, (wanted.start..).zip(&in_memory), size);
        }
        let start = u64::from(wanted.start) * BLOCK;
        let joined = Block::join(&found);
        let from = asked.start.saturating_sub(start) as usize;
        let to = asked.end.min(size).saturating_sub(start) as usize;
        Some(joined.slice(from.min(to)..to))
    }

    /// Counts what of `asked` was in memory, and what on the disk.
    fn count_served<'a>(
        &self,
        asked: &Range<u64>,
        blocks: impl Iterator<Item = (u32, &'a Option<Block>)>,
        size: u64,
    ) {
        let [mut memory, mut disk] = [0; 2];
        for (block, data) in blocks {
            let bytes = blocks::bytes_of(&(block..block + 1), size);
            let part = bytes.end.min(asked.end).saturating_sub(bytes.start.max(asked.start));
            *if data.is_some() { &mut memory } else { &mut disk } += part;
        }
        self.metrics.served_memory_bytes.inc_by(memory);
        self.metrics.served_disk_bytes.inc_by(disk);
    }

    fn read_run(
        &self,
        may: &MayBlock,
        version: &Arc<CachedVersion>,
        run: Range<u32>,
    ) -> Option<Vec<Block>> {
        let mut share = self.try_share(fetch::capacity_of(run.clone(), version.size()))?;
        version.read_run(may, run, &mut share).ok()
    }

    fn in_memory(&self, version: &CachedVersion, n: u32, mine: &[Arc<Flight>]) -> Option<Block> {
        self.hot
            .get(version.number, n)
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

    /// Memory for a flight that nobody waits for, if a quarter is then left to those who wait.
    fn spare(&self, lane: &Lane, bytes: usize) -> Option<Cargo> {
        let toll = lane.spare_memory(bytes)?;
        let fits = |bytes: usize| {
            let used = self.buffers.used().saturating_add(bytes as u64);
            used <= self.buffers.total() / 4 * 3
        };
        while !fits(bytes) {
            if !self.hot.reclaim(bytes) {
                return None;
            }
        }
        Some(Cargo { share: self.try_share(bytes)?, _toll: toll })
    }

    /// Memory for a flight, waiting until there is.
    async fn cargo(&self, lane: &Lane, bytes: usize) -> Option<Cargo> {
        let toll = lane.memory(bytes).await;
        Some(Cargo { share: self.share(bytes).await?, _toll: toll })
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
        unpoisoned(self.completing.lock())
    }
}

/// Why the bytes cannot be had, if one of the flights that were waited for says so. A refusal is
/// an answer to whoever asked: who asks with other credentials gives that flight up, and asks.
fn failure(mine: &mut Vec<Arc<Flight>>, asker: AskerId) -> Option<OriginError> {
    let error = |flight: &Flight| flight.outcome()?.as_ref().err().cloned();
    mine.retain(|f| f.asker() == asker || error(f).is_none_or(|error| !error.is_refusal()));
    mine.iter().find_map(|flight| error(flight))
}
