//! The aliases that are known of a bucket.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::model::version::{ETag, ObjectInfo};
use crate::origin::ListPage;

/// Most of them that are remembered; what is forgotten is found out again.
const KNOWN_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

struct Alias {
    /// What listings say of the version. Another version of the key is listed with another time.
    listed: ObjectInfo,
    own: ETag,
}

/// By key.
pub(super) struct Known(Mutex<LruCache<Box<str>, Alias>>);

impl Default for Known {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(KNOWN_MAX)))
    }
}

impl Known {
    pub(super) fn add(&self, key: &str, listed: ObjectInfo, own: ETag) {
        self.aliases().put(key.into(), Alias { listed, own });
    }

    /// The own tag of the version that this is an alias of.
    pub(super) fn own_tag(&self, key: &str, listed: &ETag) -> Option<ETag> {
        let mut aliases = self.aliases();
        let alias = aliases.get(key)?;
        (alias.listed.etag.as_ref() == Some(listed)).then(|| alias.own.clone())
    }

    /// Forgets a version that is there no more; says whether it was one that has an alias.
    pub(super) fn forget_version(&self, key: &str, own: &ETag) -> bool {
        let mut aliases = self.aliases();
        let is_known = aliases.peek(key).is_some_and(|alias| alias.own == *own);
        is_known && aliases.pop(key).is_some()
    }

    /// Takes notice of the own tag of what is there.
    pub(super) fn see(&self, key: &str, own: Option<&ETag>) {
        let mut aliases = self.aliases();
        if aliases.peek(key).is_some_and(|alias| Some(&alias.own) != own) {
            aliases.pop(key);
        }
    }

    /// Shows versions by their own tags.
    pub(super) fn replace_aliases(&self, page: &mut ListPage) {
        let mut aliases = self.aliases();
        if aliases.is_empty() {
            return;
        }
        for (key, info) in &mut page.objects {
            match aliases.get(key.as_str()) {
                Some(alias) if alias.listed == *info => info.etag = Some(alias.own.clone()),
                // Another version.
                Some(_) => drop(aliases.pop(key.as_str())),
                None => {}
            }
        }
    }

    fn aliases(&self) -> MutexGuard<'_, LruCache<Box<str>, Alias>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
