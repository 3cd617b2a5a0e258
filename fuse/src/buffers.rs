//! Buffers for bytes on their way, all of them under one limit.
//!
//! Every buffer is aligned for O_DIRECT and holds its share of the limit until the last
//! [`Bytes`] made of it is dropped. Buffers are used again: fresh memory costs page faults.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memmap2::MmapMut;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::blocks::BLOCK;

/// Alignment of buffers: the largest logical block size of common disks.
pub const ALIGN: usize = 4096;
/// Most blocks in one buffer: 1 MiB, the largest read of FUSE, so that it is answered from one.
pub const RUN: u32 = 8;
/// Unit in which the limit is counted.
const UNIT: usize = 1024;

/// Hands out buffers under a limit.
pub struct Buffers {
    limit: Arc<Semaphore>,
    total_units: usize,
    spare: Mutex<Spare>,
}

impl Buffers {
    /// `total` is the limit in bytes; it is at least 16 blocks.
    pub fn new(total: u64) -> Arc<Self> {
        let least = 16 * BLOCK;
        let units = (total.max(least) as usize / UNIT).min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            limit: Arc::new(Semaphore::new(units)),
            total_units: units,
            spare: Mutex::default(),
        })
    }

    /// The limit in bytes.
    pub fn total(&self) -> u64 {
        (self.total_units * UNIT) as u64
    }

    /// Bytes handed out.
    pub fn used(&self) -> u64 {
        (self.total_units.saturating_sub(self.limit.available_permits()) * UNIT) as u64
    }

    /// Sets `bytes` aside, now or not at all.
    pub fn try_share(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let units = self.units(bytes);
        let permit = self.limit.clone().try_acquire_many_owned(units).ok()?;
        Some(Share { permit, buffers: self.clone() })
    }

    /// Sets `bytes` aside, waiting until others give theirs back.
    pub async fn share(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let units = self.units(bytes);
        let permit = self.limit.clone().acquire_many_owned(units).await.ok()?;
        Some(Share { permit, buffers: self.clone() })
    }

    /// A request over the whole limit is granted the whole limit, so that it does not hang.
    fn units(&self, bytes: usize) -> u32 {
        let units = bytes.div_ceil(UNIT).min(self.total_units);
        u32::try_from(units).unwrap_or(u32::MAX)
    }

    fn take(&self, capacity: usize) -> Store {
        let total = self.total_units * UNIT;
        let mut spare = self.spare();
        if let Some(store) = spare.stores.get_mut(&capacity).and_then(Vec::pop) {
            return store;
        }
        // What is spared of other sizes makes place for this one.
        while spare.allocated + capacity > total && spare.drop_one() {}
        spare.allocated += capacity;
        drop(spare);
        Store::new(capacity)
    }

    fn give_back(&self, capacity: usize, store: Store) {
        let mut spare = self.spare();
        if spare.allocated > self.total_units * UNIT {
            spare.allocated -= capacity;
            return;
        }
        spare.stores.entry(capacity).or_default().push(store);
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Spare> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory of a buffer. Large ones are mappings of their own: what is given back goes to the
/// system, and does not leave holes in the allocator's arenas.
enum Store {
    Mapped(MmapMut),
    Heap { bytes: Vec<u8>, start: usize },
}

impl Store {
    fn new(capacity: usize) -> Self {
        if capacity >= BLOCK as usize
            && let Ok(map) = MmapMut::map_anon(capacity)
        {
            return Self::Mapped(map);
        }
        let bytes = vec![0; capacity];
        let start = bytes.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self::Heap { bytes, start }
    }

    fn bytes(&self, len: usize) -> &[u8] {
        match self {
            Self::Mapped(map) => &map[..len],
            Self::Heap { bytes, start } => &bytes[*start..*start + len],
        }
    }

    fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        match self {
            Self::Mapped(map) => &mut map[..len],
            Self::Heap { bytes, start } => &mut bytes[*start..*start + len],
        }
    }
}

/// Buffers that nobody uses, by capacity.
#[derive(Default)]
struct Spare {
    stores: HashMap<usize, Vec<Store>>,
    /// Bytes of all buffers there are, these and those in use.
    allocated: usize,
}

impl Spare {
    /// Drops a store of any size; says whether there was one.
    fn drop_one(&mut self) -> bool {
        let popped = self.stores.iter_mut().find_map(|(size, all)| all.pop().map(|_| *size));
        let Some(capacity) = popped else { return false };
        self.allocated -= capacity;
        true
    }
}

/// A part of the limit that buffers may be cut from.
pub struct Share {
    permit: OwnedSemaphorePermit,
    buffers: Arc<Buffers>,
}

impl Share {
    /// A buffer for `len` bytes that holds its part of this share.
    pub fn buffer(&mut self, len: usize) -> Buffer {
        let capacity = capacity_for(len);
        let units = capacity.div_ceil(UNIT).min(self.permit.num_permits());
        let part = self.permit.split(units);
        let store = Some(self.buffers.take(capacity));
        Buffer { store, len, _part: part, buffers: self.buffers.clone() }
    }
}

/// Memory that a buffer for `len` bytes takes: few sizes, so that buffers can be used again.
pub fn capacity_for(len: usize) -> usize {
    let block = BLOCK as usize;
    // A small one is aligned within its memory, which takes room, too.
    if len > block / 2 {
        len.next_multiple_of(block)
    } else {
        len.max(ALIGN).next_power_of_two() + ALIGN
    }
}

/// An aligned buffer.
pub struct Buffer {
    /// There until it is dropped.
    store: Option<Store>,
    len: usize,
    _part: Option<OwnedSemaphorePermit>,
    buffers: Arc<Buffers>,
}

impl Buffer {
    /// The bytes to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.store.as_mut().map_or(&mut [], |store| store.bytes_mut(self.len))
    }

    /// The bytes with their padding up to the alignment.
    pub fn padded_mut(&mut self) -> &mut [u8] {
        let padded = self.len.next_multiple_of(ALIGN);
        self.store.as_mut().map_or(&mut [], |store| store.bytes_mut(padded))
    }

    /// Makes the buffer immutable, in one piece.
    pub fn into_bytes(self) -> Bytes {
        let len = self.len;
        Bytes::from_owner(self).slice(..len)
    }

    /// Makes the buffer immutable and cuts it into blocks that share it. The padding of the
    /// last one is zeroed.
    pub fn freeze(mut self) -> Vec<Block> {
        let len = self.len;
        self.padded_mut()[len..].fill(0);
        let run = Bytes::from_owner(self);
        let block =
            |from: usize| Block { run: run.clone(), from, len: (len - from).min(BLOCK as usize) };
        (0..len).step_by(BLOCK as usize).map(block).collect()
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.store.as_ref().map_or(&[], |store| store.bytes(self.len.next_multiple_of(ALIGN)))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            self.buffers.give_back(capacity_for(self.len), store);
        }
    }
}

/// The bytes of one block, shareable, with zero padding up to the alignment.
#[derive(Clone, Debug)]
pub struct Block {
    /// The whole buffer that it was cut from.
    run: Bytes,
    from: usize,
    len: usize,
}

impl Block {
    /// The block's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.run[self.from..self.from + self.len]
    }

    /// The bytes with their padding, aligned for O_DIRECT.
    pub fn padded(&self) -> &[u8] {
        &self.run[self.from..self.from + self.len.next_multiple_of(ALIGN)]
    }

    /// Length without padding.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Memory that it takes, with its padding.
    pub fn weight(&self) -> usize {
        capacity_for(self.len)
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes of consecutive blocks: without a copy where they lie in one buffer.
    pub fn join(blocks: &[Block]) -> Bytes {
        let [first, .., last] = blocks else {
            let one = blocks.first();
            return one.map_or_else(Bytes::new, |b| b.run.slice(b.from..b.from + b.len));
        };
        let follows = |pair: &[Block]| match pair {
            [a, b] => a.run.as_ptr() == b.run.as_ptr() && a.from + a.len == b.from,
            _ => false,
        };
        if blocks.windows(2).all(follows) {
            return first.run.slice(first.from..last.from + last.len);
        }
        let mut out = Vec::with_capacity(blocks.iter().map(Block::len).sum());
        blocks.iter().for_each(|block| out.extend_from_slice(block.bytes()));
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_limit_is_held_until_the_last_reference_goes() {
        let buffers = Buffers::new(0);
        let total = buffers.total();
        let mut share = buffers.try_share(total as usize).unwrap();
        assert!(buffers.try_share(1).is_none());
        let mut buffer = share.buffer(5);
        buffer.bytes_mut().copy_from_slice(b"hello");
        drop(share);
        let block = buffer.freeze().remove(0);
        assert_eq!(block.padded().as_ptr().align_offset(ALIGN), 0);
        assert_eq!(block.bytes(), b"hello");
        let copy = block.clone();
        drop(block);
        assert_eq!(buffers.used(), 2 * ALIGN as u64);
        drop(copy);
        assert_eq!(buffers.used(), 0);
    }

    #[tokio::test]
    async fn a_request_over_the_whole_limit_does_not_hang() {
        let buffers = Buffers::new(0);
        assert!(buffers.share(usize::MAX / 2).await.is_some());
    }

    #[test]
    fn blocks_of_one_buffer_join_without_a_copy_and_others_with() {
        let buffers = Buffers::new(0);
        let len = 2 * BLOCK as usize + 10;
        let mut share = buffers.try_share(3 * BLOCK as usize).unwrap();
        let mut buffer = share.buffer(len);
        for (at, byte) in buffer.bytes_mut().iter_mut().enumerate() {
            *byte = (at / 1000) as u8;
        }
        let blocks = buffer.freeze();
        let whole = Block::join(&blocks);
        assert_eq!((blocks.len(), whole.len()), (3, len));
        assert_eq!(whole.as_ptr(), blocks[0].bytes().as_ptr());
        let apart = [blocks[2].clone(), blocks[1].clone()];
        let joined = Block::join(&apart);
        assert_eq!(&joined[..10], blocks[2].bytes());
        assert_eq!(&joined[10..], blocks[1].bytes());
        assert!(Block::join(&[]).is_empty());
    }

    #[test]
    fn what_is_spared_stays_under_the_limit() {
        let buffers = Buffers::new(0);
        let total = buffers.total() as usize;
        for len in [BLOCK as usize, 5000, 8 * BLOCK as usize] {
            let mut share = buffers.try_share(total).unwrap();
            let all: Vec<_> = (0..total / capacity_for(len)).map(|_| share.buffer(len)).collect();
            drop(all);
            let spare = buffers.spare();
            let bytes: usize = spare.stores.iter().map(|(size, all)| size * all.len()).sum();
            assert!(spare.allocated <= total && bytes == spare.allocated, "{len}");
        }
    }
}
