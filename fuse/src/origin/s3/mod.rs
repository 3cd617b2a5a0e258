//! The origin over the S3 API, by aws-sdk-s3.

mod client;
mod copy;
mod errors;
mod http;
mod names;
mod uploads;

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::create_multipart_upload::builders::CreateMultipartUploadFluentBuilder;
use aws_sdk_s3::primitives::{ByteStream, Length};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use base64::Engine as _;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};

pub use client::S3Settings;
use errors::Request;
pub use http::http_client;

use super::{
    Body, Condition, CopySource, ListPage, ListRequest, Origin, OriginError, Part, PendingUpload,
    Stored, UploadBody, WRITER_METADATA, WriteIntent,
};
use crate::model::version::{BucketId, ETag, ObjectInfo};

/// Longest wait for the answer to a request without a body.
const REPLY_DEADLINE: Duration = Duration::from_secs(20);
/// Longest wait for the next piece of a body.
const STALL_DEADLINE: Duration = Duration::from_secs(10);
/// The slowest upload that is still progress: an upload may take this many bytes a second.
const SLOWEST_UPLOAD: u64 = 128 * 1024;

/// A bucket on an S3 endpoint.
pub struct S3Origin {
    client: Client,
    id: BucketId,
    settings: S3Settings,
}

impl S3Origin {
    /// Makes a client. Sends nothing, except what the credentials chain asks for.
    ///
    /// # Errors
    /// [`OriginError::Invalid`] when no region is known or the CA bundle cannot be read.
    pub async fn connect(settings: S3Settings) -> Result<Self, OriginError> {
        let (client, endpoint) = client::build(&settings).await?;
        let id = BucketId::new(&endpoint, &settings.bucket);
        Ok(Self { client, id, settings })
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

    fn creation(&self, key: &str) -> CreateMultipartUploadFluentBuilder {
        let checksum = self.settings.upload_checksums.then_some(ChecksumAlgorithm::Crc32C);
        self.client
            .create_multipart_upload()
            .bucket(&self.settings.bucket)
            .key(key)
            .set_checksum_algorithm(checksum)
            .set_storage_class(self.settings.storage_class())
            .set_server_side_encryption(self.settings.sse())
            .set_ssekms_key_id(self.settings.sse_kms_key_id.clone())
            .set_request_payer(self.payer())
            .set_expected_bucket_owner(self.owner())
    }

    fn payer(&self) -> Option<aws_sdk_s3::types::RequestPayer> {
        self.settings.requester_pays.then_some(aws_sdk_s3::types::RequestPayer::Requester)
    }

    fn owner(&self) -> Option<String> {
        self.settings.expected_bucket_owner.clone()
    }

    /// Whether a body is signed by itself. With a checksum among the signed headers it need not
    /// be, and its SHA-256 would take most of the CPU time of an upload (Amazon S3 API
    /// reference, "Signature calculations": UNSIGNED-PAYLOAD).
    fn signs_payload(&self) -> bool {
        !self.settings.upload_checksums
    }

    fn checksum(&self, crc32c: u32) -> Option<String> {
        self.settings
            .upload_checksums
            .then(|| base64::engine::general_purpose::STANDARD.encode(crc32c.to_be_bytes()))
    }
}

fn upload_deadline(bytes: u64) -> Duration {
    REPLY_DEADLINE + Duration::from_secs(bytes / SLOWEST_UPLOAD)
}

async fn part_stream(body: UploadBody) -> Result<ByteStream, OriginError> {
    match body {
        UploadBody::Memory { bytes, .. } => Ok(ByteStream::from(bytes)),
        UploadBody::File { file, offset, len, .. } => ByteStream::read_from()
            .path(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .offset(offset)
            .length(Length::Exact(len))
            .buffer_size(256 * 1024)
            .build()
            .await
            .map_err(|e| OriginError::Invalid(format!("staging file: {}", errors::chain(&e)))),
    }
}

fn stored(etag: Option<&str>, version_id: Option<&str>) -> Stored {
    Stored {
        etag: etag.and_then(ETag::new),
        version_id: names::version_id(version_id),
        mtime: SystemTime::now(),
    }
}

fn time_of(time: Option<&aws_sdk_s3::primitives::DateTime>) -> SystemTime {
    time.and_then(|t| SystemTime::try_from(*t).ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn size_of(size: Option<i64>) -> u64 {
    u64::try_from(size.unwrap_or(0)).unwrap_or(0)
}

/// Splits a condition into the values of If-Match and If-None-Match.
fn headers(condition: &Condition) -> (Option<String>, Option<String>) {
    match condition {
        Condition::Always => (None, None),
        Condition::Absent => (None, Some("*".into())),
        Condition::Matches(etag) => (Some(etag.as_str().to_owned()), None),
    }
}

#[async_trait]
impl Origin for S3Origin {
    fn bucket_id(&self) -> &BucketId {
        &self.id
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, OriginError> {
        let request = self
            .client
            .head_object()
            .bucket(&self.settings.bucket)
            .key(key)
            .set_request_payer(self.payer())
            .set_expected_bucket_owner(self.owner())
            .send();
        let reply = Self::within(REPLY_DEADLINE, Request::Read, request).await?;
        Ok(ObjectInfo {
            size: size_of(reply.content_length()),
            etag: reply.e_tag().and_then(ETag::new),
            mtime: time_of(reply.last_modified()),
            version_id: names::version_id(reply.version_id()),
            writer: reply
                .metadata()
                .and_then(|m| m.get(WRITER_METADATA))
                .map(|w| w.as_str().into()),
        })
    }

    async fn get(&self, key: &str, etag: &ETag, range: Range<u64>) -> Result<Body, OriginError> {
        let expected = range.end - range.start;
        let request = self
            .client
            .get_object()
            .bucket(&self.settings.bucket)
            .key(key)
            .if_match(etag.as_str())
            .range(format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))
            .set_request_payer(self.payer())
            .set_expected_bucket_owner(self.owner())
            .send();
        let reply = Self::within(REPLY_DEADLINE, Request::Pinned, request).await?;
        // A server that ignores If-Match must not slip in another version.
        let got = reply.e_tag().and_then(ETag::new);
        if got.as_ref() != Some(etag) {
            return Err(OriginError::Changed);
        }
        let announced = size_of(reply.content_length());
        if announced != expected {
            return Err(OriginError::BadBody(format!(
                "{announced} bytes announced, {expected} asked"
            )));
        }
        Ok(Body { etag: etag.clone(), pieces: checked_pieces(reply.body, expected) })
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, OriginError> {
        let call = self
            .client
            .list_objects_v2()
            .bucket(&self.settings.bucket)
            .prefix(&request.prefix)
            .set_delimiter(request.delimited.then(|| "/".to_owned()))
            .set_continuation_token(request.token.clone())
            .max_keys(i32::from(request.max_keys))
            .encoding_type(aws_sdk_s3::types::EncodingType::Url)
            .set_request_payer(self.payer())
            .set_expected_bucket_owner(self.owner())
            .send();
        let reply = Self::within(REPLY_DEADLINE, Request::List, call).await?;
        names::page(&reply)
    }

    async fn put(
        &self,
        key: &str,
        body: UploadBody,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let (if_match, if_none_match) = headers(&write.condition);
        let deadline = upload_deadline(body.len());
        let checksum = self.checksum(body.crc32c());
        let body = part_stream(body).await?;
        let request = self
            .client
            .put_object()
            .bucket(&self.settings.bucket)
            .key(key)
            .set_if_match(if_match)
            .set_if_none_match(if_none_match)
            .metadata(WRITER_METADATA, &write.writer)
            .set_checksum_crc32_c(checksum)
            .set_storage_class(self.settings.storage_class())
            .set_server_side_encryption(self.settings.sse())
            .set_ssekms_key_id(self.settings.sse_kms_key_id.clone())
            .set_request_payer(self.payer())
            .set_expected_bucket_owner(self.owner())
            .body(body)
            .customize();
        let request =
            if self.signs_payload() { request } else { request.disable_payload_signing() };
        let reply = Self::within(deadline, Request::Write, request.send()).await?;
        Ok(stored(reply.e_tag(), reply.version_id()))
    }

    async fn create_upload(&self, key: &str, writer: &str) -> Result<String, OriginError> {
        let request = self.creation(key).metadata(WRITER_METADATA, writer).send();
        let reply = Self::within(REPLY_DEADLINE, Request::Write, request).await?;
        let id = reply.upload_id().map(str::to_owned);
        id.ok_or_else(|| OriginError::NotS3("no upload id in the answer".into()))
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
        let checksum = self.checksum(body.crc32c());
        let deadline = upload_deadline(body.len());
        let stream = part_stream(body).await?;
        let request = self
            .client
            .upload_part()
            .bucket(&self.settings.bucket)
            .key(key)
            .upload_id(upload_id)
            .part_number(i32::try_from(number).unwrap_or(i32::MAX))
            .set_checksum_crc32_c(checksum)
            .set_request_payer(self.payer())
            .set_expected_bucket_owner(self.owner())
            .body(stream)
            .customize();
        let request =
            if self.signs_payload() { request } else { request.disable_payload_signing() };
        let reply = Self::within(deadline, Request::Write, request.send()).await?;
        let etag = reply.e_tag().map(str::to_owned);
        let etag = etag.ok_or_else(|| OriginError::NotS3("no ETag for a part".into()))?;
        let checksum = reply.checksum_crc32_c().map(str::to_owned);
        Ok(Part { number, etag, checksum })
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
        let list = parts.iter().map(|part| {
            CompletedPart::builder()
                .part_number(i32::try_from(part.number).unwrap_or(i32::MAX))
                .e_tag(&part.etag)
                .set_checksum_crc32_c(part.checksum.clone())
                .build()
        });
        let upload = CompletedMultipartUpload::builder().set_parts(Some(list.collect())).build();
        let (if_match, if_none_match) = headers(&write.condition);
        let request = self
            .client
            .complete_multipart_upload()
            .bucket(&self.settings.bucket)
            .key(key)
            .upload_id(upload_id)
            .multipart_upload(upload)
            .set_if_match(if_match)
            .set_if_none_match(if_none_match)
            .set_request_payer(self.payer())
            .set_expected_bucket_owner(self.owner())
            .send();
        // S3 may take minutes to put a large object together (API reference,
        // CompleteMultipartUpload: it sends white space meanwhile).
        let reply = Self::within(REPLY_DEADLINE * 15, Request::Complete, request).await?;
        Ok(stored(reply.e_tag(), reply.version_id()))
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), OriginError> {
        let request = self
            .client
            .abort_multipart_upload()
            .bucket(&self.settings.bucket)
            .key(key)
            .upload_id(upload_id)
            .set_request_payer(self.payer())
            .set_expected_bucket_owner(self.owner())
            .send();
        let reply = Self::within(REPLY_DEADLINE, Request::Write, request);
        match reply.await {
            Ok(_) => Ok(()),
            Err(OriginError::NotFound) => Err(OriginError::NoSuchUpload),
            Err(e) => Err(e),
        }
    }

    async fn list_uploads(&self, key: &str) -> Result<Vec<PendingUpload>, OriginError> {
        uploads::list(self, key).await
    }

    async fn delete(&self, key: &str, condition: &Condition) -> Result<(), OriginError> {
        if *condition == Condition::Absent {
            return Err(OriginError::Invalid("what is absent is not removed".into()));
        }
        let request = self
            .client
            .delete_object()
            .bucket(&self.settings.bucket)
            .key(key)
            .set_if_match(headers(condition).0)
            .set_request_payer(self.payer())
            .set_expected_bucket_owner(self.owner())
            .send();
        let reply = Self::within(REPLY_DEADLINE, Request::Write, request);
        match reply.await {
            Ok(_) => Ok(()),
            Err(OriginError::NotFound) if *condition == Condition::Always => Ok(()),
            Err(e) => Err(e),
        }
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

/// Hands on the pieces of a body, bounds the wait for each, and checks the length at the end:
/// the SDK lets a body end early without an error.
fn checked_pieces(
    body: ByteStream,
    expected: u64,
) -> stream::BoxStream<'static, Result<Bytes, OriginError>> {
    struct State {
        body: ByteStream,
        left: u64,
        over: bool,
    }
    let state = State { body, left: expected, over: false };
    stream::unfold(state, |mut state| async move {
        if state.over {
            return None;
        }
        let next = tokio::time::timeout(STALL_DEADLINE, state.body.next()).await;
        let item = match next {
            Err(_) => Err(OriginError::TimedOut),
            Ok(Some(Err(e))) => Err(OriginError::BadBody(errors::chain(&e))),
            Ok(None) if state.left == 0 => return None,
            Ok(None) => Err(OriginError::BadBody(format!("{} bytes are missing", state.left))),
            Ok(Some(Ok(piece))) => match state.left.checked_sub(piece.len() as u64) {
                Some(left) => {
                    state.left = left;
                    Ok(piece)
                }
                None => Err(OriginError::BadBody("longer than announced".into())),
            },
        };
        state.over = item.is_err();
        Some((item, state))
    })
    .boxed()
}
