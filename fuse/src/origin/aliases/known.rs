//! The aliases that are known of a bucket.

use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::model::version::{ETag, ObjectInfo};
use crate::origin::ListPage;

/// Bytes of keys and tags that are remembered; what is forgotten is found out again.
const BYTES_MAX: usize = 128 << 10;

struct Alias {
    /// What listings say of the version. Another version of the key is listed with another time.
    listed: ObjectInfo,
    own: ETag,
}

impl Alias {
    fn is_listed_as(&self, etag: &ETag) -> bool {
        self.listed.etag.as_ref() == Some(etag)
    }
}

/// By key.
#[derive(Default)]
pub(super) struct Known(Mutex<Remembered>);

struct Remembered {
    by_key: LruCache<Box<str>, Alias>,
    bytes: usize,
}

impl Default for Remembered {
    fn default() -> Self {
        Self { by_key: LruCache::unbounded(), bytes: 0 }
    }
}

fn bytes_of(key: &str, alias: &Alias) -> usize {
    let listed = alias.listed.etag.as_ref().map_or(0, |etag| etag.as_str().len());
    size_of::<Alias>() + key.len() + listed + alias.own.as_str().len()
}

impl Remembered {
    fn add(&mut self, key: &str, alias: Alias) {
        self.remove(key);
        self.bytes += bytes_of(key, &alias);
        self.by_key.put(key.into(), alias);
        while self.bytes > BYTES_MAX
            && let Some((key, alias)) = self.by_key.pop_lru()
        {
            self.bytes -= bytes_of(&key, &alias);
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(alias) = self.by_key.pop(key) {
            self.bytes -= bytes_of(key, &alias);
        }
    }
}

impl Known {
    pub(super) fn add(&self, key: &str, listed: ObjectInfo, own: ETag) {
        self.aliases().add(key, Alias { listed, own });
    }

    /// The own tag of the version that this is an alias of.
    pub(super) fn own_tag(&self, key: &str, listed: &ETag) -> Option<ETag> {
        let mut aliases = self.aliases();
        let alias = aliases.by_key.get(key)?;
        alias.is_listed_as(listed).then(|| alias.own.clone())
    }

    /// Forgets a version that is there no more; says whether it was one that has an alias.
    pub(super) fn forget_version(&self, key: &str, own: &ETag) -> bool {
        let mut aliases = self.aliases();
        let is_known = aliases.by_key.peek(key).is_some_and(|alias| alias.own == *own);
        if is_known {
            aliases.remove(key);
        }
        is_known
    }

    /// Takes notice of the own tag of what is there.
    pub(super) fn see(&self, key: &str, own: Option<&ETag>) {
        let mut aliases = self.aliases();
        if aliases.by_key.peek(key).is_some_and(|alias| Some(&alias.own) != own) {
            aliases.remove(key);
        }
    }

    /// Shows versions by their own tags.
    pub(super) fn replace_aliases(&self, page: &mut ListPage) {
        let mut aliases = self.aliases();
        if aliases.by_key.is_empty() {
            return;
        }
        for (key, info) in &mut page.objects {
            match aliases.by_key.get(key.as_str()) {
                Some(alias) if alias.listed == *info => info.etag = Some(alias.own.clone()),
                // Another version.
                Some(_) => aliases.remove(key),
                None => {}
            }
        }
    }

    fn aliases(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let (known, mtime) = (Known::default(), SystemTime::UNIX_EPOCH);
        let tag = |n: usize| ETag::new(&format!("{n:0>200}")).unwrap();
        let listed =
            |n| ObjectInfo { size: 1, etag: Some(tag(n)), mtime, version_id: None, writer: None };
        for n in 0..1000 {
            known.add(&format!("{n:0>500}"), listed(n), tag(n + 1));
            known.add(&format!("{n:0>500}"), listed(n), tag(n + 1));
        }
        let all = |known: &Known| {
            let aliases = known.aliases();
            let sum = aliases.by_key.iter().map(|(key, alias)| bytes_of(key, alias)).sum::<usize>();
            assert_eq!(sum, aliases.bytes);
            (aliases.by_key.len(), sum)
        };
        let (count, bytes) = all(&known);
        assert!(count > 50 && bytes <= BYTES_MAX, "{count} of {bytes} bytes");
        let last = format!("{:0>500}", 999);
        assert_eq!(known.own_tag(&last, &tag(999)), Some(tag(1000)));
        known.see(&last, Some(&tag(1000)));
        assert_eq!(all(&known).0, count);
        known.see(&last, None);
        assert_eq!(all(&known).0, count - 1);
        assert!(!known.forget_version(&last, &tag(1000)));
    }
}
