//! Versions of which wrong bytes were shown. The kernel has them in its page cache, perhaps: they are
//! dropped there when such a version is opened.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard};

use lru::LruCache;

use crate::model::version::VersionKey;
use crate::sync::unpoisoned;

/// Versions that are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

pub(super) struct WrongVersions(Mutex<LruCache<VersionKey, ()>>);

impl Default for WrongVersions {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(REMEMBERED)))
    }
}

impl WrongVersions {
    pub(super) fn note(&self, version: &VersionKey) {
        self.versions().put(version.clone(), ());
    }

    pub(super) fn has(&self, version: &VersionKey) -> bool {
        self.versions().get(version).is_some()
    }

    fn versions(&self) -> MutexGuard<'_, LruCache<VersionKey, ()>> {
        unpoisoned(self.0.lock())
    }
}
