//! What a cluster is asked by its native API: whether it has an object, and to fetch or forget some.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::exchange::Question;
use super::{AiStore, FetchJobs, in_path};
use crate::model::version::ETag;
use crate::origin::OriginError;

/// How often it is asked what became of a job, first and at last.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long a job is waited for.
const MOST: Duration = Duration::from_secs(30);

/// What a cluster says of a job (`nl/listener.go`, `Status`). What could not be done of it stands in another
/// field: an object that is not there cannot be forgotten.
#[derive(Deserialize)]
struct JobStatus {
    /// Nanoseconds since 1970; 0 until it has ended.
    end_time: i64,
    #[serde(default)]
    aborted: bool,
}

/// How far a job is.
enum Job {
    Runs,
    Ended,
    Aborted,
    /// The cluster says nothing of it, or nothing to who asks.
    Unknown,
}

impl AiStore {
    /// Begins a job about objects of the bucket; returns its name.
    pub(super) async fn begin_job(
        &self,
        method: &'static str,
        action: &str,
        objects: Value,
    ) -> Result<String, OriginError> {
        let question = Question {
            method,
            target: format!("/v1/buckets/{}?provider=aws", self.bucket),
            json: Some(json!({"action": action, "value": objects}).to_string()),
            ..Question::default()
        };
        let asked = Instant::now();
        let mut told = self.exchange.told(&question).await?;
        if told.0 == 404 && self.register(asked).await {
            told = self.exchange.told(&question).await?;
        }
        match told {
            // Some answer with a string of JSON.
            (200..=299, name) => {
                Ok(String::from_utf8_lossy(&name).trim().trim_matches('"').to_owned())
            }
            (status, _) => Err(failure(status)),
        }
    }

    async fn job(&self, id: &str) -> Result<Job, OriginError> {
        let question = Question {
            method: "GET",
            target: "/v1/cluster?what=status".into(),
            json: Some(json!({"id": id}).to_string()),
            ..Question::default()
        };
        let (status, text) = self.exchange.told(&question).await?;
        Ok(match (status, serde_json::from_slice::<JobStatus>(&text)) {
            (500.., _) => return Err(failure(status)),
            (200, Ok(job)) if job.aborted => Job::Aborted,
            (200, Ok(job)) if job.end_time == 0 => Job::Runs,
            (200, Ok(_)) => Job::Ended,
            _ => Job::Unknown,
        })
    }

    /// Waits for the end of a job. Of one of which it says nothing the cluster's word counts that it would
    /// do it.
    ///
    /// # Errors
    /// That it was aborted, or has not ended in time, or that the cluster does not answer.
    pub(super) async fn until_ended(&self, id: &str) -> Result<(), OriginError> {
        let (began, mut pause) = (Instant::now(), PAUSE);
        while began.elapsed() < MOST {
            match self.job(id).await? {
                Job::Runs => {}
                Job::Aborted => {
                    return Err(OriginError::Unavailable(format!("the job {id} was aborted")));
                }
                Job::Ended | Job::Unknown => return Ok(()),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Err(OriginError::Busy(format!("the job {id} goes on")))
    }
}

fn failure(status: u16) -> OriginError {
    let code = format!("HTTP {status}");
    match status {
        401 | 403 => OriginError::Denied(code),
        404 => OriginError::NotFound,
        _ => OriginError::Unavailable(code),
    }
}

#[async_trait]
impl FetchJobs for AiStore {
    async fn has(&self, key: &str, etag: &ETag) -> Result<bool, OriginError> {
        // "present, and where it belongs" (`api/apc/query.go`).
        let target =
            format!("/v1/objects/{}/{}?provider=aws&presence=2", self.bucket, in_path(key));
        let question = Question { method: "HEAD", target, ..Question::default() };
        let answer = self.exchange.ask(&question).await?;
        match answer.status().as_u16() {
            200 => {
                let other = answer.headers().get("etag").and_then(ETag::new);
                Ok(other.is_none_or(|other| other == *etag))
            }
            404 => Ok(false),
            status => Err(failure(status)),
        }
    }

    async fn fetch(&self, key: &str) -> Result<String, OriginError> {
        let objects = json!({"objnames": [key], "latest-ver": true});
        self.begin_job("POST", "prefetch-listrange", objects).await
    }

    async fn has_ended(&self, job: &str) -> Result<Option<bool>, OriginError> {
        Ok(match self.job(job).await? {
            Job::Runs => Some(false),
            Job::Ended | Job::Aborted => Some(true),
            Job::Unknown => None,
        })
    }
}
