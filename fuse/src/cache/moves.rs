//! Where versions are that were renamed here while somebody read them.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::model::version::VersionKey;
use crate::sync::{Mutex, MutexGuard, unpoisoned};

/// Versions whose move is remembered; beyond, those that were asked for least recently are
/// forgotten, and their readers get what a reader of a removed object gets.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// By what a version was opened as: as what the same bytes can be had now.
pub(super) struct Moves {
    places: Mutex<LruCache<VersionKey, VersionKey>>,
}

impl Default for Moves {
    fn default() -> Self {
        Self { places: Mutex::new(LruCache::new(REMEMBERED)) }
    }
}

impl Moves {
    /// Notes that the bytes of `from` are those of `to` now. `is_read` says whether somebody
    /// reads `from`; where nobody does, only who came to it by an earlier move is led on.
    pub(super) fn note(&self, from: &VersionKey, to: &VersionKey, is_read: bool) {
        let mut places = self.places();
        for (_, place) in places.iter_mut().filter(|(_, place)| *place == from) {
            place.clone_from(to);
        }
        if is_read {
            places.put(from.clone(), to.clone());
        }
        // What came back is where it was.
        places.pop(to);
    }

    /// As what the bytes of `key` can be had now.
    pub(super) fn place_of(&self, key: &VersionKey) -> Option<VersionKey> {
        self.places().get(key).cloned()
    }

    fn places(&self) -> MutexGuard<'_, LruCache<VersionKey, VersionKey>> {
        unpoisoned(self.places.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::version::{BucketId, ETag, Version};

    fn version(key: &str) -> VersionKey {
        let etag = ETag::new("tag").unwrap();
        let bucket = BucketId::new("memory://", "bucket");
        VersionKey { bucket, key: key.into(), version: Version { etag, size: 1 } }
    }

    #[test]
    fn a_version_is_followed_over_several_moves_and_back() {
        let (a, b, c) = (version("a"), version("b"), version("c"));
        let moves = Moves::default();
        moves.note(&a, &b, true);
        moves.note(&b, &c, false);
        assert_eq!(moves.place_of(&a), Some(c.clone()));
        assert_eq!(moves.place_of(&b), None, "nobody reads it as b");
        moves.note(&c, &a, false);
        assert_eq!(moves.place_of(&a), None);
    }
}
