//! What is read: metadata, bytes, listings.

use std::ops::Range;
use std::time::Duration;

use aws_sdk_s3::types::EncodingType;

use super::errors::Request;
use super::{REPLY_DEADLINE, S3Origin, names, size_of, time_of};
use crate::model::version::{ETag, ObjectInfo, Version};
use crate::origin::{
    Body, ListPage, ListRequest, OriginError, WRITER_METADATA, content_range, pieces,
};

/// Longest wait for the next piece of a body.
const STALL_DEADLINE: Duration = Duration::from_secs(10);

pub(super) async fn head(origin: &S3Origin, key: &str) -> Result<ObjectInfo, OriginError> {
    let request = origin
        .clients
        .prompt
        .head_object()
        .bucket(&origin.settings.bucket)
        .key(key)
        .set_request_payer(origin.payer())
        .set_expected_bucket_owner(origin.owner())
        .send();
    let reply = S3Origin::within(REPLY_DEADLINE, Request::Read, request).await?;
    Ok(ObjectInfo {
        size: size_of(reply.content_length()),
        etag: names::tag(reply.e_tag())?,
        mtime: time_of(reply.last_modified()),
        version_id: names::version_id(reply.version_id())?,
        writer: names::writer(reply.metadata().and_then(|m| m.get(WRITER_METADATA))),
    })
}

/// `kind` says what it means that the object is not there.
pub(super) async fn get(
    origin: &S3Origin,
    kind: Request,
    key: &str,
    version: &Version,
    range: Range<u64>,
) -> Result<Body, OriginError> {
    let etag = &version.etag;
    let expected = range.end - range.start;
    let request = origin
        .clients
        .prompt
        .get_object()
        .bucket(&origin.settings.bucket)
        .key(key)
        .set_if_match(etag.as_match())
        .range(format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))
        .set_request_payer(origin.payer())
        .set_expected_bucket_owner(origin.owner())
        .send();
    let reply = S3Origin::within(REPLY_DEADLINE, kind, request).await?;
    // A server that ignores If-Match must not slip in another version.
    let got = reply.e_tag().and_then(ETag::new);
    if got.as_ref() != Some(etag) {
        return Err(OriginError::Changed);
    }
    content_range::check(reply.content_range(), &range, version.size)?;
    let announced = size_of(reply.content_length());
    if announced != expected {
        return Err(OriginError::BadBody(format!("{announced} bytes announced, {expected} asked")));
    }
    let pieces = pieces::checked(reply.body, expected, STALL_DEADLINE);
    Ok(Body { etag: etag.clone(), pieces, borrowed: false })
}

pub(super) async fn list(
    origin: &S3Origin,
    request: &ListRequest,
) -> Result<ListPage, OriginError> {
    let call = origin
        .clients
        .prompt
        .list_objects_v2()
        .bucket(&origin.settings.bucket)
        .prefix(&request.prefix)
        .set_delimiter(request.delimited.then(|| "/".to_owned()))
        .set_continuation_token(request.token.clone())
        .max_keys(i32::from(request.max_keys))
        .encoding_type(EncodingType::Url)
        .set_request_payer(origin.payer())
        .set_expected_bucket_owner(origin.owner())
        .send();
    let reply = S3Origin::within(REPLY_DEADLINE, Request::List, call).await?;
    names::page(&reply, request.max_keys)
}
