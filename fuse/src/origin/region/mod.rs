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
mod cold;
mod doubts;
mod evictions;
mod forgetting;
mod late;
mod pace;
mod proof;
mod race;
mod regional;
mod regions;
mod server;

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Body, OriginError};
use crate::metrics::Metrics;
use crate::model::version::{ETag, Version};
use breaker::{Breaker, Pass};
use cold::ColdObjects;
use doubts::{Doubts, Standing};
use evictions::Evictions;
pub use forgetting::EvictionLog;
use forgetting::Log;
use late::LateKeys;
use pace::Pace;
pub use proof::ProofScope;
pub use regional::Regional;
pub use regions::{RegionState, Regions};

/// Longest wait for the head of a region's answer.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// Longest wait for the next piece of a body of a region's.
const STALL: Duration = Duration::from_secs(5);

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

    /// Whether it is to be told that what it has of this key is not the origin's any more.
    fn can_forget(&self, _key: &str) -> bool {
        false
    }

    /// Has it forget what it has of these; returns once it has, as far as it says so.
    async fn forget(&self, _keys: &[&str]) -> Result<(), OriginError> {
        Ok(())
    }

    /// Whether it can be had to fetch objects; `None`: a range of one that it does not have costs it no
    /// more than the range.
    fn jobs(&self) -> Option<&dyn FetchJobs>;
}

/// Something that fetches objects whole.
#[async_trait]
trait FetchJobs: Send + Sync {
    /// Whether it has this very version now, as far as it says.
    async fn has(&self, key: &str, etag: &ETag) -> Result<bool, OriginError>;

    /// Has it fetch an object as it is now, or join who does. Returns the job's name.
    async fn fetch(&self, key: &str) -> Result<String, OriginError>;

    /// Whether a job has ended, in whatever way; `None` where it is not known.
    async fn has_ended(&self, job: &str) -> Result<Option<bool>, OriginError>;
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

/// A region of a node, for one bucket.
pub struct Region {
    bucket: Box<str>,
    /// What stands for it in the log of evictions.
    log_name: Box<str>,
    replica: Box<dyn Replica>,
    /// Of the region's server, for all buckets: it is there, or not.
    server: Arc<Breaker>,
    /// Of the bucket: what the server answers about it.
    breaker: Arc<Breaker>,
    metrics: Arc<Metrics>,
    doubts: Doubts,
    late: LateKeys,
    cold: ColdObjects,
    pace: Pace,
    evictions: Evictions,
    log: Log,
}

/// Leave to ask the region for something of one bucket.
struct Leave {
    server: Pass,
    bucket: Pass,
}

impl Region {
    fn new(
        (bucket, log_name): (&str, &str),
        replica: Box<dyn Replica>,
        server: Arc<Breaker>,
        metrics: Arc<Metrics>,
        log: Log,
    ) -> Arc<Self> {
        let evictions = Evictions::new(metrics.clone());
        let (breaker, doubts, late, cold, pace) = Default::default();
        Arc::new(Self {
            bucket: bucket.into(),
            log_name: log_name.into(),
            replica,
            server,
            breaker,
            metrics,
            doubts,
            late,
            cold,
            pace,
            evictions,
            log,
        })
    }

    /// Leave to ask, unless it, or the bucket, is left alone.
    fn enter(&self, now: Instant) -> Option<Leave> {
        let bucket = self.breaker.enter(now)?;
        Some(Leave { server: self.server.enter(now)?, bucket })
    }

    /// Whether it, or the bucket, is left alone.
    fn is_shut(&self) -> bool {
        self.server.is_shut() || self.breaker.is_shut()
    }

    /// Whether it may have a version, and gives it in time.
    fn may_have(&self, key: &str, version: &Version, now: Instant) -> bool {
        version.etag.is_strong()
            && !version.etag.is_any()
            && self.doubts.standing(key) == Standing::Open
            && self.replica.can_have(key)
            && !self.late.has(key, now)
    }

    /// Whether it would have to fetch all of a version, which takes long, before it gives any of it, unless
    /// it has it.
    fn is_slow_to_come(&self, version: &Version) -> bool {
        self.replica.jobs().is_some() && !self.cold.is_soon_there(version.size)
    }

    /// Takes notice that it does not give something.
    fn refused(&self, key: &str, leave: Leave, error: &OriginError) -> Verdict {
        let verdict = self.told(leave, Some(error));
        if matches!(verdict, Verdict::Stale | Verdict::Absent | Verdict::Full) {
            self.cold.forget(key);
        }
        verdict
    }

    /// Takes notice that it was late with a version.
    fn was_late(&self, key: &str, version: &Version) {
        if self.replica.jobs().is_none() || self.cold.was_late(key, version.size) {
            self.late.note(key, Instant::now());
        }
    }

    /// Takes notice of what came of a GET: an error, or what was asked for.
    fn told(&self, leave: Leave, error: Option<&OriginError>) -> Verdict {
        let verdict = error.map_or(Verdict::Given, Verdict::of);
        self.metrics.region_requests.with_label_values(&[verdict.label()]).inc();
        self.note(leave, verdict, error);
        verdict
    }

    fn note(&self, leave: Leave, verdict: Verdict, error: Option<&OriginError>) {
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
}

impl Drop for Region {
    fn drop(&mut self) {
        // Nobody asks it for the bucket any more.
        if self.breaker.is_shut() {
            self.metrics.regions_shut.dec();
        }
    }
}
