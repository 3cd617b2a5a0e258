//! Who may be shown what the cache holds. Bytes are shared by all mounts of a node, whoever
//! brought them; permission is not.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::cache::NodeCache;
use crate::model::version::BucketId;
use crate::namespace::AccessSettings;
use crate::origin::{Origin, OriginError};

/// Objects of one mount whose permission is remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(65_535);

/// What is known of a mount's permissions.
pub(super) struct Access {
    revocable: bool,
    /// Whether somebody else brought bytes of this bucket, too.
    shared: Arc<AtomicBool>,
    allowed: Mutex<LruCache<Box<str>, Instant>>,
}

impl Access {
    pub(super) fn new(settings: &AccessSettings, cache: &NodeCache, origin: &dyn Origin) -> Self {
        Self {
            revocable: settings.revocable,
            shared: cache.shared_by_identities(origin.bucket_id(), &settings.identity),
            allowed: Mutex::new(LruCache::new(REMEMBERED)),
        }
    }

    /// Forgets what the origin allowed: other credentials are used from now on.
    pub(super) fn changed(&self, cache: &NodeCache, bucket: &BucketId, identity: &str) {
        // Sets the flag where this identity is a second one.
        let _ = cache.shared_by_identities(bucket, identity);
        self.allowed().clear();
    }

    /// Whether the origin must allow this key (again) before what is cached of it is shown.
    pub(super) fn must_ask(&self, key: &str, ttl: Duration) -> bool {
        if !self.revocable && !self.shared.load(Ordering::Relaxed) {
            return false;
        }
        match self.allowed().get(key) {
            None => true,
            Some(at) => self.revocable && at.elapsed() >= ttl,
        }
    }

    /// Asks the origin. Where it does not answer, what it said before holds.
    ///
    /// # Errors
    /// What the origin reports.
    pub(super) async fn ask(&self, origin: &dyn Origin, key: &str) -> Result<(), OriginError> {
        match origin.head(key).await {
            Ok(_) => {
                self.allowed().put(key.into(), Instant::now());
                Ok(())
            }
            Err(error) if error.is_outage() && self.allowed().contains(key) => Ok(()),
            Err(error) => {
                self.allowed().pop(key);
                Err(error)
            }
        }
    }

    fn allowed(&self) -> MutexGuard<'_, LruCache<Box<str>, Instant>> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
