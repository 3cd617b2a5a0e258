//! The origin over the S3 API, by aws-sdk-s3.

mod body;
mod bound;
mod client;
mod copy;
mod digest;
mod errors;
mod fair;
mod http;
mod names;
mod read;
mod signing;
mod uploads;
mod write;

#[cfg(test)]
mod fuzz;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

pub use bound::{answers_held, limit_answers};
use client::Clients;
pub use client::S3Settings;
use errors::Request;
pub(in crate::origin) use http::DirectClient;
pub use http::{http_client, names_a_user};

use super::{
    Body, Condition, CopySource, ListPage, ListRequest, Origin, OriginError, Part, PartKind,
    PendingUpload, Stored, UploadBody, WriteIntent,
};
use crate::model::version::{BucketId, ObjectInfo, Version};

/// Longest wait for the answer to a request without a body.
const REPLY_DEADLINE: Duration = Duration::from_secs(20);
/// A bucket on an S3 endpoint.
pub struct S3Origin {
    clients: Clients,
    id: BucketId,
    settings: S3Settings,
    /// Whether what is sent can be changed on its way, and its signature has to say what it is.
    signs_payloads: bool,
    /// Whether the endpoint was seen to take a wrong CRC32C.
    checksums_doubted: AtomicBool,
    /// Uploads that were begun for copies, and neither completed nor aborted.
    copies: Mutex<HashSet<String>>,
}

impl S3Origin {
    /// Makes a client. Sends nothing, except what the credentials chain asks for.
    ///
    /// # Errors
    /// [`OriginError::Invalid`] when no region is known or the CA bundle cannot be read.
    pub async fn connect(settings: S3Settings) -> Result<Self, OriginError> {
        let (clients, endpoint) = client::build(&settings).await?;
        Ok(Self::new(settings, clients, &endpoint))
    }

    fn new(settings: S3Settings, clients: Clients, endpoint: &str) -> Self {
        Self {
            clients,
            id: BucketId::new(endpoint, &settings.bucket),
            signs_payloads: http::is_plain(endpoint) && !settings.no_sign_request,
            settings,
            checksums_doubted: AtomicBool::new(false),
            copies: Mutex::default(),
        }
    }

    /// As [`Origin::get`], of a server that is not the origin and need not have the object: fails with
    /// [`OriginError::NotFound`] where it has none.
    pub(in crate::origin) async fn get_of_replica(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        read::get(self, Request::Replica, key, version, range).await
    }

    /// Sends a request and bounds the wait for its answer. The SDK's futures are tens of KiB:
    /// boxed, they do not weigh on every future that waits for them.
    fn within<T, E>(
        limit: Duration,
        kind: Request,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, OriginError>>
    where
        T: Send + 'static,
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let request = Box::pin(request);
        async move {
            match tokio::time::timeout(limit, request).await {
                Ok(reply) => reply.map_err(|error| errors::of(kind, &error)),
                Err(_) => Err(OriginError::TimedOut),
            }
        }
        .boxed()
    }

    fn payer(&self) -> Option<aws_sdk_s3::types::RequestPayer> {
        self.settings.requester_pays.then_some(aws_sdk_s3::types::RequestPayer::Requester)
    }

    fn owner(&self) -> Option<String> {
        self.settings.expected_bucket_owner.clone()
    }
}

fn stored(etag: Option<&str>, version_id: Option<&str>) -> Result<Stored, OriginError> {
    Ok(Stored {
        etag: names::tag(etag)?,
        version_id: names::version_id(version_id)?,
        mtime: SystemTime::now(),
    })
}

fn time_of(time: Option<&aws_sdk_s3::primitives::DateTime>) -> SystemTime {
    time.and_then(|t| SystemTime::try_from(*t).ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A size as a server gives it; one below nothing is one that no object has.
fn size_of(size: Option<i64>) -> u64 {
    u64::try_from(size.unwrap_or(0)).unwrap_or(u64::MAX)
}

/// Splits a condition into the values of If-Match and If-None-Match.
fn headers(condition: &Condition) -> (Option<String>, Option<String>) {
    match condition {
        Condition::Always => (None, None),
        Condition::Absent => (None, Some("*".into())),
        Condition::Matches(etag) => (etag.as_match(), None),
    }
}

#[async_trait]
impl Origin for S3Origin {
    fn bucket_id(&self) -> &BucketId {
        &self.id
    }

    fn doubt_checksums(&self) {
        self.checksums_doubted.store(true, Ordering::Relaxed);
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, OriginError> {
        read::head(self, key).await
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        read::get(self, Request::Pinned, key, version, range).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, OriginError> {
        read::list(self, request).await
    }

    async fn put(
        &self,
        key: &str,
        body: UploadBody,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        write::put(self, key, body, write).await
    }

    async fn create_upload(
        &self,
        key: &str,
        writer: &str,
        parts: PartKind,
    ) -> Result<String, OriginError> {
        write::create_upload(self, key, writer, parts).await
    }

    async fn create_copy(&self, source: &CopySource, to: &str) -> Result<String, OriginError> {
        copy::create(self, source, to).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: u32,
        body: UploadBody,
    ) -> Result<Part, OriginError> {
        write::upload_part(self, key, upload_id, number, body).await
    }

    async fn copy_part(
        &self,
        source: &CopySource,
        range: Range<u64>,
        key: &str,
        upload_id: &str,
        number: u32,
    ) -> Result<Part, OriginError> {
        copy::copy_part(self, source, range, key, upload_id, number).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        write::complete_upload(self, key, upload_id, parts, write).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), OriginError> {
        write::abort_upload(self, key, upload_id).await
    }

    async fn list_uploads(&self, key: &str) -> Result<Vec<PendingUpload>, OriginError> {
        uploads::list(self, key).await
    }

    async fn delete(&self, key: &str, condition: &Condition) -> Result<(), OriginError> {
        write::delete(self, key, condition).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        to: &str,
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        copy::copy(self, source, to, condition).await
    }
}
