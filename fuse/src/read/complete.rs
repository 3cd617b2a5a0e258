//! Fetching the rest of a file that is read a lot, so that its next open is passthrough.

use std::sync::Arc;

use super::{Purpose, Reader, Source};
use crate::cache::CachedVersion;
use crate::logged::LoggedName;
use crate::model::blocks::{self, BLOCK};

/// Blocks that are checked in one turn at the disk: 8 MiB.
const CHECKED: usize = 64;

impl Reader {
    /// Fetches what is missing of a version, in the background, once at a time.
    pub fn complete(self: &Arc<Self>, source: &Source) {
        if source.version.is_complete() || !self.completing().insert(source.version.number) {
            return;
        }
        let (reader, source) = (self.clone(), source.clone());
        self.runtime.spawn(async move {
            reader.complete_now(&source).await;
            reader.completing().remove(&source.version.number);
        });
    }

    async fn complete_now(self: &Arc<Self>, source: &Source) {
        let version = &source.version;
        let all = 0..blocks::count(version.size());
        version.stores().in_place(|may| self.store_now(may, version)).await;
        for run in version.missing(all) {
            let mut at = run.start;
            while at < run.end {
                let end = (at + self.part_blocks).min(run.end);
                let bytes = blocks::bytes_of(&(at..end), version.size());
                // Reading one byte of each block's part waits for the whole flight.
                let last = bytes.end - 1;
                self.prefetch(source, bytes.clone());
                if let Err(error) = self.read(source, last, 1, 0, 0..0, Purpose::Hold).await {
                    tracing::debug!(key = %version.key.key, %error, "completion given up");
                    return;
                }
                if !version.has(end - 1) && !self.settles(version, end - 1).await {
                    // There is no room to keep it: fetching on would be in vain.
                    return;
                }
                at = end;
            }
        }
    }

    /// Waits until the flight of a block has ended; says whether it has written it.
    pub(super) async fn settles(&self, version: &CachedVersion, block: u32) -> bool {
        loop {
            let changed = version.flights.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if version.flights.find(block).is_none() {
                return version.has(block);
            }
            changed.await;
        }
    }

    /// Checks the held blocks of a version, some at a time: others want their turns, too.
    async fn is_right(&self, version: &Arc<CachedVersion>) -> bool {
        let mut right = true;
        for held in version.held_blocks().chunks(CHECKED) {
            let check = |may: &_| version.check(may, &self.buffers, held);
            right &= version.stores().in_place(check).await;
        }
        if right {
            version.note_checked();
        }
        right
    }

    /// Checks the blocks of a complete version after an unclean boot, in the background.
    pub fn verify(self: &Arc<Self>, source: &Source) {
        if !self.completing().insert(source.version.number) {
            return;
        }
        let (reader, version) = (self.clone(), source.version.clone());
        self.runtime.spawn(async move {
            let right = reader.is_right(&version).await;
            let mib = version.size() / (8 * BLOCK);
            tracing::info!(key = %LoggedName(&version.key.key), mib, right, "cached version checked");
            reader.completing().remove(&version.number);
        });
    }
}
