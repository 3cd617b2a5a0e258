//! An origin with a region before it.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::time::timeout;

use super::body::{Rest, all_of, whole, with_origin_behind};
use super::cold::Presence;
use super::doubts::{Standing, compared};
use super::proof::Proofs;
use super::{FIRST_BYTE, Leave, ProofScope, Region, Verdict};
use crate::model::blocks::BLOCK;
use crate::model::version::Version;
use crate::origin::{Body, Compared, Origin, OriginError, layer};

/// Objects of up to so many bytes, which are read in one piece, are compared with their tag before
/// anybody sees them.
const AT_ONCE_MAX: u64 = BLOCK;

/// Wraps an origin; bytes come from the region where it has them.
pub struct Regional {
    inner: Arc<dyn Origin>,
    region: Arc<Region>,
    proofs: Arc<Proofs>,
}

impl Regional {
    /// For whoever `inner` signs as; what its word to him is good for, and how long.
    pub fn new(
        inner: Arc<dyn Origin>,
        region: Arc<Region>,
        (scope, lifetime): (ProofScope, Duration),
    ) -> Self {
        Self { inner, region, proofs: Arc::new(Proofs::new(scope, lifetime)) }
    }

    /// Asks the origin for one byte, unless it let whoever asks have the version not long ago.
    async fn prove(&self, key: &str, version: &Version) -> Result<(), OriginError> {
        if self.proofs.holds(key, version, Instant::now()) {
            return Ok(());
        }
        match self.allows(key, version).await {
            Err(error)
                if error.is_outage() && self.proofs.outlasts(key, version, Instant::now()) =>
            {
                Ok(())
            }
            answer => answer,
        }
    }

    async fn get_of_origin(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        let asked = Instant::now();
        let answer = self.inner.get(key, version, range).await;
        self.proofs.note(key, version, asked, &answer);
        let doubts = &self.region.doubts;
        let is_suspected = doubts.standing(key) == Standing::Suspected;
        let borrowed = is_suspected && doubts.can_judge(key, &version.etag);
        answer.map(|body| Body { borrowed, ..body })
    }

    /// Asks the region, if that may have the version, and else the origin.
    async fn ask(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        let region = &self.region;
        let Some(leave) = self.leave(key, version) else {
            return self.get_of_origin(key, version, range).await;
        };
        if self.is_slow_to_come(version) {
            self.prove(key, version).await?;
            if !region.has(key, version).await {
                return self.get_of_origin(key, version, range).await;
            }
        }
        let asked = timeout(FIRST_BYTE, region.replica.get(key, version, range.clone()));
        let (answer, proof) = tokio::join!(asked, self.prove(key, version));
        let answer = answer.unwrap_or_else(|_| {
            region.was_late(key, version);
            Err(OriginError::TimedOut)
        });
        proof?;
        let error = match answer {
            Ok(body) => {
                let rest = Rest {
                    patience: Rest::patience(&range),
                    region: region.clone(),
                    origin: self.inner.clone(),
                    proofs: self.proofs.clone(),
                    key: key.into(),
                    version: version.clone(),
                    range,
                };
                return Ok(with_origin_behind(rest, body.pieces, leave));
            }
            Err(error) => error,
        };
        tracing::debug!(key, %error, "the origin is asked for what the region does not give");
        let verdict = region.told(leave, Some(&error));
        if matches!(verdict, Verdict::Stale | Verdict::Absent | Verdict::Full) {
            region.cold.forget(key);
        }
        let answer = self.get_of_origin(key, version, range).await;
        // Else it may be the version that is old, and the region's the new one.
        if verdict == Verdict::Stale && answer.is_ok() {
            region.refresh(key);
        }
        answer
    }

    /// Leave to ask the region for a version that it may have, and gives in time.
    fn leave(&self, key: &str, version: &Version) -> Option<Leave> {
        let now = Instant::now();
        if self.may_have(key, version, now) { self.region.enter(now) } else { None }
    }

    fn may_have(&self, key: &str, version: &Version, now: Instant) -> bool {
        version.etag.is_strong()
            && !version.etag.is_any()
            && self.region.doubts.standing(key) == Standing::Open
            && self.region.replica.can_have(key)
            && !self.region.late.has(key, now)
    }

    /// Whether the region would have to fetch all of it, which takes long, before it gives any.
    fn is_slow_to_come(&self, version: &Version) -> bool {
        self.region.replica.jobs().is_some() && !self.region.cold.is_soon_there(version.size)
    }
}

#[async_trait]
impl layer::ReadLayer for Regional {
    fn below(&self) -> &dyn Origin {
        &*self.inner
    }

    fn credentials_changed(&self) {
        self.proofs.forget(Instant::now());
        self.inner.credentials_changed();
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        if version.size > AT_ONCE_MAX || !self.region.doubts.can_judge(key, &version.etag) {
            return self.ask(key, version, range).await;
        }
        if range != (0..version.size) {
            // What cannot be compared before it is shown is the origin's.
            return self.get_of_origin(key, version, range).await;
        }
        let body = self.ask(key, version, range.clone()).await?;
        if !body.borrowed {
            return Ok(body);
        }
        let bytes = all_of(body).await?;
        if self.region.judge(key, &version.etag, compared(&version.etag, &bytes, false)) {
            return Ok(whole(version, bytes));
        }
        // The region is not asked for it any more.
        let bytes = all_of(self.get_of_origin(key, version, range).await?).await?;
        self.region.judge(key, &version.etag, compared(&version.etag, &bytes, true));
        Ok(whole(version, bytes))
    }

    /// Not of the origin, while the region may come to have it.
    fn may_fetch_ahead(&self, key: &str, version: &Version) -> bool {
        let now = Instant::now();
        if !self.is_slow_to_come(version)
            || self.region.is_shut()
            || !self.may_have(key, version, now)
        {
            return true;
        }
        let presence = self.region.cold.presence(key, &version.etag, now);
        matches!(presence, Some(Presence::Present(_) | Presence::Absent(_)))
    }

    fn judge(&self, key: &str, version: &Version, compared: Compared) -> bool {
        self.region.judge(key, &version.etag, compared)
    }

    /// The region forgets the key after the change, and nobody waits for that. A record covers the time
    /// until the log has the key: the request is under way meanwhile.
    async fn change<T, R>(&self, key: &str, is_recorded: bool, request: R) -> Result<T, OriginError>
    where
        T: Send,
        R: Future<Output = Result<T, OriginError>> + Send,
    {
        let Some(change) = self.region.change(key) else { return request.await };
        let outcome = match is_recorded {
            true => tokio::join!(request, change.note()).0,
            false => {
                change.note().await;
                request.await
            }
        };
        change.end(&outcome);
        outcome
    }

    async fn allows(&self, key: &str, version: &Version) -> Result<(), OriginError> {
        let asked = Instant::now();
        let answer = self.inner.allows(key, version).await;
        self.proofs.note(key, version, asked, &answer);
        answer
    }
}
