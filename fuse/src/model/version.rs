//! What identifies the bytes of an object.

use std::fmt;
use std::time::SystemTime;

/// An entity tag exactly as the origin sends it, quotes included.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ETag(Box<str>);

impl ETag {
    /// Takes a tag; one without quotes (some servers leave them out in listings) gets them.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        match text {
            "" | "\"\"" => None,
            _ if text.starts_with('"') || text.starts_with("W/") => Some(Self(text.into())),
            _ => Some(Self(format!("\"{text}\"").into())),
        }
    }

    /// Whether equal tags mean equal bytes (RFC 9110, section 8.8.1).
    pub fn is_strong(&self) -> bool {
        !self.0.starts_with("W/")
    }

    /// The tag with its quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Stands for every tag, in requests alone.
    pub fn any() -> Self {
        Self("*".into())
    }

    /// Whether it stands for every tag.
    pub fn is_any(&self) -> bool {
        &*self.0 == "*"
    }

    /// Without its quotes, as some servers compare it; in requests alone. One that would mean something
    /// else without them, as `"*"`, keeps them.
    #[must_use]
    pub fn bare(&self) -> Self {
        let bare = Self(self.0.trim_matches('"').into());
        if bare.quoted() == *self { bare } else { self.clone() }
    }

    /// Whether it lacks its quotes.
    pub fn is_bare(&self) -> bool {
        !self.is_any() && self.is_strong() && !self.0.starts_with('"')
    }

    /// With its quotes again.
    #[must_use]
    pub fn quoted(&self) -> Self {
        if self.is_bare() { Self(format!("\"{}\"", self.0).into()) } else { self.clone() }
    }

    /// Whether `present`, as an origin sent it, is what this tag stands for.
    pub fn is_same(&self, present: Option<&Self>) -> bool {
        present.is_some_and(|present| self.is_any() || self.quoted() == *present)
    }

    /// The MD5 that it has the form of. Whether it is one of the bytes depends on who made it (Amazon S3
    /// API reference, Object: objects encrypted with SSE-C or SSE-KMS, and those of several parts, have
    /// other tags).
    pub fn md5(&self) -> Option<[u8; 16]> {
        let hex = self.0.strip_prefix('"')?.strip_suffix('"')?;
        let is_hex = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        let digest = is_hex.then(|| u128::from_str_radix(hex, 16).ok()).flatten()?;
        Some(digest.to_be_bytes())
    }

    /// The value of If-Match. `None`: no such header is to be sent, since a weak tag never
    /// matches there (RFC 9110, section 13.1.1).
    pub fn as_match(&self) -> Option<String> {
        (self.is_strong() && !self.is_any()).then(|| self.0.to_string())
    }
}

impl fmt::Debug for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One immutable state of an object: the same version means the same bytes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Version {
    /// The entity tag.
    pub etag: ETag,
    /// Size in bytes.
    pub size: u64,
}

/// Where a version lives: the bucket, as (endpoint, bucket), and the key.
///
/// The whole identity is compared, never a hash of it, so that two objects cannot be confused.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct VersionKey {
    /// Endpoint and bucket, as [`BucketId`] gives them.
    pub bucket: BucketId,
    /// The object's key.
    pub key: Box<str>,
    /// Which of its states.
    pub version: Version,
}

impl VersionKey {
    /// A byte string that is equal exactly when the identity is equal: every part carries its
    /// length, so that no two identities share one.
    pub fn to_bytes(&self) -> Vec<u8> {
        let parts = [self.bucket.as_str(), &self.key, self.version.etag.as_str()];
        let mut out = Vec::with_capacity(parts.iter().map(|p| p.len() + 4).sum::<usize>() + 8);
        for part in parts {
            let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(&self.version.size.to_be_bytes());
        out
    }
}

/// Names a bucket on an endpoint, for cache identity.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BucketId(std::sync::Arc<str>);

impl BucketId {
    /// `endpoint` is the endpoint's URL, or a region's name where the default endpoint is used.
    pub fn new(endpoint: &str, bucket: &str) -> Self {
        let endpoint = endpoint.trim_end_matches('/');
        Self(format!("{endpoint}\u{1f}{bucket}").into())
    }

    /// The identity as one text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bucket's own name.
    pub fn name(&self) -> &str {
        self.0.rsplit('\u{1f}').next().unwrap_or_default()
    }

    /// The endpoint's part of it.
    pub fn endpoint(&self) -> &str {
        self.0.split('\u{1f}').next().unwrap_or_default()
    }
}

/// What the origin says about an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectInfo {
    /// Size in bytes.
    pub size: u64,
    /// The tag; `None` where a listing leaves it out.
    pub etag: Option<ETag>,
    /// Last modification.
    pub mtime: SystemTime,
    /// The version id, where the bucket is versioned and HEAD or PUT gave one.
    pub version_id: Option<Box<str>>,
    /// The nonce of the Weir writer that made this object (`x-amz-meta-weir-writer`).
    pub writer: Option<Box<str>>,
}

impl ObjectInfo {
    /// The version, if the tag is known.
    pub fn version(&self) -> Option<Version> {
        let etag = self.etag.clone()?;
        Some(Version { etag, size: self.size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keep_their_quotes_and_their_strength() {
        assert_eq!(ETag::new("abc").unwrap().as_str(), "\"abc\"");
        assert_eq!(ETag::new("\"abc\"").unwrap().as_str(), "\"abc\"");
        assert!(!ETag::new("W/\"abc\"").unwrap().is_strong());
        assert_eq!(ETag::new(""), None);
        let md5 = |text: &str| ETag::new(text).unwrap().md5();
        assert_eq!(md5("000000000000000000000000000001fF"), Some(511_u128.to_be_bytes()));
        for other in ["+00000000000000000000000000001ff", "1ff", "W/\"1ff\""] {
            assert_eq!(md5(other), None, "{other}");
        }
        assert_eq!(md5("000000000000000000000000000001ff-2"), None);
    }

    #[test]
    fn identities_that_differ_in_any_part_have_different_bytes() {
        let key = |key: &str, etag: &str, size| {
            VersionKey {
                bucket: BucketId::new("http://s3/", "b"),
                key: key.into(),
                version: Version { etag: ETag::new(etag).unwrap(), size },
            }
            .to_bytes()
        };
        assert_ne!(key("a", "b", 1), key("a", "b", 2));
        assert_ne!(key("ab", "c", 1), key("a", "bc", 1));
        assert_eq!(key("a", "\"b\"", 1), key("a", "b", 1));
    }
}
