//! Copies within the bucket, by the server.

use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};

use super::errors::Request;
use super::{REPLY_DEADLINE, S3Origin, names, stored};
use crate::model::version::ETag;
use crate::origin::{Origin, OriginError, Stored};

/// The largest object that one CopyObject takes (API reference: 5 GB; a little less here).
const SINGLE_MAX: u64 = 5_000_000_000;
/// Size of a part of a larger copy.
const PART: u64 = 512 * 1024 * 1024;

pub(super) async fn copy(
    origin: &S3Origin,
    from: &str,
    etag: &ETag,
    size: u64,
    to: &str,
) -> Result<Stored, OriginError> {
    if size > SINGLE_MAX {
        return copy_in_parts(origin, from, etag, size, to).await;
    }
    let request = origin
        .client
        .copy_object()
        .bucket(&origin.settings.bucket)
        .key(to)
        .copy_source(names::copy_source(&origin.settings.bucket, from))
        .copy_source_if_match(etag.as_str())
        .set_storage_class(origin.settings.storage_class())
        .set_server_side_encryption(origin.settings.sse())
        .set_ssekms_key_id(origin.settings.sse_kms_key_id.clone())
        .set_request_payer(origin.payer())
        .set_expected_bucket_owner(origin.owner())
        .send();
    let reply = S3Origin::within(REPLY_DEADLINE * 15, Request::Pinned, request).await?;
    let result = reply.copy_object_result();
    Ok(stored(result.and_then(|r| r.e_tag()), reply.version_id()))
}

async fn copy_in_parts(
    origin: &S3Origin,
    from: &str,
    etag: &ETag,
    size: u64,
    to: &str,
) -> Result<Stored, OriginError> {
    let info = origin.head(from).await?;
    let writer = info.writer.unwrap_or_default();
    let upload = origin.create_upload(to, &writer).await?;
    let done = copy_parts(origin, from, etag, size, to, &upload).await;
    if done.is_err() {
        // The copy's own error matters; an upload left behind is what lifecycle rules are for.
        let _ = origin.abort_upload(to, &upload).await;
    }
    done
}

async fn copy_parts(
    origin: &S3Origin,
    from: &str,
    etag: &ETag,
    size: u64,
    to: &str,
    upload: &str,
) -> Result<Stored, OriginError> {
    let mut parts = Vec::new();
    for (number, start) in (1..).zip((0..size).step_by(PART as usize)) {
        let end = (start + PART).min(size);
        let request = origin
            .client
            .upload_part_copy()
            .bucket(&origin.settings.bucket)
            .key(to)
            .upload_id(upload)
            .part_number(number)
            .copy_source(names::copy_source(&origin.settings.bucket, from))
            .copy_source_if_match(etag.as_str())
            .copy_source_range(format!("bytes={start}-{}", end - 1))
            .send();
        let reply = S3Origin::within(REPLY_DEADLINE * 15, Request::Pinned, request).await?;
        let result = reply.copy_part_result();
        let part = CompletedPart::builder()
            .part_number(number)
            .set_e_tag(result.and_then(|r| r.e_tag()).map(str::to_owned))
            .set_checksum_crc32_c(result.and_then(|r| r.checksum_crc32_c()).map(str::to_owned))
            .build();
        parts.push(part);
    }
    let request = origin
        .client
        .complete_multipart_upload()
        .bucket(&origin.settings.bucket)
        .key(to)
        .upload_id(upload)
        .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
        .send();
    let reply = S3Origin::within(REPLY_DEADLINE * 15, Request::Write, request).await?;
    Ok(stored(reply.e_tag(), reply.version_id()))
}
