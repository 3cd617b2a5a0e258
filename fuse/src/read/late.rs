//! Storing late: what was fetched while the cache had no room is in memory only. It is stored
//! once there is room and somebody reads it again, without being fetched again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::Reader;
use crate::blocking::MayBlock;
use crate::buffers::{Block, RUN};
use crate::cache::CachedVersion;
use crate::sync::unpoisoned;

/// How soon it is tried again where there was no room, or where the disk failed.
const AGAIN: Duration = Duration::from_secs(1);
/// Versions remembered before those whose time is over are dropped.
const TRIES_MAX: usize = 1024;

/// Versions that are being stored late, or were tried just now.
#[derive(Default)]
pub(super) struct LateStores {
    tries: Mutex<HashMap<u64, Instant>>,
}

impl LateStores {
    /// Whether the version is to be tried now; if so it counts as tried.
    fn begin(&self, id: u64) -> bool {
        let mut tries = self.tries();
        let now = Instant::now();
        if tries.get(&id).is_some_and(|next| *next > now) {
            return false;
        }
        if tries.len() >= TRIES_MAX {
            tries.retain(|_, next| *next > now);
        }
        tries.insert(id, now + AGAIN);
        true
    }

    /// Lets a version be tried again at once.
    fn end(&self, id: u64) {
        self.tries().remove(&id);
    }

    fn tries(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        unpoisoned(self.tries.lock())
    }
}

impl Reader {
    /// Whether a block that is in memory is neither on the disk nor on its way there.
    pub(super) fn is_in_memory_only(&self, version: &CachedVersion, block: u32) -> bool {
        // A flight that ended between the first two looks has stored it by the third.
        !version.has(block) && version.flights.find(block).is_none() && !version.has(block)
    }

    /// Stores what is in memory of a version and not on the disk, behind.
    pub(super) fn store_late(self: &Arc<Self>, version: &Arc<CachedVersion>) {
        if !self.late.begin(version.number) {
            return;
        }
        let (reader, version) = (self.clone(), version.clone());
        self.runtime.spawn(async move {
            // The flights of these have found no room, perhaps, and are about to end.
            let mut landing = reader.hot.blocks_of(version.number);
            landing.retain(|block| version.flights.find(*block).is_some());
            let store = |may: &_| reader.store_now(may, &version);
            let mut stored = version.stores().in_place(store).await;
            for block in &landing {
                reader.settles(&version, *block).await;
            }
            if stored && !landing.is_empty() {
                stored = version.stores().in_place(store).await;
            }
            if stored {
                reader.late.end(version.number);
            }
            reader.cache.used(&version);
        });
    }

    /// Stores what is in memory of a version and not on the disk; says whether there was room
    /// for all of it.
    pub(super) fn store_now(&self, may: &MayBlock, version: &Arc<CachedVersion>) -> bool {
        // What is in memory is bounded; how many blocks a version has, others say.
        let mut blocks = self.hot.blocks_of(version.number);
        blocks.retain(|block| self.is_in_memory_only(version, *block));
        for run in blocks.chunk_by(|a, b| a + 1 == *b && a / RUN == b / RUN) {
            let mut rest = run;
            while let [first, more @ ..] = rest {
                let get = |block: &u32| self.hot.get(version.number, *block);
                let data: Vec<Block> = rest.iter().map_while(get).collect();
                if !data.is_empty() && !self.store_run(may, version, *first, &data) {
                    return false;
                }
                // One that left memory meanwhile is passed over.
                rest = if data.is_empty() { more } else { &rest[data.len()..] };
            }
        }
        true
    }

    fn store_run(
        &self,
        may: &MayBlock,
        version: &Arc<CachedVersion>,
        first: u32,
        run: &[Block],
    ) -> bool {
        let bytes = run.iter().map(|block| block.len() as u64).sum();
        let Some(room) = self.cache.make_room(may, version, bytes) else { return false };
        match version.store(may, first, run, &room) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "cache disk refuses a write; reading through");
                false
            }
        }
    }
}
