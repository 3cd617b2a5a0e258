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
mod late;
mod proof;
mod regional;

#[cfg(test)]
mod scripted;
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

use super::{Body, Compared, OriginError};
use crate::blocking::aside;
use crate::logged::LoggedName;
use crate::metrics::Metrics;
use crate::model::version::{ETag, Version};
use crate::sync::unpoisoned;
use aistore::AiStore;
use breaker::{Breaker, Pass};
use bucket::ReplicaBucket;
use doubts::{Doubts, Finding};
use late::LateKeys;
pub use proof::ProofScope;
pub use regional::Regional;

/// Longest wait for the head of a region's answer.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// Longest wait for the next piece of a body of a region's.
const STALL: Duration = Duration::from_secs(5);
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
    /// It serves nobody of this node, or has no such bucket.
    Refused,
    /// It answered otherwise than it should.
    Failed,
    /// It did not answer.
    Silent,
    /// It was not asked: too much is under way.
    Unasked,
}

impl Verdict {
    fn of(error: &OriginError) -> Self {
        match error {
            OriginError::Changed => Self::Stale,
            OriginError::NotFound => Self::Absent,
            OriginError::NoSpace(_) => Self::Full,
            // That is about the object.
            error if error.is_archived() => Self::Absent,
            OriginError::Denied(_) | OriginError::NoSuchBucket => Self::Refused,
            OriginError::Unreachable(_) | OriginError::TimedOut => Self::Silent,
            OriginError::Busy(_) => Self::Unasked,
            _ => Self::Failed,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Stale => "stale",
            Self::Absent => "absent",
            Self::Full => "full",
            Self::Refused | Self::Failed | Self::Silent | Self::Unasked => "failed",
        }
    }
}

/// What there is of a bucket at the region, as long as somebody uses it. Locked while it is made.
type Slot = Arc<tokio::sync::Mutex<Weak<Region>>>;

/// The region of a node.
pub struct Regions {
    settings: RegionSettings,
    server: Arc<Breaker>,
    metrics: Arc<Metrics>,
    by_bucket: Mutex<HashMap<Box<str>, Slot>>,
}

impl Regions {
    /// Sends nothing.
    pub fn new(settings: RegionSettings, metrics: Arc<Metrics>) -> Self {
        Self { settings, server: Arc::default(), metrics, by_bucket: Mutex::default() }
    }

    /// What it has of a bucket.
    ///
    /// # Errors
    /// [`OriginError::Invalid`] where a file that is named cannot be used, or it is of another kind.
    pub async fn of(&self, bucket: &str) -> Result<Arc<Region>, OriginError> {
        let slot = self.slot(bucket);
        let mut region = slot.lock().await;
        if let Some(region) = region.upgrade() {
            return Ok(region);
        }
        let replica = self.replica(bucket).await?;
        let new = Region::new(replica, self.server.clone(), self.metrics.clone());
        *region = Arc::downgrade(&new);
        Ok(new)
    }

    fn slot(&self, bucket: &str) -> Slot {
        let mut by_bucket = unpoisoned(self.by_bucket.lock());
        // One that is locked, or waited for, somebody else has, too.
        by_bucket.retain(|_, slot| {
            Arc::strong_count(slot) > 1
                || slot.try_lock().is_ok_and(|region| region.strong_count() > 0)
        });
        by_bucket.entry(bucket.into()).or_default().clone()
    }

    async fn replica(&self, bucket: &str) -> Result<Box<dyn Replica>, OriginError> {
        Ok(match self.settings.kind {
            RegionKind::AiStore => {
                let (settings, bucket) = (self.settings.clone(), bucket.to_owned());
                Box::new(aside(move |may| AiStore::new(may, &settings, &bucket)).await?)
            }
            RegionKind::S3 => Box::new(ReplicaBucket::new(&self.settings, bucket).await?),
        })
    }
}

/// The region of a node, for one bucket.
pub struct Region {
    replica: Box<dyn Replica>,
    /// Of the region's server, for all buckets: it is there, or not.
    server: Arc<Breaker>,
    /// Of the bucket: what the server answers about it.
    breaker: Arc<Breaker>,
    metrics: Arc<Metrics>,
    doubts: Doubts,
    late: LateKeys,
    /// When it was told to forget a key.
    forgotten: Mutex<HashMap<Box<str>, Instant>>,
}

/// Leave to ask the region for something of one bucket.
struct Leave {
    server: Pass,
    bucket: Pass,
}

impl Region {
    fn new(replica: Box<dyn Replica>, server: Arc<Breaker>, metrics: Arc<Metrics>) -> Arc<Self> {
        let (breaker, doubts, late) = <(Arc<Breaker>, Doubts, LateKeys)>::default();
        let forgotten = Mutex::default();
        Arc::new(Self { replica, server, breaker, metrics, doubts, late, forgotten })
    }

    /// Leave to ask, unless it, or the bucket, is left alone.
    fn enter(&self, now: Instant) -> Option<Leave> {
        let bucket = self.breaker.enter(now)?;
        Some(Leave { server: self.server.enter(now)?, bucket })
    }

    /// Takes notice of what came of a request: an error, or what was asked for.
    fn told(&self, leave: Leave, error: Option<&OriginError>) -> Verdict {
        let verdict = error.map_or(Verdict::Given, Verdict::of);
        self.metrics.region_requests.with_label_values(&[verdict.label()]).inc();
        let (Leave { server, bucket }, now) = (leave, Instant::now());
        match verdict {
            Verdict::Unasked => {}
            Verdict::Silent => self.note_shut(server.failed(now), "server", error),
            Verdict::Failed => {
                self.note_open(server.answered());
                self.note_shut(bucket.failed(now), "bucket", error);
            }
            Verdict::Refused => {
                self.note_open(server.answered());
                self.note_shut(bucket.refused(now), "bucket", error);
            }
            Verdict::Given | Verdict::Stale | Verdict::Absent | Verdict::Full => {
                self.note_open(server.answered());
                self.note_open(bucket.answered());
            }
        }
        verdict
    }

    fn note_shut(&self, is_shut_for_it: bool, what: &str, error: Option<&OriginError>) {
        if is_shut_for_it {
            self.metrics.regions_shut.inc();
            let error = error.map(ToString::to_string);
            tracing::warn!(what, error, "the region fails; bytes come from the origin meanwhile");
        }
    }

    fn note_open(&self, is_open_again: bool) {
        if is_open_again {
            self.metrics.regions_shut.dec();
            tracing::info!("the region answers again");
        }
    }

    /// Takes notice of what came of comparing all bytes of a version with its tag; says whether they are to
    /// be kept.
    fn judge(self: &Arc<Self>, key: &str, etag: &ETag, compared: Compared) -> bool {
        let finding = self.doubts.judge(key, etag, compared);
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
                tracing::warn!(key = %name, %etag, "the origin's bytes are not what the object's tag says, either: it is no MD5, and the region's bytes are not compared with it");
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

impl Drop for Region {
    fn drop(&mut self) {
        // Nobody asks it for the bucket any more.
        if self.breaker.is_shut() {
            self.metrics.regions_shut.dec();
        }
    }
}
