//! Buffers for bytes on their way, all of them under one limit.
//!
//! Every buffer is aligned for O_DIRECT and holds its share of the limit until the last
//! [`Bytes`] made of it is dropped.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::blocks::BLOCK;

/// Alignment of buffers: the largest logical block size of common disks.
pub const ALIGN: usize = 4096;
/// Buffers kept for reuse.
const SPARE_MAX: usize = 64;
/// Unit in which the limit is counted.
const UNIT: usize = 1024;

/// Hands out buffers under a limit.
pub struct Buffers {
    limit: Arc<Semaphore>,
    total_units: usize,
    spare: Mutex<Vec<Vec<u8>>>,
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

    fn take_spare(&self) -> Option<Vec<u8>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give_back(&self, store: Vec<u8>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(store);
        }
    }
}

/// A part of the limit that buffers may be cut from.
pub struct Share {
    permit: OwnedSemaphorePermit,
    buffers: Arc<Buffers>,
}

impl Share {
    /// A buffer for `len` bytes (at most one block) that holds its part of this share.
    pub fn buffer(&mut self, len: usize) -> Buffer {
        let capacity = len.next_multiple_of(ALIGN).max(ALIGN);
        let units = capacity.div_ceil(UNIT).min(self.permit.num_permits());
        let part = self.permit.split(units);
        let whole = BLOCK as usize;
        let store = if capacity == whole { self.buffers.take_spare() } else { None };
        let store = store.unwrap_or_else(|| vec![0; capacity + ALIGN]);
        let start = store.as_ptr().align_offset(ALIGN).min(ALIGN);
        Buffer { store, start, capacity, len, _part: part, buffers: self.buffers.clone() }
    }
}

/// An aligned buffer.
pub struct Buffer {
    store: Vec<u8>,
    start: usize,
    capacity: usize,
    len: usize,
    _part: Option<OwnedSemaphorePermit>,
    buffers: Arc<Buffers>,
}

impl Buffer {
    /// The bytes to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.store[self.start..self.start + self.len]
    }

    /// The bytes with their padding up to the alignment.
    pub fn padded_mut(&mut self) -> &mut [u8] {
        &mut self.store[self.start..self.start + self.capacity]
    }

    /// Makes the buffer immutable and shareable. The padding is zeroed and left out.
    pub fn freeze(mut self) -> Block {
        let len = self.len;
        self.padded_mut()[len..].fill(0);
        Block { len, padded: Bytes::from_owner(self) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.store[self.start..self.start + self.capacity]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.capacity == BLOCK as usize {
            self.buffers.give_back(std::mem::take(&mut self.store));
        }
    }
}

/// The bytes of one block, shareable, with zero padding up to the alignment.
#[derive(Clone, Debug)]
pub struct Block {
    len: usize,
    padded: Bytes,
}

impl Block {
    /// The block's bytes.
    pub fn bytes(&self) -> Bytes {
        self.padded.slice(..self.len)
    }

    /// The bytes with their padding, aligned for O_DIRECT.
    pub fn padded(&self) -> &[u8] {
        &self.padded
    }

    /// Length without padding.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
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
        let block = buffer.freeze();
        assert_eq!(block.padded().as_ptr().align_offset(ALIGN), 0);
        assert_eq!(&block.bytes()[..], b"hello");
        let copy = block.clone();
        drop(block);
        assert_eq!(buffers.used(), ALIGN as u64);
        drop(copy);
        assert_eq!(buffers.used(), 0);
    }

    #[tokio::test]
    async fn a_request_over_the_whole_limit_does_not_hang() {
        let buffers = Buffers::new(0);
        assert!(buffers.share(usize::MAX / 2).await.is_some());
    }
}
