//! What a cluster is asked by its native API: whether it has an object, and to fetch or forget some.

use std::time::Instant;

use async_trait::async_trait;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use serde::Deserialize;
use serde_json::{Value, json};

use super::exchange::{Question, text};
use super::{AiStore, FetchJobs, in_path};
use crate::model::version::ETag;
use crate::origin::OriginError;

/// Longest answer to a question about a job, in bytes.
const STATUS_MAX: usize = 64 << 10;

/// How far a job is (`nl/listener.go`).
#[derive(Deserialize)]
struct JobStatus {
    /// Nanoseconds since 1970; 0 while it runs.
    #[serde(default)]
    end_time: i64,
    #[serde(default)]
    aborted: bool,
}

impl AiStore {
    /// Begins a job about objects of the bucket; returns its name.
    pub(super) async fn begin_job(
        &self,
        method: &'static str,
        action: &str,
        objects: Value,
    ) -> Result<String, OriginError> {
        let question = || Question {
            method,
            target: format!("/v1/buckets/{}?provider=aws", self.bucket),
            json: Some(json!({"action": action, "value": objects}).to_string()),
            ..Question::default()
        };
        let asked = Instant::now();
        let mut answer = self.exchange.ask(&question()).await?;
        if answer.status().as_u16() == 404 && self.register(asked).await {
            answer = self.exchange.ask(&question()).await?;
        }
        if !answer.status().is_success() {
            return Err(failure(&answer));
        }
        let name = text(&mut answer, STATUS_MAX).await?;
        // Some answer with a string of JSON.
        Ok(String::from_utf8_lossy(&name).trim().trim_matches('"').to_owned())
    }
}

fn failure(answer: &HttpResponse) -> OriginError {
    let code = format!("HTTP {}", answer.status().as_u16());
    match answer.status().as_u16() {
        401 | 403 => OriginError::Denied(code),
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
            _ => Err(failure(&answer)),
        }
    }

    async fn fetch(&self, key: &str) -> Result<String, OriginError> {
        let objects = json!({"objnames": [key], "latest-ver": true});
        self.begin_job("POST", "prefetch-listrange", objects).await
    }

    async fn has_ended(&self, job: &str) -> Result<Option<bool>, OriginError> {
        let question = Question {
            method: "GET",
            target: "/v1/cluster?what=status".into(),
            json: Some(json!({"id": job}).to_string()),
            ..Question::default()
        };
        let mut answer = self.exchange.ask(&question).await?;
        match answer.status().as_u16() {
            200 => {
                let status = text(&mut answer, STATUS_MAX).await?;
                let status: JobStatus = serde_json::from_slice(&status)
                    .map_err(|_| OriginError::NotS3("the region says nothing of a job".into()))?;
                Ok(Some(status.end_time != 0 || status.aborted))
            }
            // It is too new, or too old.
            404 => Ok(None),
            _ => Err(failure(&answer)),
        }
    }
}
