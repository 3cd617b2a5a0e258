//! Blocks in memory: just fetched or just read, kept until memory is wanted for others.

use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::buffers::Block;

/// A bounded set of blocks, least recently used first to go.
pub struct HotBlocks {
    inner: Mutex<Inner>,
    max_bytes: usize,
}

struct Inner {
    blocks: LruCache<(u64, u32), Block>,
    bytes: usize,
}

impl HotBlocks {
    /// Holds at most `max_bytes`.
    pub fn new(max_bytes: u64) -> Self {
        let inner = Inner { blocks: LruCache::unbounded(), bytes: 0 };
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        Self { inner: Mutex::new(inner), max_bytes }
    }

    /// The block `block` of the version with id `id`.
    pub fn get(&self, id: u64, block: u32) -> Option<Block> {
        self.lock().blocks.get(&(id, block)).cloned()
    }

    /// The numbers of the blocks of the version with id `id`, in order.
    pub fn blocks_of(&self, id: u64) -> Vec<u32> {
        let inner = self.lock();
        let of = |((version, block), _): (&(u64, u32), &Block)| (*version == id).then_some(*block);
        let mut blocks: Vec<u32> = inner.blocks.iter().filter_map(of).collect();
        drop(inner);
        blocks.sort_unstable();
        blocks
    }

    /// Adds consecutive blocks.
    pub fn insert(&self, id: u64, first: u32, data: &[Block]) {
        self.insert_if(id, first, data, || true);
    }

    /// As [`HotBlocks::insert`], if that is still right when nobody else adds or drops any.
    pub fn insert_if(&self, id: u64, first: u32, data: &[Block], is_right: impl FnOnce() -> bool) {
        let mut inner = self.lock();
        if !is_right() {
            return;
        }
        for (block, data) in (first..).zip(data) {
            inner.bytes += data.weight();
            if let Some((_, old)) = inner.blocks.push((id, block), data.clone()) {
                inner.bytes -= old.weight();
            }
        }
        while inner.bytes > self.max_bytes && inner.pop() {}
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Drops the least recently used blocks until `bytes` are free or none is left. Says
    /// whether any was dropped.
    pub fn reclaim(&self, bytes: usize) -> bool {
        let mut inner = self.lock();
        let target = inner.bytes.saturating_sub(bytes);
        let mut any = false;
        while inner.bytes > target && inner.pop() {
            any = true;
        }
        any
    }

    /// Drops a block.
    pub fn forget(&self, id: u64, block: u32) {
        let mut inner = self.lock();
        if let Some(old) = inner.blocks.pop(&(id, block)) {
            inner.bytes -= old.weight();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn pop(&mut self) -> bool {
        let popped = self.blocks.pop_lru();
        if let Some((_, old)) = &popped {
            self.bytes -= old.weight();
        }
        popped.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::Buffers;

    #[test]
    fn the_oldest_goes_first_and_the_bound_holds() {
        let buffers = Buffers::new(0);
        let block = || buffers.try_share(8192).unwrap().buffer(4096).freeze().remove(0);
        let hot = HotBlocks::new(3 * 8192);
        for n in 0..4 {
            hot.insert(1, n, &[block()]);
            hot.get(1, 0);
        }
        assert!(hot.get(1, 0).is_some() && hot.get(1, 1).is_none() && hot.get(1, 3).is_some());
        hot.insert(1, 0, &[block()]);
        assert_eq!((hot.blocks_of(1), hot.blocks_of(2)), (vec![0, 2, 3], vec![]));
        assert!(hot.reclaim(usize::MAX) && !hot.reclaim(1));
        assert_eq!(buffers.used(), 0);
    }
}
