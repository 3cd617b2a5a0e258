//! A cluster of NVIDIA AIStore before the origin, by its S3 and its native API.

mod exchange;
mod jobs;
mod lately;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_types::body::SdkBody;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::{FetchJobs, RegionSettings, Replica, STALL};
use crate::blocking::MayBlock;
use crate::model::version::{ETag, Version};
use crate::origin::s3::DirectClient;
use crate::origin::{Body, OriginError, content_range, pieces};
use crate::token_file::TokenFile;
use exchange::{Exchange, Question, is_an_answer};
use lately::Lately;

/// How long a bucket that was registered is not registered again.
const REGISTER_AGAIN: Duration = Duration::from_secs(60);
/// What stands in the path of a URL as it is (RFC 3986, section 3.3).
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A bucket of the origin as a cluster has it.
pub(super) struct AiStore {
    exchange: Arc<Exchange>,
    bucket: String,
    registered: Lately,
}

impl AiStore {
    /// # Errors
    /// [`OriginError::Invalid`] where a file that is named cannot be used.
    pub(super) fn new(
        may: &MayBlock,
        settings: &RegionSettings,
        bucket: &str,
    ) -> Result<Self, OriginError> {
        let client = DirectClient::new(may, &settings.url, settings.ca_bundle.as_deref())?;
        let token = settings.token_file.clone().map(|path| TokenFile::new(path, "the region's"));
        Ok(Self {
            exchange: Arc::new(Exchange::new(client, &settings.url, token, &settings.allow)),
            bucket: bucket.to_owned(),
            registered: Lately::new(REGISTER_AGAIN),
        })
    }

    /// Has the cluster know the bucket as one of its origin's: until then it has no object of it.
    /// Returns whether it knows it since `since`, and may not have known it then.
    async fn register(&self, since: Instant) -> bool {
        let target = format!("/v1/buckets/{}?provider=aws", self.bucket);
        let exchange = self.exchange.clone();
        let registers = async move {
            let question = Question { method: "HEAD", target, ..Question::default() };
            let answer = exchange.ask(&question).await.ok()?;
            is_an_answer(&answer).then(|| answer.status().is_success())
        };
        self.registered.ask(since, registers).await
    }

    async fn get_once(
        &self,
        key: &str,
        version: &Version,
        range: &Range<u64>,
    ) -> Result<Body, OriginError> {
        let target = format!("/s3/{}/{}", self.bucket, in_path(key));
        let question =
            Question { method: "GET", target, range: Some(range.clone()), ..Question::default() };
        let mut answer = self.exchange.ask(&question).await?;
        let code = || format!("HTTP {}", answer.status().as_u16());
        match answer.status().as_u16() {
            206 => {}
            404 => return Err(OriginError::NotFound),
            401 | 403 => return Err(OriginError::Denied(code())),
            416 => return Err(OriginError::Changed),
            507 => return Err(OriginError::NoSpace(code())),
            // All of the object: it does not do ranges.
            200 => return Err(OriginError::NotS3("the region ignores ranges".into())),
            _ => return Err(OriginError::Unavailable(code())),
        }
        let headers = answer.headers();
        if headers.get("etag").and_then(ETag::new).as_ref() != Some(&version.etag) {
            return Err(OriginError::Changed);
        }
        content_range::check(
            Some(headers.get("content-range").unwrap_or("")),
            range,
            version.size,
        )?;
        let expected = range.end - range.start;
        let length = headers.get("content-length").and_then(|text| text.parse::<u64>().ok());
        if length.is_some_and(|length| length != expected) {
            return Err(OriginError::BadBody(format!(
                "{length:?} bytes announced, not {expected}"
            )));
        }
        let body = std::mem::replace(answer.body_mut(), SdkBody::taken());
        let pieces = pieces::checked(ByteStream::new(body), expected, STALL);
        Ok(Body { etag: version.etag.clone(), pieces, borrowed: true })
    }
}

/// A key as it stands in the path of a URL.
fn in_path(key: &str) -> String {
    let parts: Vec<_> =
        key.split('/').map(|part| utf8_percent_encode(part, PATH).to_string()).collect();
    parts.join("/")
}

#[async_trait]
impl Replica for AiStore {
    /// It takes `a//b` for `a/b`, `a/../b` for `b`, a slash away at the end, and what comes after a
    /// question mark for none of the key.
    fn can_have(&self, key: &str) -> bool {
        !key.contains('?') && key.split('/').all(|part| !matches!(part, "" | "." | ".."))
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        let asked = Instant::now();
        match self.get_once(key, version, &range).await {
            Err(OriginError::NotFound) if self.register(asked).await => {
                self.get_once(key, version, &range).await
            }
            answer => answer,
        }
    }

    fn can_forget(&self, key: &str) -> bool {
        self.can_have(key)
    }

    async fn forget(&self, keys: &[&str]) -> Result<(), OriginError> {
        let job = self.begin_job("DELETE", "evict-listrange", json!({"objnames": keys})).await?;
        self.until_ended(&job).await
    }

    fn jobs(&self) -> Option<&dyn FetchJobs> {
        Some(self)
    }
}
