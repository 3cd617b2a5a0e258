//! Keys in listings: percent-decoded, so that every key survives XML.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;
use percent_encoding::percent_decode_str;

use super::{size_of, time_of};
use crate::model::version::{ETag, ObjectInfo};
use crate::origin::{ListPage, OriginError};

/// Longest tag, in bytes: those of S3 have 34 to 40, of others less than 100. Each is kept for as
/// long as its name.
const TAG_MAX: usize = 256;
/// Longest version id, in bytes (S3's user guide, "How S3 Versioning works").
const VERSION_ID_MAX: usize = 1024;
/// Longest mark of a writer that is kept, in bytes; ours are shorter.
const WRITER_MAX: usize = 64;

/// A tag as a server gives it.
///
/// # Errors
/// [`OriginError::NotS3`] for one that no S3 server gives, and that could not be sent back.
pub(super) fn tag(text: Option<&str>) -> Result<Option<ETag>, OriginError> {
    let Some(text) = text else { return Ok(None) };
    if text.len() > TAG_MAX || text.contains(char::is_control) {
        return Err(OriginError::NotS3(format!("an ETag of {} bytes", text.len())));
    }
    Ok(ETag::new(text))
}

/// A real version id; S3 says "null" where versioning is off.
///
/// # Errors
/// [`OriginError::NotS3`] for one that is longer than S3's.
pub(super) fn version_id(id: Option<&str>) -> Result<Option<Box<str>>, OriginError> {
    match id.filter(|id| !id.is_empty() && *id != "null") {
        Some(id) if id.len() > VERSION_ID_MAX => {
            Err(OriginError::NotS3(format!("a version id of {} bytes", id.len())))
        }
        id => Ok(id.map(Into::into)),
    }
}

/// A mark of who wrote an object; longer ones are none of ours.
pub(super) fn writer(mark: Option<&String>) -> Option<Box<str>> {
    mark.filter(|mark| mark.len() <= WRITER_MAX).map(|mark| mark.as_str().into())
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
/// [`OriginError::NotS3`] for tags as in [`tag`], for more names than `max_keys` (or, where that is
/// less, than S3 ever gives), and for a page that does not say how to go on.
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
            etag: tag(object.e_tag())?,
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
        assert_eq!(version_id(Some("null")).unwrap(), None);
    }

    #[test]
    fn what_is_kept_of_an_object_is_as_short_as_s3_has_it() {
        let long = |len: usize| "x".repeat(len);
        assert_eq!(tag(Some("\"abc\"")).unwrap(), ETag::new("abc"));
        assert_eq!(tag(Some(&long(TAG_MAX))).unwrap(), ETag::new(&long(TAG_MAX)));
        for bad in [long(TAG_MAX + 1), "a\nb".into(), "\"a\u{7f}\"".into(), "\u{85}".into()] {
            assert!(matches!(tag(Some(&bad)), Err(OriginError::NotS3(_))), "{bad:?}");
        }
        assert_eq!(version_id(Some(&long(VERSION_ID_MAX))).unwrap().unwrap().len(), VERSION_ID_MAX);
        assert!(matches!(version_id(Some(&long(VERSION_ID_MAX + 1))), Err(OriginError::NotS3(_))));
        assert_eq!(writer(Some(&long(WRITER_MAX))).unwrap().len(), WRITER_MAX);
        assert_eq!(writer(Some(&long(WRITER_MAX + 1))), None);
    }

    #[test]
    fn a_page_with_a_tag_of_any_length_is_none_of_s3() {
        use aws_sdk_s3::types::Object;
        let object = Object::builder().key("k").e_tag("x".repeat(15 << 10)).build();
        let reply = ListObjectsV2Output::builder().contents(object).build();
        assert!(matches!(page(&reply, 1000), Err(OriginError::NotS3(_))));
    }
}
