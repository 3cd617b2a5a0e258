//! Multipart uploads under way.

use aws_sdk_s3::types::EncodingType;

use super::errors::Request;
use super::{REPLY_DEADLINE, S3Origin, names, time_of};
use crate::origin::{OriginError, PendingUpload};

/// Pages of uploads of one key that are followed: ten thousand of them.
const PAGES_MAX: u32 = 10;
/// Longest id of an upload, in bytes. Amazon's have some 130, MinIO's some 110.
const ID_MAX: usize = 1024;

/// Uploads of exactly `key`. A prefix would also find longer keys; they come after it, so that
/// the listing ends at the first of them.
pub(super) async fn list(origin: &S3Origin, key: &str) -> Result<Vec<PendingUpload>, OriginError> {
    let mut found = Vec::new();
    let mut marker: Option<(String, Option<String>)> = None;
    for _ in 0..PAGES_MAX {
        let (key_marker, id_marker) = marker.clone().unzip();
        let request = origin
            .clients
            .prompt
            .list_multipart_uploads()
            .bucket(&origin.settings.bucket)
            .prefix(key)
            .encoding_type(EncodingType::Url)
            .set_key_marker(key_marker)
            .set_upload_id_marker(id_marker.flatten())
            .set_request_payer(origin.payer())
            .set_expected_bucket_owner(origin.owner())
            .send();
        let reply = S3Origin::within(REPLY_DEADLINE, Request::List, request).await?;
        let encoded = reply.encoding_type() == Some(&EncodingType::Url);
        let decode = |text: &str| names::decode(text, encoded);
        for upload in reply.uploads() {
            let of_key = upload.key().and_then(decode).is_some_and(|name| name == key);
            let id = upload.upload_id().filter(|id| id.len() <= ID_MAX);
            if let (true, Some(id)) = (of_key, id) {
                found.push(PendingUpload { id: id.to_owned(), begun: time_of(upload.initiated()) });
            }
        }
        let next = reply.next_key_marker().and_then(decode);
        let is_over = reply.is_truncated() != Some(true) || next.as_deref() != Some(key);
        let next = next.map(|next| (next, reply.next_upload_id_marker().map(str::to_owned)));
        // A server that names the same page again would be asked for ever.
        if is_over || next == marker {
            return Ok(found);
        }
        marker = next;
    }
    Err(OriginError::NotS3(format!("a listing of uploads of more than {PAGES_MAX} pages")))
}
