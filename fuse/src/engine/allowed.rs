//! Versions of objects that an origin has allowed a mount, and when. How many are remembered is bounded
//! over all mounts: who may mount decides how many there are, and who reads how many objects.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use lru::LruCache;

use crate::model::version::VersionKey;

/// Permissions that all mounts remember: of each some 100 bytes, however long its key.
const ALL_MAX: usize = 262_144;
/// A mount has an equal share of them, and no more than one of so many would.
const SHARES_MIN: usize = 4;
/// So many a mount may remember in any case.
const OWN_MIN: usize = 1024;

/// What all mounts remember.
#[derive(Default)]
pub(crate) struct Permissions {
    mounts: AtomicUsize,
    remembered: AtomicUsize,
}

/// What one remembers. Versions are known by two hashes that nobody can foresee.
pub(super) struct AllowedObjects {
    all: Arc<Permissions>,
    hashers: [RandomState; 2],
    at: LruCache<[u64; 2], Instant>,
}

impl AllowedObjects {
    /// Of one mount more.
    pub(super) fn new(all: &Arc<Permissions>) -> Self {
        all.mounts.fetch_add(1, Ordering::Relaxed);
        let hashers = [RandomState::new(), RandomState::new()];
        // Room is made as it is needed.
        Self { all: all.clone(), hashers, at: LruCache::unbounded() }
    }

    fn name(&self, shown: &VersionKey) -> [u64; 2] {
        let named = (&*shown.key, &shown.version);
        self.hashers.each_ref().map(|hasher| hasher.hash_one(named))
    }

    /// Notes that a version is allowed; what was not asked for longest is forgotten for it.
    pub(super) fn allow(&mut self, shown: &VersionKey) {
        if self.at.put(self.name(shown), Instant::now()).is_none() {
            self.all.remembered.fetch_add(1, Ordering::Relaxed);
        }
        while self.is_too_much() && self.at.pop_lru().is_some() {
            self.all.remembered.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn is_too_much(&self) -> bool {
        let own = self.at.len();
        let shares = self.all.mounts.load(Ordering::Relaxed).max(SHARES_MIN);
        // Others may have more than their shares from when there were fewer mounts.
        let all = self.all.remembered.load(Ordering::Relaxed);
        own > OWN_MIN && (own > ALL_MAX / shares || all > ALL_MAX)
    }

    /// When a version was allowed, if it was.
    pub(super) fn allowed_at(&mut self, shown: &VersionKey) -> Option<Instant> {
        self.at.get(&self.name(shown)).copied()
    }

    /// Forgets one.
    pub(super) fn forget(&mut self, shown: &VersionKey) {
        if self.at.pop(&self.name(shown)).is_some() {
            self.all.remembered.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.all.remembered.fetch_sub(self.at.len(), Ordering::Relaxed);
        self.at.clear();
    }
}

impl Drop for AllowedObjects {
    fn drop(&mut self) {
        self.clear();
        self.all.mounts.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::version::{BucketId, ETag, Version};

    fn key(n: usize) -> VersionKey {
        VersionKey {
            bucket: BucketId::new("http://s3", "b"),
            key: format!("{n}{}", "x".repeat(1000)).into(),
            version: Version { etag: ETag::new("e").unwrap(), size: 1 },
        }
    }

    #[test]
    fn a_bounded_number_of_permissions_is_remembered_however_long_the_keys() {
        const OWN_MAX: usize = ALL_MAX / SHARES_MIN;
        let all = Arc::default();
        let mut allowed = AllowedObjects::new(&all);
        (0..OWN_MAX + 10).for_each(|n| allowed.allow(&key(n)));
        assert_eq!(allowed.at.len(), OWN_MAX);
        assert!(allowed.allowed_at(&key(9)).is_none());
        assert!(allowed.allowed_at(&key(10)).is_some());
        assert!(allowed.allowed_at(&key(OWN_MAX + 10)).is_none(), "never asked for");
        allowed.forget(&key(10));
        allowed.forget(&key(10));
        assert!(allowed.allowed_at(&key(10)).is_none());
        allowed.allow(&key(20));
        assert_eq!(all.remembered.load(Ordering::Relaxed), OWN_MAX - 1);
        drop(allowed);
        assert_eq!(all.remembered.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn all_mounts_together_remember_a_bounded_number_of_permissions() {
        let all = Arc::default();
        let mut mounts: Vec<_> = (0..SHARES_MIN).map(|_| AllowedObjects::new(&all)).collect();
        let fill = |mount: &mut AllowedObjects| (0..2 * OWN_MIN).for_each(|n| mount.allow(&key(n)));
        for mount in &mut mounts {
            (0..ALL_MAX / SHARES_MIN).for_each(|n| mount.allow(&key(n)));
        }
        let remembered = || all.remembered.load(Ordering::Relaxed);
        assert_eq!(remembered(), ALL_MAX);
        // Those remember nothing new, and keep what they have; who comes has little.
        let mut later: Vec<_> = (0..60).map(|_| AllowedObjects::new(&all)).collect();
        later.iter_mut().for_each(fill);
        assert!(later.iter().all(|mount| mount.at.len() == OWN_MIN));
        assert_eq!(remembered(), ALL_MAX + later.len() * OWN_MIN);
        // One permission more, and they have no more than others.
        mounts.iter_mut().for_each(|mount| mount.allow(&key(usize::MAX)));
        let share = ALL_MAX / (mounts.len() + later.len());
        assert!(mounts.iter().all(|mount| (OWN_MIN..=share).contains(&mount.at.len())));
        assert!(remembered() <= ALL_MAX);
        later.iter_mut().for_each(fill);
        assert!(later.iter().all(|mount| mount.at.len() == 2 * OWN_MIN));
    }
}
