//! Versions of which bytes were shown that had not been compared with their tag. The kernel has them in its
//! page cache, perhaps: they are dropped there when such a version is opened.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard};

use lru::LruCache;

use crate::model::version::VersionKey;
use crate::sync::unpoisoned;

/// Versions that are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

#[derive(Default)]
pub(super) struct DoubtedVersions(Mutex<Doubts>);

struct Doubts(LruCache<VersionKey, Doubt>);

impl Default for Doubts {
    fn default() -> Self {
        Self(LruCache::new(REMEMBERED))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Doubt {
    Open,
    /// What is shown from now on is right. What was shown before is in the page cache still.
    Settled,
}

impl DoubtedVersions {
    /// Notes that bytes come which are not compared yet.
    pub(super) fn note(&self, version: &VersionKey) {
        self.doubts().0.put(version.clone(), Doubt::Open);
    }

    /// Notes that all that is shown from now on was compared.
    pub(super) fn settle(&self, version: &VersionKey) {
        if let Some(doubt) = self.doubts().0.get_mut(version) {
            *doubt = Doubt::Settled;
        }
    }

    /// Whether the page cache is to be dropped as a version is opened.
    pub(super) fn opened(&self, version: &VersionKey) -> bool {
        let doubts = &mut self.doubts().0;
        let doubt = doubts.get(version).copied();
        if doubt == Some(Doubt::Settled) {
            doubts.pop(version);
        }
        doubt.is_some()
    }

    fn doubts(&self) -> MutexGuard<'_, Doubts> {
        unpoisoned(self.0.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::version::{BucketId, ETag, Version};

    fn version(key: &str) -> VersionKey {
        let version = Version { etag: ETag::new("e").unwrap(), size: 1 };
        VersionKey { bucket: BucketId::new("http://s3", "b"), key: key.into(), version }
    }

    #[test]
    fn pages_are_dropped_at_each_open_until_the_bytes_are_compared_and_once_after_that() {
        let doubted = DoubtedVersions::default();
        assert!(!doubted.opened(&version("k")));
        doubted.settle(&version("k"));
        assert!(!doubted.opened(&version("k")), "nothing was shown");
        doubted.note(&version("k"));
        assert!(doubted.opened(&version("k")) && doubted.opened(&version("k")));
        assert!(!doubted.opened(&version("l")));
        doubted.settle(&version("k"));
        assert!(doubted.opened(&version("k")) && !doubted.opened(&version("k")));
        // More bytes come that are not compared.
        doubted.note(&version("k"));
        doubted.settle(&version("k"));
        doubted.note(&version("k"));
        assert!(doubted.opened(&version("k")) && doubted.opened(&version("k")));
        for n in 0..2 * REMEMBERED.get() {
            doubted.note(&version(&n.to_string()));
        }
        assert_eq!(doubted.doubts().0.len(), REMEMBERED.get());
    }
}
