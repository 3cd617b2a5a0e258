//! Fetching the rest of a file that is read a lot, so that its next open is passthrough, and checking
//! what is held of a whole one.

use std::sync::Arc;
use std::time::Duration;

use md5::{Digest, Md5};

use super::{Purpose, Reader, Source};
use crate::cache::CachedVersion;
use crate::logged::LoggedName;
use crate::model::blocks::{self, BLOCK};
use crate::origin::Compared;

/// Blocks that are checked in one turn at the disk: 8 MiB.
const CHECKED: usize = 64;
/// The same where they are digested, too, which takes longer than to read them: 1 MiB.
const DIGESTED: usize = 8;

/// How often it is seen whether bytes are worth asking for now.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How often in a row.
const LOOKS: u32 = 20;

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
            reader.settle(&source);
        });
    }

    async fn complete_now(self: &Arc<Self>, source: &Source) {
        let version = &source.version;
        let all = 0..blocks::count(version.size());
        version.stores().in_place(|may| self.store_now(may, version)).await;
        for run in version.missing(all) {
            let mut at = run.start;
            while at < run.end {
                // While it is not worth it, a block now and then: who asks for one is told how it stands.
                let part = if self.is_worth_it(source).await { self.part_blocks } else { 1 };
                let end = (at + part).min(run.end);
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

    /// Whether bytes of a version are worth asking for though nobody waits for them; waits a while for that.
    async fn is_worth_it(&self, source: &Source) -> bool {
        for _ in 0..LOOKS {
            if self.may_fetch_ahead(source) {
                return true;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.may_fetch_ahead(source)
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

    /// Checks the held blocks of a version, some at a time: others want their turns, too. `see` is shown
    /// those that are right, in order.
    async fn is_held_right(
        &self,
        version: &Arc<CachedVersion>,
        at_once: usize,
        mut see: impl FnMut(&[u8]) + Send,
    ) -> bool {
        let mut right = true;
        for held in version.held_blocks().chunks(at_once) {
            let check = |may: &_| version.check(may, &self.buffers, held, &mut see);
            right &= version.stores().in_place(check).await;
        }
        right
    }

    /// Checks a complete version: its blocks and, where some are not the origin's own, whether all of
    /// them are what its tag says.
    async fn is_right(&self, source: &Source) -> bool {
        let version = &source.version;
        let doubts = version.doubts();
        let md5 = version.key.version.etag.md5().filter(|_| version.is_borrowed());
        let right = match md5 {
            None => self.is_held_right(version, CHECKED, |_| ()).await,
            Some(md5) => {
                let mut digest = Md5::new();
                let held = self.is_held_right(version, DIGESTED, |bytes| digest.update(bytes));
                if !held.await || !version.is_complete() || version.doubts() != doubts {
                    return false;
                }
                let compared = match *digest.finalize() == md5 {
                    true => Compared::Equal,
                    false => Compared::Different { of_origin: version.was_given_up() },
                };
                let place = self.cache.place_of(&version.key);
                let place = place.as_ref().unwrap_or(&version.key);
                source.origin.judge(&place.key, &version.key.version, compared)
                    || self.give_up(version).await
            }
        };
        let trusted = right && version.note_checked(doubts);
        if trusted {
            self.doubted.settle(&version.key);
        }
        trusted
    }

    /// Gives up what is held of a version, and is not its bytes. Returns `false`.
    async fn give_up(&self, version: &Arc<CachedVersion>) -> bool {
        version.stores().in_place(|may| version.give_up(may)).await;
        for block in self.hot.blocks_of(version.number) {
            self.hot.forget(version.number, block);
        }
        false
    }

    /// Whether the kernel's page cache may have bytes of a version that is opened now which are not its
    /// own: some were shown before all were compared with its tag.
    pub fn has_doubtful_pages(&self, version: &CachedVersion) -> bool {
        self.doubted.opened(&version.key) || version.is_borrowed()
    }

    /// Checks a version that has become whole, and of which some bytes are not the origin's own; what is
    /// wrong is fetched again.
    pub(super) fn settle(self: &Arc<Self>, source: &Source) {
        if source.version.is_borrowed() && source.version.is_complete() {
            self.verify(source);
        }
    }

    /// Checks the blocks of a complete version that is not trusted, in the background: after an unclean
    /// boot, and where some are not the origin's own.
    pub fn verify(self: &Arc<Self>, source: &Source) {
        if !self.completing().insert(source.version.number) {
            return;
        }
        let (reader, source) = (self.clone(), source.clone());
        self.runtime.spawn(async move {
            let version = &source.version;
            let (is_new, doubts) = (version.is_borrowed(), version.doubts());
            let right = reader.is_right(&source).await;
            let mib = version.size() / (8 * BLOCK);
            let key = LoggedName(&version.key.key);
            match is_new {
                true => tracing::debug!(%key, mib, right, "version of a region checked"),
                false => tracing::info!(%key, mib, right, "cached version checked"),
            }
            reader.completing().remove(&version.number);
            if !right && is_new {
                reader.complete(&source);
            }
            // Something came meanwhile that was not looked at.
            if version.doubts() != doubts {
                reader.settle(&source);
            }
        });
    }
}
