//! An origin with regions before it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join_all;

use super::body::{Rest, all_of, whole, with_origin_behind};
use super::cold::Presence;
use super::doubts::{Finding, Standing, compared};
use super::forgetting::Change;
use super::pace::Pace;
use super::proof::Proofs;
use super::race::{self, Outcome, Source};
use super::{ProofScope, Region};
use crate::logged::LoggedName;
use crate::model::blocks::BLOCK;
use crate::model::version::Version;
use crate::origin::layer::{self, ReadLayer};
use crate::origin::{Body, Compared, Origin, OriginError};

/// Objects of up to so many bytes, which are read in one piece, are compared with their tag before
/// anybody sees them.
const AT_ONCE_MAX: u64 = BLOCK;

/// Once in so many times those are asked first that are not the soonest: they may have become it.
const OTHERS_FIRST: u64 = 64;

/// Wraps an origin; bytes come from regions where these have them.
pub struct Regional {
    inner: Arc<dyn Origin>,
    /// In the order in which they were named; at least one.
    regions: Vec<Arc<Region>>,
    proofs: Arc<Proofs>,
    /// What is asked of the origin beside regions is a part of what they give.
    pub(super) origin: Pace,
    turns: AtomicU64,
}

impl Regional {
    /// For whoever `inner` signs as; what its word to him is good for, and how long.
    pub fn new(
        inner: Arc<dyn Origin>,
        regions: Vec<Arc<Region>>,
        (scope, lifetime): (ProofScope, Duration),
    ) -> Self {
        let proofs = Arc::new(Proofs::new(scope, lifetime));
        Self { inner, regions, proofs, origin: Pace::default(), turns: AtomicU64::new(0) }
    }

    /// Asks the origin for one byte, unless it let whoever asks have the version not long ago.
    async fn prove(&self, key: &str, version: &Version) -> Result<(), OriginError> {
        if self.proofs.holds(key, version, Instant::now()) {
            return Ok(());
        }
        match ReadLayer::allows(self, key, version).await {
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
        let is_suspected =
            |region: &Arc<Region>| region.doubts.standing(key) == Standing::Suspected;
        let borrowed = self.regions.iter().any(is_suspected) && self.can_judge(key, version);
        answer.map(|body| Body { borrowed, ..body })
    }

    /// Whether a version's bytes can be compared with its tag.
    fn can_judge(&self, key: &str, version: &Version) -> bool {
        self.regions.iter().any(|region| region.doubts.can_judge(key, &version.etag))
    }

    /// Asks the regions that may have the version, and else the origin.
    async fn ask(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        let mut sources = self.sources(key, version);
        if sources.iter().any(|source| source.region.is_slow_to_come(version)) {
            self.prove(key, version).await?;
            sources = those_that_have_it(sources, key, version).await;
        }
        if sources.is_empty() {
            return self.get_of_origin(key, version, range).await;
        }
        let bytes = range.end.saturating_sub(range.start);
        self.origin.ask(bytes);
        let first = race::first(
            sources,
            (key, version, &range),
            || self.origin.may_ask_beside(bytes),
            || self.get_of_origin(key, version, range.clone()),
        );
        let (outcome, proof) = tokio::join!(first, self.prove(key, version));
        proof?;
        let stale = match outcome {
            Outcome::Given(Source { region, leave }, body) => {
                let rest = Rest {
                    patience: Rest::patience(&range),
                    region,
                    origin: self.inner.clone(),
                    proofs: self.proofs.clone(),
                    key: key.into(),
                    version: version.clone(),
                    range,
                };
                return Ok(with_origin_behind(rest, body.pieces, leave));
            }
            Outcome::OfOrigin(answer) => return answer,
            Outcome::Nowhere(stale) => stale,
        };
        let answer = self.get_of_origin(key, version, range).await;
        // Else it may be the version that is old, and a region's the new one.
        if answer.is_ok() {
            stale.iter().for_each(|region| region.refresh(key));
        }
        answer
    }

    /// The regions that may have a version, and give it in time, the soonest first.
    fn sources(&self, key: &str, version: &Version) -> Vec<Source> {
        let now = Instant::now();
        let may_have = |region: &&Arc<Region>| region.may_have(key, version, now);
        let mut regions: Vec<_> = self.regions.iter().filter(may_have).cloned().collect();
        if regions.len() > 1 {
            regions.sort_by_key(|region| region.pace.usual());
            if self.turns.fetch_add(1, Ordering::Relaxed) % OTHERS_FIRST == OTHERS_FIRST - 1 {
                regions.rotate_left(1);
            }
        }
        let enter = |region: Arc<Region>| Some(Source { leave: region.enter(now)?, region });
        regions.into_iter().filter_map(enter).collect()
    }
}

/// Leaves out those that would have to fetch it first, which takes long; they are asked to.
async fn those_that_have_it(sources: Vec<Source>, key: &str, version: &Version) -> Vec<Source> {
    let have = sources.iter().map(|source| async {
        !source.region.is_slow_to_come(version) || source.region.has(key, version).await
    });
    let have = join_all(have).await;
    sources.into_iter().zip(have).filter_map(|(source, has)| has.then_some(source)).collect()
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
        if version.size > AT_ONCE_MAX || !self.can_judge(key, version) {
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
        if ReadLayer::judge(self, key, version, compared(&version.etag, &bytes, false)) {
            return Ok(whole(version, bytes));
        }
        // The region is not asked for it any more.
        let bytes = all_of(self.get_of_origin(key, version, range).await?).await?;
        ReadLayer::judge(self, key, version, compared(&version.etag, &bytes, true));
        Ok(whole(version, bytes))
    }

    /// Not of the origin, while a region may come to have it.
    fn may_fetch_ahead(&self, key: &str, version: &Version) -> bool {
        let now = Instant::now();
        let may_have =
            |region: &&Arc<Region>| !region.is_shut() && region.may_have(key, version, now);
        let mut comes = false;
        for region in self.regions.iter().filter(may_have) {
            if !region.is_slow_to_come(version) {
                return true;
            }
            match region.cold.presence(key, &version.etag, now) {
                Some(Presence::Present(_)) => return true,
                Some(Presence::Absent(_)) => {}
                None | Some(Presence::Unknown | Presence::Coming) => comes = true,
            }
        }
        !comes
    }

    /// Whose bytes were wrong is not known: each region is told that it may be the one.
    fn judge(&self, key: &str, version: &Version, compared: Compared) -> bool {
        let findings = self.regions.iter().map(|r| r.doubts.judge(key, &version.etag, compared));
        // They see the same, and find the same.
        let finding =
            findings.fold(Finding::Right, |all, one| if one == Finding::Right { all } else { one });
        let (name, etag) = (LoggedName(key), &version.etag);
        match finding {
            Finding::Right => {}
            Finding::Wrong => {
                tracing::error!(key = %name, %etag, "a region's bytes are not what the object's tag says; they are dropped, and no region is asked for the object any more");
                self.regions.iter().for_each(|region| region.refresh(key));
                if let Some(region) = self.regions.first() {
                    region.metrics.region_wrong_objects.inc();
                }
            }
            Finding::Guilty => {
                tracing::warn!(key = %name, %etag, "the origin's bytes are what the object's tag says: a region's were wrong");
            }
            Finding::Opaque => {
                tracing::warn!(key = %name, %etag, "the origin's bytes are not what the object's tag says, either: it is no MD5, and regions' bytes are not compared with it");
            }
        }
        finding != Finding::Wrong
    }

    /// Regions forget the key after the change, and nobody waits for that. A record covers the time
    /// until the log has the key: the request is under way meanwhile.
    async fn change<T, R>(
        &self,
        key: &str,
        change: layer::Change,
        request: R,
    ) -> Result<T, OriginError>
    where
        T: Send,
        R: Future<Output = Result<T, OriginError>> + Send,
    {
        let changes: Vec<_> = self.regions.iter().filter_map(|region| region.change(key)).collect();
        let noted = join_all(changes.iter().map(Change::note));
        let outcome = match change {
            layer::Change::Recorded => tokio::join!(request, noted).0,
            layer::Change::Made | layer::Change::Removed => {
                noted.await;
                request.await
            }
        };
        changes.into_iter().for_each(|change| change.end(&outcome));
        outcome
    }

    async fn allows(&self, key: &str, version: &Version) -> Result<(), OriginError> {
        let asked = Instant::now();
        let answer = self.inner.allows(key, version).await;
        self.proofs.note(key, version, asked, &answer);
        answer
    }
}
