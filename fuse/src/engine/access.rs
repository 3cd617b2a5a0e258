//! Who may be shown what the cache holds. Bytes are shared by all mounts of a node, whoever
//! brought them; permission is not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Engine;
use super::allowed::AllowedObjects;
use crate::cache::{NodeCache, Signer, Tenancy};
use crate::model::version::{BucketId, VersionKey};
use crate::namespace::{AccessSettings, NamespaceSettings};
use crate::origin::{OriginError, SETTLING};

/// How soon another object is asked for where one said nothing.
const AGAIN: Duration = Duration::from_secs(5);

/// What is to be done before what is cached of an object is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Proof {
    /// Nothing: the origin's word counts still, or what is here was brought with these
    /// credentials alone.
    Held,
    /// Nothing, but it is time to ask for one object, beside it.
    Due,
    /// The origin must allow it first.
    Needed,
}

/// What is known of a mount's permissions.
pub(super) struct Access {
    each_object: bool,
    lifetime: Duration,
    /// Whether somebody else brought bytes of this bucket, too.
    several: Arc<AtomicBool>,
    /// None while other credentials are used than those of whom the disks have been told.
    tenancy: Mutex<Option<Tenancy>>,
    /// Whether an object that these credentials brought was refused to them later.
    narrowed: AtomicBool,
    /// When the origin is to be asked next for one object, of all.
    due: Mutex<Instant>,
    /// When the credentials were replaced, if they were.
    replaced: Mutex<Option<Instant>>,
    allowed: Mutex<AllowedObjects>,
}

impl Access {
    /// Of a mount whose credentials were proven just now. What they were named before is added to
    /// the settings.
    pub(super) async fn new(
        names: &mut NamespaceSettings,
        engine: &Engine,
        bucket: &BucketId,
    ) -> Self {
        let (lifetime, settings) = (names.permission_lifetime(), &mut names.access);
        let replaces: Vec<String> = settings.formerly.iter().cloned().collect();
        let former: Vec<String> = settings.former.iter().chain(&replaces).cloned().collect();
        let signer = Signer { identity: settings.identity.clone(), former, replaces };
        let tenancy = engine.cache.enter(bucket, signer).await;
        settings.former.clone_from(&tenancy.former);
        Self {
            each_object: settings.each_object,
            lifetime,
            several: tenancy.several.clone(),
            tenancy: Mutex::new(Some(tenancy)),
            narrowed: AtomicBool::new(false),
            due: Mutex::new(Instant::now() + lifetime),
            replaced: Mutex::new(None),
            allowed: Mutex::new(AllowedObjects::new(&engine.permissions)),
        }
    }

    /// Other credentials, of this identity, are used from now on in place of those before: what the
    /// origin allowed those is forgotten, and what it refused them is not.
    pub(super) async fn replace(
        &self,
        cache: &NodeCache,
        bucket: &BucketId,
        access: &AccessSettings,
    ) {
        // First: what those before were allowed is shown to nobody while disks are waited for.
        *self.replaced.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        // The identity before is that of other mounts alone.
        let before = self.tenancy().take().map(|tenancy| tenancy.identity().to_owned());
        self.allowed().clear();
        let replaces: Vec<String> = before.into_iter().chain(access.formerly.clone()).collect();
        let former = access.former.clone();
        let signer = Signer { identity: access.identity.clone(), former, replaces };
        let tenancy = cache.enter(bucket, signer).await;
        *self.tenancy() = Some(tenancy);
    }

    /// What must be done before what is cached of this version is shown.
    pub(super) fn proof(&self, shown: &VersionKey) -> Proof {
        let by_object = self.each_object
            || self.several.load(Ordering::Relaxed)
            || self.narrowed.load(Ordering::Relaxed)
            || self.tenancy().is_none();
        if by_object {
            return match self.allowed().allowed_at(shown) {
                Some(at) if at.elapsed() < self.lifetime => Proof::Held,
                _ => Proof::Needed,
            };
        }
        let (mut due, now) = (self.due(), Instant::now());
        if now < *due {
            return Proof::Held;
        }
        *due = now + self.lifetime;
        Proof::Due
    }

    /// Takes notice of what the origin said when it was asked for an object. Where it does not answer,
    /// what it said before holds.
    ///
    /// # Errors
    /// What the origin reports.
    pub(super) fn heed(
        &self,
        shown: &VersionKey,
        answer: Result<(), OriginError>,
    ) -> Result<(), OriginError> {
        match answer {
            Ok(()) => {
                if !self.is_settling() {
                    self.allowed().allow(shown);
                }
                Ok(())
            }
            Err(error) if error.is_outage() && self.allowed().allowed_at(shown).is_some() => Ok(()),
            Err(error) => {
                self.allowed().forget(shown);
                Err(error)
            }
        }
    }

    /// Notes that the origin does not allow these credentials what it did: each object is asked for
    /// from now on.
    pub(super) fn narrow(&self) {
        self.narrowed.store(true, Ordering::Relaxed);
        self.allowed().clear();
    }

    fn is_settling(&self) -> bool {
        let replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        replaced.is_some_and(|at| at.elapsed() < SETTLING)
    }

    /// Takes notice of what the origin said when it was asked for one object, of all that these
    /// credentials brought: where it refuses that, each is asked for from now on.
    pub(super) fn note_proof(&self, bucket: &BucketId, proof: &Result<(), OriginError>) {
        match proof {
            Err(error @ OriginError::Denied(reason)) if !error.is_archived() => {
                tracing::warn!(
                    bucket = bucket.as_str(),
                    reason,
                    "an object that was read with these credentials is refused to them now; each \
                     cached one is asked for from here on"
                );
                self.narrowed.store(true, Ordering::Relaxed);
            }
            Err(error) if matches!(error, OriginError::Changed) || error.is_archived() => {
                self.ask_again_soon();
            }
            _ => {}
        }
    }

    /// What was asked for last says nothing of these credentials: another is to be asked for.
    pub(super) fn ask_again_soon(&self) {
        *self.due() = Instant::now() + self.lifetime.min(AGAIN);
    }

    fn tenancy(&self) -> MutexGuard<'_, Option<Tenancy>> {
        self.tenancy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn due(&self) -> MutexGuard<'_, Instant> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allowed(&self) -> MutexGuard<'_, AllowedObjects> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
