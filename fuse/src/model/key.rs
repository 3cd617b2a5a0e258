//! Which S3 keys can be shown as files, and under which names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest file name that Linux shows, in bytes (`NAME_MAX`).
pub const NAME_MAX_BYTES: usize = 255;

/// The longest key that S3 takes, in bytes of UTF-8 (Amazon S3 user guide, "Naming objects").
pub const KEY_MAX_BYTES: usize = 1024;

/// Name of the object with which an endpoint is tried out; never shown.
pub const PROBE_NAME: &str = ".weir-probe";

/// Name of the copy of [`PROBE_NAME`]; never shown.
pub const PROBE_COPY_NAME: &str = ".weir-probe-copy";

/// A key prefix that names a directory: empty (the root of the bucket) or ending in `/`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DirPrefix(Box<str>);

impl DirPrefix {
    /// The root of a bucket.
    pub fn root() -> Self {
        Self("".into())
    }

    /// Takes the text of `s3://BUCKET/PREFIX`. A missing trailing slash is added; every part
    /// must be a name that a directory can have.
    ///
    /// # Errors
    /// Says which part of the prefix no directory can be named.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let trimmed = text.strip_suffix('/').unwrap_or(text);
        if trimmed.is_empty() {
            return Ok(Self::root());
        }
        for part in trimmed.split('/') {
            check_name(part)?;
        }
        Ok(Self(format!("{trimmed}/").into()))
    }

    /// The prefix as S3 wants it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the root of the bucket.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The key of a file called `name` in this directory.
    pub fn key_of(&self, name: &str) -> String {
        format!("{}{}", self.0, name)
    }

    /// The prefix of a directory called `name` in this directory.
    pub fn child(&self, name: &str) -> Self {
        Self(format!("{}{}/", self.0, name).into())
    }

    /// Sorts a key that a listing of this directory (delimiter `/`) returned.
    pub fn classify<'k>(&self, key: &'k str) -> KeyRole<'k> {
        let Some(rest) = key.strip_prefix(self.as_str()) else {
            return KeyRole::Hidden(BadName::OutsidePrefix);
        };
        if rest.is_empty() {
            return KeyRole::OwnMarker;
        }
        let (name, is_dir) = match rest.strip_suffix('/') {
            Some(name) => (name, true),
            None => (rest, false),
        };
        match check_name(name) {
            Err(reason) => KeyRole::Hidden(reason),
            Ok(()) if is_dir => KeyRole::Dir(name),
            Ok(()) => KeyRole::File(name),
        }
    }
}

impl Default for DirPrefix {
    fn default() -> Self {
        Self::root()
    }
}

impl TryFrom<String> for DirPrefix {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        Self::parse(&text)
    }
}

impl From<DirPrefix> for String {
    fn from(prefix: DirPrefix) -> Self {
        prefix.0.into()
    }
}

impl fmt::Display for DirPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a listed key is to the directory that was listed.
#[derive(Debug, PartialEq, Eq)]
pub enum KeyRole<'k> {
    /// The marker object of the listed directory itself.
    OwnMarker,
    /// A file with this name.
    File(&'k str),
    /// A directory with this name.
    Dir(&'k str),
    /// A key that no file system can show.
    Hidden(BadName),
}

/// Why a key, or a part of one, cannot be a file name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadName {
    /// Two slashes in a row, or a slash at the start.
    #[error("an empty path component")]
    Empty,
    /// `.` or `..`.
    #[error("a path component \".\" or \"..\"")]
    Dots,
    /// A NUL byte.
    #[error("a NUL byte")]
    Nul,
    /// More than [`NAME_MAX_BYTES`].
    #[error("a path component over 255 bytes")]
    TooLong,
    /// A slash where a single name was asked for.
    #[error("a slash inside a name")]
    Slash,
    /// The key does not start with the listed prefix: a fault of the server.
    #[error("a key outside the listed prefix")]
    OutsidePrefix,
    /// Bytes that are not UTF-8.
    #[error("bytes that are not UTF-8")]
    NotUtf8,
    /// Both `a` and `a/b` exist: the directory is shown.
    #[error("a directory of the same name")]
    ShadowedByDirectory,
    /// A key that ends in a slash but holds bytes: shown as a directory, its content is not.
    #[error("content under a key that ends in a slash")]
    MarkerWithContent,
    /// [`PROBE_NAME`] or [`PROBE_COPY_NAME`].
    #[error("a name that Weir keeps for itself")]
    Reserved,
    /// More than [`KEY_MAX_BYTES`].
    #[error("a key over 1024 bytes")]
    KeyTooLong,
    /// A size beyond [`super::blocks::OBJECT_MAX`], or below none: a fault of the server.
    #[error("a size that no object has")]
    Size,
}

/// Checks one path component.
///
/// # Errors
/// The reason why no file can have this name.
pub fn check_name(name: &str) -> Result<(), BadName> {
    match name {
        "" => Err(BadName::Empty),
        "." | ".." => Err(BadName::Dots),
        _ if name.len() > NAME_MAX_BYTES => Err(BadName::TooLong),
        _ if name.contains('\0') => Err(BadName::Nul),
        _ if name.contains('/') => Err(BadName::Slash),
        PROBE_NAME | PROBE_COPY_NAME => Err(BadName::Reserved),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_into_files_directories_and_hidden_ones() {
        let dir = DirPrefix::parse("game/assets").unwrap();
        assert_eq!(dir.as_str(), "game/assets/");
        assert_eq!(dir.classify("game/assets/"), KeyRole::OwnMarker);
        assert_eq!(dir.classify("game/assets/a.png"), KeyRole::File("a.png"));
        assert_eq!(dir.classify("game/assets/maps/"), KeyRole::Dir("maps"));
        for (key, reason) in [
            ("game/assets//", BadName::Empty),
            ("game/assets/../", BadName::Dots),
            ("game/assets/.", BadName::Dots),
            ("game/assets/a\0b", BadName::Nul),
            ("game/assets/.weir-probe", BadName::Reserved),
            ("other/x", BadName::OutsidePrefix),
        ] {
            assert_eq!(dir.classify(key), KeyRole::Hidden(reason), "{key:?}");
        }
        let long = format!("game/assets/{}", "x".repeat(256));
        assert_eq!(dir.classify(&long), KeyRole::Hidden(BadName::TooLong));
    }

    #[test]
    fn a_prefix_that_would_escape_is_refused() {
        assert_eq!(DirPrefix::parse("a/../b"), Err(BadName::Dots));
        assert_eq!(DirPrefix::parse("a//b"), Err(BadName::Empty));
        assert_eq!(DirPrefix::parse("/"), Ok(DirPrefix::root()));
        assert_eq!(DirPrefix::parse("a").unwrap().child("b").as_str(), "a/b/");
    }
}
