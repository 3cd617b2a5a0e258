//! Bytes from nearer by than the origin: from a regional cache, or from a replica of the bucket.
//!
//! It gives bytes, and nothing else. Which version of an object is to be read the origin has said; what
//! a region answers counts where its tag, its range and its size are those of that version. For all
//! else, and for what it does not have, cannot give or gives late, there is the origin. What a region
//! gives it gives to the node: whoever reads it must have been let by the origin himself.

mod aistore;
mod body;
mod breaker;
mod bucket;
mod doubts;
mod proof;
mod token;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    Body, Condition, CopySource, ListPage, ListRequest, Origin, OriginError, Part, PartKind,
    PendingUpload, Stored, UploadBody, WriteIntent,
};
use crate::blocking::aside;
use crate::logged::LoggedName;
use crate::metrics::Metrics;
use crate::model::blocks::BLOCK;
use crate::model::version::{BucketId, ETag, ObjectInfo, Version};
use crate::sync::unpoisoned;
use aistore::AiStore;
use body::{Rest, all_of, whole, with_origin_behind};
use breaker::{Breaker, Pass};
use bucket::ReplicaBucket;
use doubts::{Doubts, Finding, Standing, are_of};
pub use proof::ProofScope;
use proof::Proofs;

/// Longest wait for the head of a region's answer.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// Longest wait for the next piece of a body of a region's.
const STALL: Duration = Duration::from_secs(5);
/// Objects of up to so many bytes, which are read in one piece, are compared with their tag before
/// anybody sees them.
const AT_ONCE_MAX: u64 = BLOCK;
/// How often a region is told to forget one key.
const FORGET_AGAIN: Duration = Duration::from_secs(60);
/// Keys of which is known when it was told so.
const FORGOTTEN_MAX: usize = 4096;

/// What kind of server a region is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegionKind {
    /// A cluster of NVIDIA AIStore with a bucket of the origin's name, backed by it.
    AiStore,
    /// Any server that speaks S3, with a bucket of the origin's name.
    S3,
}

/// Where a region is, and how to speak to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionSettings {
    /// URL of its endpoint.
    pub url: String,
    /// What kind of server it is.
    pub kind: RegionKind,
    /// File with the token that it wants; read again when it changes.
    pub token_file: Option<PathBuf>,
    /// Profile in the shared configuration files whose keys it takes; none are sent without one.
    pub profile: Option<String>,
    /// PEM file of certificate authorities to trust, besides the system's.
    pub ca_bundle: Option<PathBuf>,
    /// Hosts besides its own that it may redirect to, as `HOST` or `HOST:PORT`.
    pub allow: Vec<String>,
}

/// Something that has bytes of a bucket's objects.
#[async_trait]
trait Replica: Send + Sync {
    /// Whether it takes this key for what it is.
    fn can_have(&self, key: &str) -> bool;

    /// As [`Origin::get`]; fails with [`OriginError::Changed`] where it has another version, and with
    /// [`OriginError::NotFound`] where it has none.
    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError>;

    /// Has it forget what it has of an object.
    async fn forget(&self, key: &str) -> Result<(), OriginError>;
}

/// What came of asking a region.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// What was asked for.
    Given,
    /// It has another version.
    Stale,
    /// It has none.
    Absent,
    /// It has no room for it.
    Full,
    /// It does not work.
    Failed,
}

impl Verdict {
    fn of(error: &OriginError) -> Self {
        match error {
            OriginError::Changed => Self::Stale,
            OriginError::NotFound => Self::Absent,
            OriginError::NoSpace(_) => Self::Full,
            _ => Self::Failed,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Stale => "stale",
            Self::Absent => "absent",
            Self::Full => "full",
            Self::Failed => "failed",
        }
    }
}

/// The region of a node.
pub struct Regions {
    settings: RegionSettings,
    breaker: Arc<Breaker>,
    metrics: Arc<Metrics>,
    by_bucket: tokio::sync::Mutex<HashMap<Box<str>, Weak<Region>>>,
}

impl Regions {
    /// Sends nothing.
    pub fn new(settings: RegionSettings, metrics: Arc<Metrics>) -> Self {
        Self { settings, breaker: Arc::default(), metrics, by_bucket: Default::default() }
    }

    /// What it has of a bucket.
    ///
    /// # Errors
    /// [`OriginError::Invalid`] where a file that is named cannot be used, or it is of another kind.
    pub async fn of(&self, bucket: &str) -> Result<Arc<Region>, OriginError> {
        let mut by_bucket = self.by_bucket.lock().await;
        if let Some(region) = by_bucket.get(bucket).and_then(Weak::upgrade) {
            return Ok(region);
        }
        let replica: Box<dyn Replica> = match self.settings.kind {
            RegionKind::AiStore => {
                let (settings, bucket) = (self.settings.clone(), bucket.to_owned());
                Box::new(aside(move |may| AiStore::new(may, &settings, &bucket)).await?)
            }
            RegionKind::S3 => Box::new(ReplicaBucket::new(&self.settings, bucket).await?),
        };
        let region = Region::new(replica, self.breaker.clone(), self.metrics.clone());
        by_bucket.retain(|_, region| region.strong_count() > 0);
        by_bucket.insert(bucket.into(), Arc::downgrade(&region));
        Ok(region)
    }

    /// Whether it is left alone, since it fails.
    pub fn is_shut(&self) -> bool {
        self.breaker.is_shut()
    }
}

/// The region of a node, for one bucket.
pub struct Region {
    replica: Box<dyn Replica>,
    breaker: Arc<Breaker>,
    metrics: Arc<Metrics>,
    doubts: Doubts,
    /// When it was told to forget a key.
    forgotten: Mutex<HashMap<Box<str>, Instant>>,
}

impl Region {
    fn new(replica: Box<dyn Replica>, breaker: Arc<Breaker>, metrics: Arc<Metrics>) -> Arc<Self> {
        let (doubts, forgotten) = (Doubts::default(), Mutex::default());
        Arc::new(Self { replica, breaker, metrics, doubts, forgotten })
    }

    /// Takes notice of what came of a request: an error, or what was asked for.
    fn told(&self, pass: Pass, error: Option<&OriginError>) -> Verdict {
        let verdict = error.map_or(Verdict::Given, Verdict::of);
        self.metrics.region_requests.with_label_values(&[verdict.label()]).inc();
        match verdict {
            Verdict::Failed => {
                if pass.failed(Instant::now()) {
                    self.metrics.regions_shut.inc();
                    let error = error.map(ToString::to_string);
                    tracing::warn!(error, "the region fails; bytes come from the origin meanwhile");
                }
            }
            Verdict::Given | Verdict::Stale | Verdict::Absent | Verdict::Full => {
                if pass.answered() {
                    self.metrics.regions_shut.dec();
                    tracing::info!("the region answers again");
                }
            }
        }
        verdict
    }

    /// Takes notice of whether all bytes of a version are what its tag says; says whether they are to be
    /// kept.
    fn judge(self: &Arc<Self>, key: &str, etag: &ETag, is_right: bool) -> bool {
        let finding = self.doubts.judge(key, etag, is_right);
        let name = LoggedName(key);
        match finding {
            Finding::Right => {}
            Finding::Wrong => {
                self.metrics.region_wrong_objects.inc();
                tracing::error!(key = %name, %etag, "the region's bytes are not what the object's tag says; they are dropped, and it is not asked for the object any more");
                self.refresh(key);
            }
            Finding::Guilty => {
                tracing::warn!(key = %name, %etag, "the origin's bytes are what the object's tag says: the region's were wrong");
            }
            Finding::Opaque => {
                tracing::warn!(key = %name, %etag, "the origin's bytes are not what the object's tag says, either: tags of its bucket are no MD5s, and the region's bytes are not compared with them");
            }
        }
        finding != Finding::Wrong
    }

    /// Has the region forget what it has of a key, in the background; at most once in a while.
    fn refresh(self: &Arc<Self>, key: &str) {
        {
            let (mut forgotten, now) = (unpoisoned(self.forgotten.lock()), Instant::now());
            if forgotten.get(key).is_some_and(|at| now < *at + FORGET_AGAIN) {
                return;
            }
            forgotten.retain(|_, at| now < *at + FORGET_AGAIN);
            if forgotten.len() >= FORGOTTEN_MAX {
                return;
            }
            forgotten.insert(key.into(), now);
        }
        let (region, key) = (self.clone(), Box::<str>::from(key));
        tokio::spawn(async move {
            let forgets = region.replica.forget(&key);
            match timeout(STALL, forgets).await {
                Ok(Ok(())) => tracing::debug!(%key, "the region forgets a version that is gone"),
                Ok(Err(error)) => tracing::debug!(%key, %error, "the region keeps what is gone"),
                Err(_) => tracing::debug!(%key, "the region is not told in time"),
            }
        });
    }
}

/// Wraps an origin; bytes come from the region where it has them.
pub struct Regional {
    inner: Arc<dyn Origin>,
    region: Arc<Region>,
    proofs: Proofs,
}

impl Regional {
    /// For whoever `inner` signs as; what its word to him is good for, and how long.
    pub fn new(
        inner: Arc<dyn Origin>,
        region: Arc<Region>,
        (scope, lifetime): (ProofScope, Duration),
    ) -> Self {
        Self { inner, region, proofs: Proofs::new(scope, lifetime) }
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
        let borrowed = is_suspected && doubts.can_judge(&version.etag);
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
        let serves = version.etag.is_strong()
            && !version.etag.is_any()
            && region.doubts.standing(key) == Standing::Open;
        let pass = match serves && region.replica.can_have(key) {
            true => region.breaker.enter(Instant::now()),
            false => None,
        };
        let Some(pass) = pass else { return self.get_of_origin(key, version, range).await };
        let asked = timeout(FIRST_BYTE, region.replica.get(key, version, range.clone()));
        let (answer, proof) = tokio::join!(asked, self.prove(key, version));
        proof?;
        let error = match answer.unwrap_or(Err(OriginError::TimedOut)) {
            Ok(body) => {
                let rest = Rest {
                    region: region.clone(),
                    origin: self.inner.clone(),
                    key: key.into(),
                    version: version.clone(),
                    range,
                };
                return Ok(with_origin_behind(rest, body.pieces, pass));
            }
            Err(error) => error,
        };
        tracing::debug!(key, %error, "the origin is asked for what the region does not give");
        if region.told(pass, Some(&error)) == Verdict::Stale {
            region.refresh(key);
        }
        self.get_of_origin(key, version, range).await
    }
}

#[async_trait]
impl Origin for Regional {
    fn bucket_id(&self) -> &BucketId {
        self.inner.bucket_id()
    }

    fn doubt_checksums(&self) {
        self.inner.doubt_checksums();
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
        let body = self.ask(key, version, range.clone()).await?;
        if !body.borrowed || range != (0..version.size) || version.size > AT_ONCE_MAX {
            return Ok(body);
        }
        let bytes = all_of(body).await?;
        if self.judge(key, version, are_of(&version.etag, &bytes)) {
            return Ok(whole(version, bytes));
        }
        // The region is not asked for it any more.
        let bytes = all_of(self.ask(key, version, range).await?).await?;
        self.judge(key, version, are_of(&version.etag, &bytes));
        Ok(whole(version, bytes))
    }

    fn judge(&self, key: &str, version: &Version, is_right: bool) -> bool {
        self.region.judge(key, &version.etag, is_right)
    }

    async fn allows(&self, key: &str, version: &Version) -> Result<(), OriginError> {
        let asked = Instant::now();
        let answer = self.inner.allows(key, version).await;
        self.proofs.note(key, version, asked, &answer);
        answer
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, OriginError> {
        self.inner.head(key).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, OriginError> {
        self.inner.list(request).await
    }

    async fn put(
        &self,
        key: &str,
        body: UploadBody,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        self.inner.put(key, body, write).await
    }

    async fn create_upload(
        &self,
        key: &str,
        writer: &str,
        parts: PartKind,
    ) -> Result<String, OriginError> {
        self.inner.create_upload(key, writer, parts).await
    }

    async fn create_copy(&self, source: &CopySource, to: &str) -> Result<String, OriginError> {
        self.inner.create_copy(source, to).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: u32,
        body: UploadBody,
    ) -> Result<Part, OriginError> {
        self.inner.upload_part(key, upload_id, number, body).await
    }

    async fn copy_part(
        &self,
        source: &CopySource,
        range: Range<u64>,
        key: &str,
        upload_id: &str,
        number: u32,
    ) -> Result<Part, OriginError> {
        self.inner.copy_part(source, range, key, upload_id, number).await
    }

    async fn expect_completion(&self, condition: &Condition) {
        self.inner.expect_completion(condition).await;
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        self.inner.complete_upload(key, upload_id, parts, write).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), OriginError> {
        self.inner.abort_upload(key, upload_id).await
    }

    async fn list_uploads(&self, key: &str) -> Result<Vec<PendingUpload>, OriginError> {
        self.inner.list_uploads(key).await
    }

    async fn delete(&self, key: &str, condition: &Condition) -> Result<(), OriginError> {
        self.inner.delete(key, condition).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        to: &str,
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        self.inner.copy(source, to, condition).await
    }
}
