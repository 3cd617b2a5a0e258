//! Keys in listings: percent-decoded, so that every key survives XML.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;
use percent_encoding::percent_decode_str;

use super::{size_of, time_of};
use crate::model::version::{ETag, ObjectInfo};
use crate::origin::{ListPage, OriginError};

/// A real version id; S3 says "null" where versioning is off.
pub(super) fn version_id(id: Option<&str>) -> Option<Box<str>> {
    id.filter(|id| !id.is_empty() && *id != "null").map(Into::into)
}

/// Percent-encoded, as the header x-amz-copy-source wants it; slashes stay.
pub(super) fn copy_source(bucket: &str, key: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const KEPT: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    format!("{bucket}/{}", utf8_percent_encode(key, KEPT))
}

/// Decodes a name of a listing; `None` when it is not UTF-8.
pub(super) fn decode(text: &str, encoded: bool) -> Option<String> {
    if !encoded {
        return Some(text.to_owned());
    }
    // S3 encodes a space as "+" in listings, as forms do.
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(|s| s.into_owned())
}

/// Names in a page of S3, at most; some servers give as many whatever is asked for.
const PAGE_MAX: usize = 1000;

/// # Errors
/// [`OriginError::NotS3`] for more names than `max_keys` (or, where that is less, than S3 ever
/// gives), and for a page that does not say how to go on.
pub(super) fn page(reply: &ListObjectsV2Output, max_keys: u16) -> Result<ListPage, OriginError> {
    let names = reply.contents().len() + reply.common_prefixes().len();
    let most = PAGE_MAX.max(max_keys.into());
    if names > most {
        return Err(OriginError::NotS3(format!("{names} names in a page of at most {most}")));
    }
    let encoded = reply.encoding_type() == Some(&EncodingType::Url);
    let mut page = ListPage::default();
    for object in reply.contents() {
        let Some(key) = object.key().and_then(|key| decode(key, encoded)) else {
            page.undecodable += 1;
            continue;
        };
        let info = ObjectInfo {
            size: size_of(object.size()),
            etag: object.e_tag().and_then(ETag::new),
            mtime: time_of(object.last_modified()),
            version_id: None,
            writer: None,
        };
        page.objects.push((key, info));
    }
    for group in reply.common_prefixes() {
        match group.prefix().and_then(|prefix| decode(prefix, encoded)) {
            Some(prefix) => page.prefixes.push(prefix),
            None => page.undecodable += 1,
        }
    }
    if reply.is_truncated() == Some(true) {
        page.next = reply.next_continuation_token().map(str::to_owned);
        if page.next.is_none() {
            return Err(OriginError::NotS3("a truncated listing without a token".into()));
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_listing_and_the_copy_header() {
        assert_eq!(decode("a+b%2Bc%0A", true).as_deref(), Some("a b+c\n"));
        assert_eq!(decode("a+b%41", false).as_deref(), Some("a+b%41"));
        assert_eq!(decode("%FF", true), None);
        assert_eq!(copy_source("b", "x y/ä+"), "b/x%20y/%C3%A4%2B");
        assert_eq!(version_id(Some("null")), None);
    }
}
