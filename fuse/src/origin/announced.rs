//! Announces what is written, to whoever follows the same feed.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;

use super::layer::{self, Change};
use super::{Body, Compared, Origin, OriginError};
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

    async fn change<T, R>(&self, key: &str, change: Change, request: R) -> Result<T, OriginError>
    where
        T: Send,
        R: Future<Output = Result<T, OriginError>> + Send,
    {
        let gone = change == Change::Removed;
        let mut sent = Sent { hearing: &self.hearing, key, gone, refused: false };
        let done = request.await;
        sent.refused = done.as_ref().is_err_and(|error| !error.is_transient());
        done
    }
}

/// A request that changes an object. Where nobody waits for its end any more it may have come through.
struct Sent<'a> {
    hearing: &'a BucketHearing,
    key: &'a str,
    gone: bool,
    refused: bool,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if !self.refused {
            self.hearing.wrote(self.key, self.gone);
        }
    }
}
