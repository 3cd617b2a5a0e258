//! Fetching the rest of a file that is read a lot, so that its next open is passthrough.

use std::sync::Arc;

use super::{Purpose, Reader, Source};
use crate::cache::CachedVersion;
use crate::logged::LoggedName;
use crate::model::blocks::{self, BLOCK};

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
        tokio::task::block_in_place(|| self.store_now(version));
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

    /// Checks the blocks of a complete version after an unclean boot, in the background.
    pub fn verify(self: &Arc<Self>, source: &Source) {
        if !self.completing().insert(source.version.number) {
            return;
        }
        let (reader, version) = (self.clone(), source.version.clone());
        self.runtime.spawn_blocking(move || {
            let right = version.verify(&reader.buffers);
            let mib = version.size() / (8 * BLOCK);
            tracing::info!(key = %LoggedName(&version.key.key), mib, right, "cached version checked");
            reader.completing().remove(&version.number);
        });
    }
}
