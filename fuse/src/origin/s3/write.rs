//! What is written: objects, parts, and their end.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::create_multipart_upload::builders::CreateMultipartUploadFluentBuilder;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::body::{Progress, stream};
use super::digest::content_md5;
use super::errors::{self, Request};
use super::{REPLY_DEADLINE, S3Origin, headers, stored};
use crate::origin::{
    Condition, OriginError, Part, PartKind, Stored, UploadBody, WRITER_METADATA, WriteIntent,
};

impl S3Origin {
    /// An upload of `key`, with what is set for all objects.
    pub(super) fn creation(&self, key: &str) -> CreateMultipartUploadFluentBuilder {
        self.clients
            .prompt
            .create_multipart_upload()
            .bucket(&self.settings.bucket)
            .key(key)
            .set_storage_class(self.settings.storage_class())
            .set_server_side_encryption(self.settings.sse())
            .set_ssekms_key_id(self.settings.sse_kms_key_id.clone())
            .set_request_payer(self.payer())
            .set_expected_bucket_owner(self.owner())
    }

    /// Uploads begun for copies.
    pub(super) fn copies(&self) -> MutexGuard<'_, HashSet<String>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn crc32c(&self, body: &UploadBody) -> Option<String> {
        let send = self.settings.upload_checksums;
        send.then(|| STANDARD.encode(body.crc32c().to_be_bytes()))
    }

    /// A digest among the signed headers tells what a body is to be, also where it is not signed itself:
    /// CRC32C, or this where that is not sent or not checked.
    async fn md5(&self, body: &UploadBody) -> Result<Option<String>, OriginError> {
        let is_guarded =
            self.settings.upload_checksums && !self.checksums_doubted.load(Ordering::Relaxed);
        match is_guarded {
            true => Ok(None),
            false => content_md5(body.clone()).await.map(Some),
        }
    }
}

/// Waits for an upload for as long as it moves.
fn sent<T, E>(
    progress: Arc<Progress>,
    request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send + 'static,
) -> BoxFuture<'static, Result<T, OriginError>>
where
    T: Send + 'static,
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let request = Box::pin(request);
    async move {
        tokio::select! {
            reply = request => reply.map_err(|error| errors::of(Request::Write, &error)),
            () = progress.stalled() => Err(OriginError::TimedOut),
        }
    }
    .boxed()
}

pub(super) async fn put(
    origin: &S3Origin,
    key: &str,
    body: UploadBody,
    write: &WriteIntent,
) -> Result<Stored, OriginError> {
    let (if_match, if_none_match) = headers(&write.condition);
    // What has no body is sent again by the SDK, as any other request.
    let client = if body.is_empty() { &origin.clients.prompt } else { &origin.clients.once };
    let (crc32c, md5) = (origin.crc32c(&body), origin.md5(&body).await?);
    let signing = origin.signing(&body).await?;
    let (stream, progress) = stream(body);
    let request = client
        .put_object()
        .bucket(&origin.settings.bucket)
        .key(key)
        .set_if_match(if_match)
        .set_if_none_match(if_none_match)
        .metadata(WRITER_METADATA, &write.writer)
        .set_checksum_crc32_c(crc32c)
        .set_content_md5(md5)
        .set_storage_class(origin.settings.storage_class())
        .set_server_side_encryption(origin.settings.sse())
        .set_ssekms_key_id(origin.settings.sse_kms_key_id.clone())
        .set_request_payer(origin.payer())
        .set_expected_bucket_owner(origin.owner())
        .body(stream)
        .customize()
        .interceptor(signing);
    let reply = sent(progress, request.send()).await?;
    stored(reply.e_tag(), reply.version_id())
}

pub(super) async fn create_upload(
    origin: &S3Origin,
    key: &str,
    writer: &str,
    parts: PartKind,
) -> Result<String, OriginError> {
    let with_checksums = origin.settings.upload_checksums && parts == PartKind::Sent;
    let checksum = with_checksums.then_some(ChecksumAlgorithm::Crc32C);
    let request = origin.creation(key).set_checksum_algorithm(checksum);
    let request = request.metadata(WRITER_METADATA, writer).send();
    let reply = S3Origin::within(REPLY_DEADLINE, Request::Write, request).await?;
    let id = reply.upload_id().map(str::to_owned);
    let id = id.ok_or_else(|| OriginError::NotS3("no upload id in the answer".into()))?;
    if parts == PartKind::Mixed {
        origin.copies().insert(id.clone());
    }
    Ok(id)
}

pub(super) async fn upload_part(
    origin: &S3Origin,
    key: &str,
    upload_id: &str,
    number: u32,
    body: UploadBody,
) -> Result<Part, OriginError> {
    // An upload that was begun without a kind of checksum takes none with its parts.
    let of_copy = origin.copies().contains(upload_id);
    let (crc32c, md5) = match of_copy {
        true => (None, Some(content_md5(body.clone()).await?)),
        false => (origin.crc32c(&body), origin.md5(&body).await?),
    };
    let signing = origin.signing(&body).await?;
    let (stream, progress) = stream(body);
    let request = origin
        .clients
        .once
        .upload_part()
        .bucket(&origin.settings.bucket)
        .key(key)
        .upload_id(upload_id)
        .part_number(i32::try_from(number).unwrap_or(i32::MAX))
        .set_checksum_crc32_c(crc32c)
        .set_content_md5(md5)
        .set_request_payer(origin.payer())
        .set_expected_bucket_owner(origin.owner())
        .body(stream)
        .customize()
        .interceptor(signing);
    let reply = sent(progress, request.send()).await;
    let reply = reply.map_err(|error| errors::of_part(number, error))?;
    let etag = reply.e_tag().map(str::to_owned);
    let etag = etag.ok_or_else(|| OriginError::NotS3("no ETag for a part".into()))?;
    let checksum = reply.checksum_crc32_c().map(str::to_owned);
    Ok(Part { number, etag, checksum })
}

pub(super) async fn complete_upload(
    origin: &S3Origin,
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
    let request = origin
        .clients
        .once
        .complete_multipart_upload()
        .bucket(&origin.settings.bucket)
        .key(key)
        .upload_id(upload_id)
        .multipart_upload(upload)
        .set_if_match(if_match)
        .set_if_none_match(if_none_match)
        .set_request_payer(origin.payer())
        .set_expected_bucket_owner(origin.owner())
        .send();
    // S3 may take minutes to put a large object together (API reference,
    // CompleteMultipartUpload: it sends white space meanwhile).
    let reply = S3Origin::within(REPLY_DEADLINE * 15, Request::Complete, request).await?;
    origin.copies().remove(upload_id);
    stored(reply.e_tag(), reply.version_id())
}

pub(super) async fn abort_upload(
    origin: &S3Origin,
    key: &str,
    upload_id: &str,
) -> Result<(), OriginError> {
    let request = origin
        .clients
        .prompt
        .abort_multipart_upload()
        .bucket(&origin.settings.bucket)
        .key(key)
        .upload_id(upload_id)
        .set_request_payer(origin.payer())
        .set_expected_bucket_owner(origin.owner())
        .send();
    let reply = S3Origin::within(REPLY_DEADLINE, Request::Write, request);
    match reply.await {
        Ok(_) => {
            origin.copies().remove(upload_id);
            Ok(())
        }
        Err(OriginError::NotFound) => Err(OriginError::NoSuchUpload),
        Err(e) => Err(e),
    }
}

pub(super) async fn delete(
    origin: &S3Origin,
    key: &str,
    condition: &Condition,
) -> Result<(), OriginError> {
    if *condition == Condition::Absent {
        return Err(OriginError::Invalid("what is absent is not removed".into()));
    }
    let request = origin
        .clients
        .prompt
        .delete_object()
        .bucket(&origin.settings.bucket)
        .key(key)
        .set_if_match(headers(condition).0)
        .set_request_payer(origin.payer())
        .set_expected_bucket_owner(origin.owner())
        .send();
    let reply = S3Origin::within(REPLY_DEADLINE, Request::Write, request);
    match reply.await {
        Ok(_) => Ok(()),
        Err(OriginError::NotFound) if *condition == Condition::Always => Ok(()),
        Err(e) => Err(e),
    }
}
