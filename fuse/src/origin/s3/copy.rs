//! Copies within the bucket, by the server.

use std::ops::Range;

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::Tag;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::errors::Request;
use super::{REPLY_DEADLINE, S3Origin, headers, names, stored};
use crate::origin::{Condition, CopySource, Origin, OriginError, Part, Stored};

pub(super) async fn copy(
    origin: &S3Origin,
    source: &CopySource,
    to: &str,
    condition: &Condition,
) -> Result<Stored, OriginError> {
    let (if_match, if_none_match) = headers(condition);
    let request = origin
        .clients
        .patient
        .copy_object()
        .bucket(&origin.settings.bucket)
        .key(to)
        .copy_source(names::copy_source(&origin.settings.bucket, &source.key))
        .set_copy_source_if_match(source.etag.as_match())
        .set_if_match(if_match)
        .set_if_none_match(if_none_match)
        .set_storage_class(origin.settings.storage_class())
        .set_server_side_encryption(origin.settings.sse())
        .set_ssekms_key_id(origin.settings.sse_kms_key_id.clone())
        .set_request_payer(origin.payer())
        .set_expected_bucket_owner(origin.owner())
        .set_expected_source_bucket_owner(origin.owner())
        .send();
    match S3Origin::within(REPLY_DEADLINE * 15, Request::Copy, request).await {
        Ok(reply) => {
            let result = reply.copy_object_result();
            stored(result.and_then(|r| r.e_tag()), reply.version_id())
        }
        Err(OriginError::Conflict) if *condition == Condition::Always => Err(OriginError::Changed),
        // One code for source and target: the source itself tells which one it was.
        Err(refusal @ (OriginError::Conflict | OriginError::NotFound)) => {
            match origin.head(&source.key).await {
                Ok(info) if source.etag.is_same(info.etag.as_ref()) => Err(refusal),
                Ok(_) | Err(OriginError::NotFound) => Err(OriginError::Changed),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// Begins an upload with everything of the source that is not its bytes. It asks for no kind of
/// checksum: MinIO refuses copied parts where one was asked for, since it has none for them.
pub(super) async fn create(
    origin: &S3Origin,
    source: &CopySource,
    to: &str,
) -> Result<String, OriginError> {
    let head = origin
        .clients
        .prompt
        .head_object()
        .bucket(&origin.settings.bucket)
        .key(&source.key)
        .set_if_match(source.etag.as_match())
        .set_request_payer(origin.payer())
        .set_expected_bucket_owner(origin.owner())
        .send();
    let head = S3Origin::within(REPLY_DEADLINE, Request::Pinned, head).await?;
    let tagging = match head.tag_count() {
        Some(count) if count > 0 => Some(tags(origin, &source.key).await?),
        _ => None,
    };
    let request = with_headers(origin.creation(to), &head).set_tagging(tagging).send();
    let reply = S3Origin::within(REPLY_DEADLINE, Request::Write, request).await?;
    let id = reply.upload_id().map(str::to_owned);
    let id = id.ok_or_else(|| OriginError::NotS3("no upload id in the answer".into()))?;
    origin.copies().insert(id.clone());
    Ok(id)
}

type Creation =
    aws_sdk_s3::operation::create_multipart_upload::builders::CreateMultipartUploadFluentBuilder;

fn with_headers(creation: Creation, head: &HeadObjectOutput) -> Creation {
    creation
        .set_metadata(head.metadata().cloned())
        .set_content_type(head.content_type().map(Into::into))
        .set_content_encoding(head.content_encoding().map(Into::into))
        .set_content_language(head.content_language().map(Into::into))
        .set_content_disposition(head.content_disposition().map(Into::into))
        .set_cache_control(head.cache_control().map(Into::into))
}

/// The tags of an object, as the header x-amz-tagging wants them.
async fn tags(origin: &S3Origin, key: &str) -> Result<String, OriginError> {
    let request = origin
        .clients
        .prompt
        .get_object_tagging()
        .bucket(&origin.settings.bucket)
        .key(key)
        .set_request_payer(origin.payer())
        .set_expected_bucket_owner(origin.owner())
        .send();
    let reply = S3Origin::within(REPLY_DEADLINE, Request::Read, request).await?;
    Ok(tag_query(reply.tag_set()))
}

fn tag_query(tags: &[Tag]) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let pairs = tags.iter().map(|tag| format!("{}={}", encoded(tag.key()), encoded(tag.value())));
    pairs.collect::<Vec<_>>().join("&")
}

pub(super) async fn copy_part(
    origin: &S3Origin,
    source: &CopySource,
    range: Range<u64>,
    key: &str,
    upload_id: &str,
    number: u32,
) -> Result<Part, OriginError> {
    let request = origin
        .clients
        .patient
        .upload_part_copy()
        .bucket(&origin.settings.bucket)
        .key(key)
        .upload_id(upload_id)
        .part_number(i32::try_from(number).unwrap_or(i32::MAX))
        .copy_source(names::copy_source(&origin.settings.bucket, &source.key))
        .set_copy_source_if_match(source.etag.as_match())
        .copy_source_range(format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))
        .set_request_payer(origin.payer())
        .set_expected_bucket_owner(origin.owner())
        .set_expected_source_bucket_owner(origin.owner())
        .send();
    let reply = S3Origin::within(REPLY_DEADLINE * 15, Request::Pinned, request).await?;
    let result = reply.copy_part_result();
    let etag = result.and_then(|r| r.e_tag()).map(str::to_owned);
    let etag = etag.ok_or_else(|| OriginError::NotS3("no ETag for a part".into()))?;
    let checksum = result.and_then(|r| r.checksum_crc32_c()).map(str::to_owned);
    Ok(Part { number, etag, checksum })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_survive_their_header() {
        let tag = |key: &str, value: &str| {
            Tag::builder().key(key).value(value).build().expect("both are set")
        };
        assert_eq!(tag_query(&[tag("a b", "1&2"), tag("ö", "")]), "a%20b=1%262&%C3%B6=");
    }
}
