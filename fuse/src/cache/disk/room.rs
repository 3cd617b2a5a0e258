//! Room on a disk: set aside, and made by evicting what was not used for longest.

use std::io;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::DiskCache;
use crate::blocking::MayBlock;
use crate::cache::dir::CacheDir;
use crate::cache::shared::Shared;
use crate::cache::space::{Bound, Need};
use crate::model::version::VersionKey;
use crate::sync::atomic::AtomicU64;

/// How often a commit is asked for because room is short.
const FLUSH_EVERY: Duration = Duration::from_millis(250);
/// How long such a commit is waited for: somebody reads or writes behind it.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// Something that keeps versions in use although nobody reads them, and can let go.
pub trait Pressure: Send + Sync {
    /// Lets go of some, least recently used first; says whether there were any.
    fn relieve(&self) -> bool;
}

/// What came of asking those who keep versions in use.
#[derive(PartialEq, Eq)]
enum Relief {
    /// A victim may be found now.
    Given,
    /// A commit that may bring one is not done yet.
    Late,
    /// Nobody has anything to let go of.
    None,
}

/// Room set aside in the cache: what is stored takes of it, and the rest is given back when it is
/// dropped.
pub struct Room {
    shared: Arc<Shared>,
    left: AtomicU64,
}

impl Room {
    /// Counts that a version holds so many bytes more, which are then no longer set aside.
    pub(in crate::cache) fn fill(&self, version: u64, bytes: i64) {
        if bytes != 0 {
            self.shared.space.fill(version, bytes, &self.left);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shared.space.unreserve(*self.left.get_mut());
    }
}

impl DiskCache {
    /// Makes room for what a version needs, by evicting what was not used for longest, and sets it
    /// aside while the result lives. `None`: there is no room.
    pub(in crate::cache) fn make_room(&self, may: &MayBlock, need: Need) -> Option<Room> {
        self.make_room_within(may, need, Bound::Both)
    }

    /// Like [`DiskCache::make_room`], of bytes that are on the disk already, `counted` of them in
    /// the account.
    pub(in crate::cache) fn make_place(
        &self,
        may: &MayBlock,
        need: Need,
        counted: u64,
    ) -> Option<Room> {
        let need = Need { bytes: need.bytes.saturating_sub(counted), ..need };
        self.make_room_within(may, need, Bound::MaxSize)
    }

    fn make_room_within(&self, may: &MayBlock, need: Need, bound: Bound) -> Option<Room> {
        let Self { shared, .. } = self;
        loop {
            if shared.space.reserve(&shared.dir, need, bound) {
                let left = AtomicU64::new(need.bytes);
                return Some(Room { shared: shared.clone(), left });
            }
            let lacks_inodes = || need.files > 0 && shared.space.is_out_of_inodes(&shared.dir);
            if need.bytes > shared.space.limits().max_size || lacks_inodes() {
                return None;
            }
            // Who reads behind it does not wait for a disk that is busy: there is the origin.
            if !self.evict_one(may) && self.relieve(may) != Relief::Given {
                return None;
            }
        }
    }

    /// Makes room for `needed` bytes of a staging file, or up to `step` where there is plenty, and
    /// counts them. What is cached makes place for what is being written, which nobody can fetch
    /// again. `None`: less would stay free than is to.
    pub(in crate::cache) fn claim(&self, may: &MayBlock, needed: u64, step: u64) -> Option<u64> {
        let Shared { space, dir, .. } = &*self.shared;
        // Nothing is evicted for what there would be no room for then.
        if needed > space.attainable(dir) {
            space.look_again();
            if needed > space.attainable(dir) {
                return None;
            }
        }
        let claim = |bound| space.claim(dir, needed, step, bound);
        loop {
            if let Some(given) = claim(Bound::Both) {
                return Some(given);
            }
            if !self.evict_one(may) {
                break;
            }
        }
        loop {
            if let Some(given) = claim(Bound::MinFree) {
                return Some(given);
            }
            if !self.evict_one(may) && self.relieve(may) == Relief::None {
                // Others may have made room since the last look.
                self.shared.space.look_again();
                return claim(Bound::MinFree);
            }
        }
    }

    fn evict_one(&self, may: &MayBlock) -> bool {
        let mut active = self.active();
        let in_use = |id| active.in_use(id);
        let victim = self.shared.space.versions_mut(|versions| versions.victim(in_use));
        let Some(id) = victim else { return false };
        active.evicted.insert(id);
        drop(active);
        self.remove(may, id);
        self.shared.metrics.cache_evictions.inc();
        true
    }

    /// Removes a version that `active.evicted` already names, until the index does not any more.
    fn remove(&self, may: &MayBlock, id: u64) {
        self.shared.space.versions_mut(|versions| versions.remove(id));
        self.shared.committer.removed(id);
        match self.shared.dir.folder().remove(may, &CacheDir::object_name(id)) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(id, %error, "evicted file stays on the disk"),
        }
        self.shared.space.look_again();
        self.note_use();
    }

    /// Asks those who keep versions in use without need: backing ids that nobody has open, then
    /// the committer, for which a version is in use until it is in the index. That costs a
    /// commit, so not again soon.
    fn relieve(&self, may: &MayBlock) -> Relief {
        let pressure = self.pressure.lock().unwrap_or_else(PoisonError::into_inner);
        let holders: Vec<_> = pressure.iter().filter_map(Weak::upgrade).collect();
        drop(pressure);
        let mut any = false;
        // All of them are asked, so that no mount keeps more than others.
        for holder in holders {
            any |= holder.relieve();
        }
        if any {
            return Relief::Given;
        }
        {
            let mut last = self.flushed.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|at| at.elapsed() < FLUSH_EVERY) {
                return Relief::None;
            }
            *last = Some(Instant::now());
        }
        let done = self.shared.committer.flush_within(may, FLUSH_PATIENCE);
        // An index that takes nothing must not keep what would make place for it.
        self.shared.committer.let_go();
        if done { Relief::Given } else { Relief::Late }
    }

    /// Registers somebody to be asked when room is short.
    pub(in crate::cache) fn on_pressure(&self, holder: Weak<dyn Pressure>) {
        let mut pressure = self.pressure.lock().unwrap_or_else(PoisonError::into_inner);
        pressure.retain(|weak| weak.strong_count() > 0);
        pressure.push(holder);
    }

    /// Forgets a version that its bucket no longer has, unless it is in use.
    pub(in crate::cache) fn discard(&self, may: &MayBlock, key: &VersionKey) {
        let call = self.shared.call();
        let found = self.index.find(may, &key.to_bytes());
        drop(call);
        let Some((id, _)) = found else { return };
        let mut active = self.active();
        if active.in_use(id) || !active.evicted.insert(id) {
            return;
        }
        drop(active);
        self.remove(may, id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::blocking::MAY;
    use crate::buffers::{Block, Buffers};
    use crate::cache::DiskSettings;
    use crate::metrics::Metrics;
    use crate::model::blocks::BLOCK;
    use crate::model::version::{BucketId, ETag, Version};

    const SIZE: u64 = 8 * BLOCK;

    fn bytes(bytes: u64) -> Need {
        Need { bytes, files: 0 }
    }

    /// A cache with room for ten blocks, what it was opened in, a version of eight and its bytes.
    fn small() -> (tempfile::TempDir, Arc<DiskCache>, VersionKey, Vec<Block>) {
        let dir = tempfile::tempdir().unwrap();
        let settings = DiskSettings::new(dir.path().to_owned(), 10 * BLOCK, 0);
        let cache =
            DiskCache::open(MAY, &settings, 0, 1, Arc::new(Metrics::new().unwrap())).unwrap();
        let key = VersionKey {
            bucket: BucketId::new("http://s3", "b"),
            key: "f".into(),
            version: Version { etag: ETag::new("e").unwrap(), size: SIZE },
        };
        let share = Buffers::new(0).try_share(SIZE as usize);
        let blocks = share.unwrap().buffer(SIZE as usize).freeze();
        (dir, cache, key, blocks)
    }

    #[test]
    fn what_is_stored_is_not_set_aside_as_well() {
        let (_dir, cache, key, blocks) = small();
        let version = cache.acquire(MAY, &key);
        let room = cache.make_room(MAY, bytes(SIZE)).unwrap();
        version.store(MAY, 0, &blocks[..5], &room).unwrap();
        // Held a second time: it takes no room.
        version.store(MAY, 0, &blocks[..5], &room).unwrap();
        assert!(cache.make_room(MAY, bytes(3 * BLOCK)).is_none());
        let rest = cache.make_room(MAY, bytes(2 * BLOCK)).expect("8 of 10 blocks are taken");
        version.store(MAY, 5, &blocks[5..], &room).unwrap();
        drop((rest, room));
        assert_eq!(cache.shared.space.used(), SIZE);
        assert!(cache.make_room(MAY, bytes(2 * BLOCK)).is_some());
        drop(version);
        cache.close(MAY);
    }

    #[test]
    fn a_disk_that_does_not_answer_counts_as_failing_until_it_does() {
        let (dir, cache, ..) = small();
        // Who has a turn may wait for something else.
        let turn = cache.shared.calls.try_take().unwrap();
        cache.shared.dir.folder().unanswered().age(Duration::from_secs(60));
        assert_eq!(cache.problem(), None);
        drop(turn);
        let call = cache.shared.calls.call();
        cache.shared.dir.folder().unanswered().age(Duration::from_secs(60));
        let problem = cache.problem().unwrap();
        assert!(problem.contains(dir.path().to_str().unwrap()), "{problem}");
        assert!(!cache.shared.works());
        drop(call);
        assert_eq!(cache.problem(), None);
        cache.close(MAY);
    }

    #[test]
    fn nobody_waits_for_room_until_a_slow_commit_ends() {
        let (_dir, cache, key, blocks) = small();
        let (told, answer) = mpsc::channel();
        let room = cache.index.stalled(|| {
            // In use until it is in the index, and all that could make place.
            let room = cache.make_room(MAY, bytes(SIZE)).unwrap();
            cache.acquire(MAY, &key).store(MAY, 0, &blocks, &room).unwrap();
            drop(room);
            let asked = cache.clone();
            std::thread::spawn(move || told.send(asked.make_room(MAY, bytes(4 * BLOCK)).is_some()));
            answer.recv_timeout(Duration::from_secs(30))
        });
        assert_eq!(room, Ok(false));
        cache.shared.committer.flush(MAY);
        assert!(cache.make_room(MAY, bytes(4 * BLOCK)).is_some());
        cache.close(MAY);
    }
}
