//! The handle of a volume that was made here: all that is needed to remove it again.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use weir_fuse::model::key::DirPrefix;

/// What stands in a handle as it is.
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'/').remove(b':');

/// A volume below a prefix of its own: `s3://bucket/prefix/?endpoint=URL&region=NAME`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Handle {
    pub(super) bucket: String,
    /// Never the whole bucket.
    pub(super) prefix: DirPrefix,
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |text: &str| utf8_percent_encode(text, ESCAPED).to_string();
        write!(f, "s3://{}/{}", self.bucket, escaped(self.prefix.as_str()))?;
        let said = [("endpoint", &self.endpoint), ("region", &self.region)];
        let said = said.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)));
        for (n, (key, value)) in said.enumerate() {
            write!(f, "{}{key}={}", if n == 0 { '?' } else { '&' }, escaped(value))?;
        }
        Ok(())
    }
}

impl Handle {
    /// Reads a handle; `None` for one that was not made here.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (place, query) = match text.split_once('?') {
            Some((place, query)) => (place, query),
            None => (text, ""),
        };
        let (bucket, prefix) = place.strip_prefix("s3://")?.split_once('/')?;
        let plain = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
        let prefix = DirPrefix::parse(&plain(prefix)?).ok()?;
        let mut handle = Self { bucket: bucket.to_owned(), prefix, endpoint: None, region: None };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=')? {
                ("endpoint", value) => handle.endpoint = Some(plain(value)?),
                ("region", value) => handle.region = Some(plain(value)?),
                _ => return None,
            }
        }
        let known = !handle.bucket.is_empty() && !handle.prefix.is_root();
        known.then_some(handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_read_back_as_it_was_written() {
        let handle = Handle {
            bucket: "games".into(),
            prefix: DirPrefix::parse("pvcs/a b?c/ü").unwrap(),
            endpoint: Some("http://10.0.0.1:9000".into()),
            region: Some("eu-west-1".into()),
        };
        assert_eq!(Handle::parse(&handle.to_string()), Some(handle.clone()));
        let bare = Handle { endpoint: None, region: None, ..handle };
        assert_eq!(Handle::parse(&bare.to_string()), Some(bare));
    }

    #[test]
    fn handles_of_others_and_whole_buckets_are_none() {
        for text in
            ["", "pv-1", "s3://games", "s3://games/", "s3:///x/", "s3://g/a/../b/", "s3://g/x/?a=b"]
        {
            assert_eq!(Handle::parse(text), None, "{text}");
        }
    }
}
