//! Announces what is written, to whoever follows the same feed.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Body, Compared, Origin, OriginError, layer};
use crate::feed::hearing::BucketHearing;
use crate::model::version::Version;

/// An origin whose objects' changes, as far as they are made here, are announced.
pub struct Announced {
    origin: Arc<dyn Origin>,
    hearing: BucketHearing,
}

impl Announced {
    /// Announces what is written to `origin`.
    pub fn new(origin: Arc<dyn Origin>, hearing: BucketHearing) -> Self {
        Self { origin, hearing }
    }
}

#[async_trait]
impl layer::ReadLayer for Announced {
    fn below(&self) -> &dyn Origin {
        &*self.origin
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        self.origin.get(key, version, range).await
    }

    async fn allows(&self, key: &str, version: &Version) -> Result<(), OriginError> {
        self.origin.allows(key, version).await
    }

    fn judge(&self, key: &str, version: &Version, compared: Compared) -> bool {
        self.origin.judge(key, version, compared)
    }

    fn credentials_changed(&self) {
        self.origin.credentials_changed();
    }

    fn changed(&self, key: &str, gone: bool) {
        self.hearing.wrote(key, gone);
    }
}
