//! Who uses a bucket through this cache.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Those of one bucket.
#[derive(Default)]
pub(super) struct Tenants {
    /// Whether there are, or were, several.
    pub(super) several: Arc<AtomicBool>,
    /// Those that this process has seen.
    pub(super) identities: HashSet<String>,
}

/// What one of them is told.
pub struct Tenancy {
    /// Whether there are, or were, others: then what is here may have been brought with credentials
    /// that reach further.
    pub several: Arc<AtomicBool>,
    /// What he was known as before, the latest first.
    pub former: Vec<String>,
}
