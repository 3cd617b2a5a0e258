//! Who uses a bucket through this cache.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use super::index::{Standing, former};
use crate::sync::{Mutex, MutexGuard};

/// Those of one bucket.
#[derive(Default)]
pub(super) struct Tenants {
    several: Arc<AtomicBool>,
    /// How many mounts of this process have which identity.
    mounts: Mutex<HashMap<String, usize>>,
    /// Held while the disks are told: one comes after the other.
    telling: Mutex<()>,
}

/// That a mount uses a bucket, until this is dropped.
pub struct Tenancy {
    /// Whether somebody else does, or did: then what is here may have been brought with credentials
    /// that reach further.
    pub several: Arc<AtomicBool>,
    /// What its identity was before, the latest first.
    pub former: Vec<String>,
    tenants: Arc<Tenants>,
    identity: String,
}

impl Tenants {
    /// One mount more, of which `note` tells the disks; it is given who has mounts now.
    pub(super) fn enter(
        self: Arc<Self>,
        identity: &str,
        note: impl FnOnce(&dyn Fn(&str) -> bool) -> Vec<Standing>,
    ) -> Tenancy {
        let telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let living: HashSet<String> = {
            let mut mounts = self.mounts();
            *mounts.entry(identity.to_owned()).or_default() += 1;
            mounts.keys().cloned().collect()
        };
        // Whoever ends meanwhile does not wait for a disk; he counts once more as living.
        let standings = note(&|identity| living.contains(identity));
        self.several.store(standings.iter().any(|one| !one.alone), Ordering::Relaxed);
        let former = former(standings.iter().flat_map(|standing| &standing.former), identity);
        drop(telling);
        let several = self.several.clone();
        Tenancy { several, former, tenants: self, identity: identity.to_owned() }
    }

    fn mounts(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tenancy {
    /// Whose it is.
    pub fn identity(&self) -> &str {
        &self.identity
    }
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        let mut mounts = self.tenants.mounts();
        if let Some(count) = mounts.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                mounts.remove(&self.identity);
            }
        }
    }
}
