//! Names, paths and maps.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use crate::Error;

/// Longest name or id that is taken, in bytes. The specification asks for 128 of plugins'
/// own; handles of static volumes are whatever their author wrote.
const ID_MAX: usize = 512;
/// Longest path, in bytes (`PATH_MAX`).
const PATH_MAX: usize = 4096;
/// Largest map, in bytes. The specification asks for 4 KiB of plugins; tokens are longer.
const MAP_MAX: usize = 64 << 10;

fn id(text: String, what: &str) -> Result<String, Error> {
    if text.is_empty() {
        return Err(Error::Invalid(format!("{what} is missing")));
    }
    if text.len() > ID_MAX {
        return Err(Error::Invalid(format!("{what} is longer than {ID_MAX} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::Invalid(format!("{what} holds control characters: {text:?}")));
    }
    Ok(text)
}

/// Identifies a volume: opaque, never part of a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VolumeId(String);

impl VolumeId {
    /// Checks an id.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is empty, too long, or holds control characters.
    pub fn parse(text: String) -> Result<Self, Error> {
        id(text, "volume_id").map(Self)
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a volume to make: the same name is the same volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeName(String);

impl VolumeName {
    /// Checks a name.
    ///
    /// # Errors
    /// As [`VolumeId::parse`].
    pub fn parse(text: String) -> Result<Self, Error> {
        id(text, "name").map(Self)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An absolute path without `.` and `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TargetPath(PathBuf);

impl TargetPath {
    /// Checks a path; `what` names the field.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is missing, relative, too long, or leads through `..`.
    pub fn parse(text: &str, what: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Invalid(format!("{what} is missing")));
        }
        if text.len() > PATH_MAX || text.contains('\0') {
            return Err(Error::Invalid(format!("{what} is no path")));
        }
        let path = Path::new(text);
        let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
        let dots = text.split('/').any(|part| part == "." || part == "..");
        if !path.is_absolute() || dots || !path.components().all(plain) {
            let text = format!("{what} {text:?} must be absolute, without . and ..");
            return Err(Error::Invalid(text));
        }
        Ok(Self(path.components().collect()))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for TargetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

fn size(map: &BTreeMap<String, String>) -> usize {
    map.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn bounded(map: BTreeMap<String, String>, what: &str) -> Result<BTreeMap<String, String>, Error> {
    match size(&map) {
        0..=MAP_MAX => Ok(map),
        _ => Err(Error::Invalid(format!("{what} is larger than {MAP_MAX} bytes"))),
    }
}

/// Attributes of a volume, or parameters of its class. It may carry service-account tokens, so
/// its values are not printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Context(BTreeMap<String, String>);

impl Context {
    /// Checks a map; `what` names the field.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is too large.
    pub fn parse(map: BTreeMap<String, String>, what: &str) -> Result<Self, Error> {
        bounded(map, what).map(Self)
    }

    /// The value under a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All of them.
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Secrets of a request; only their names are printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secrets(BTreeMap<String, String>);

impl Secrets {
    /// Checks a map.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is too large.
    pub fn parse(map: BTreeMap<String, String>) -> Result<Self, Error> {
        bounded(map, "secrets").map(Self)
    }

    /// The secret under a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_their_place_are_refused() {
        for bad in ["", "a", "../a", "/a/../b", "/a/./b", "/a/..", "/a\0b"] {
            assert!(TargetPath::parse(bad, "target_path").is_err(), "{bad:?}");
        }
        let path = TargetPath::parse("/var//lib/x/", "target_path").unwrap();
        assert_eq!(path.as_path(), Path::new("/var/lib/x"));
    }

    #[test]
    fn ids_are_bounded_and_printable() {
        for bad in [String::new(), "a\nb".into(), "x".repeat(ID_MAX + 1)] {
            assert!(VolumeId::parse(bad).is_err());
        }
        assert_eq!(VolumeId::parse("../../etc".into()).unwrap().as_str(), "../../etc");
    }

    #[test]
    fn values_of_maps_are_not_printed() {
        let map = BTreeMap::from([("token".to_owned(), "canary".to_owned())]);
        let printed = format!(
            "{:?} {:?}",
            Secrets::parse(map.clone()).unwrap(),
            Context::parse(map, "volume_context").unwrap()
        );
        assert!(printed.contains("token") && !printed.contains("canary"), "{printed}");
    }
}
