//! Versions of which wrong bytes were shown. The kernel has them in its page cache, perhaps: they are
//! dropped there when such a version is opened.

use std::sync::{Mutex, MutexGuard};

use lru::LruCache;

use crate::model::version::VersionKey;
use crate::sync::unpoisoned;

/// Versions that are remembered.
const REMEMBERED: usize = 4096;

pub(super) struct WrongVersions(Mutex<LruCache<VersionKey, ()>>);

impl Default for WrongVersions {
    fn default() -> Self {
        Self(Mutex::new(LruCache::unbounded()))
    }
}

impl WrongVersions {
    pub(super) fn note(&self, version: &VersionKey) {
        let mut versions = self.versions();
        versions.put(version.clone(), ());
        if versions.len() > REMEMBERED {
            versions.pop_lru();
        }
    }

    pub(super) fn has(&self, version: &VersionKey) -> bool {
        self.versions().get(version).is_some()
    }

    fn versions(&self) -> MutexGuard<'_, LruCache<VersionKey, ()>> {
        unpoisoned(self.0.lock())
    }
}
