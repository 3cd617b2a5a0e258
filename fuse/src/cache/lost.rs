//! `lost/`: bytes that were written and could not be stored, kept for a person.
//!
//! Each is two files: `<id>` with the bytes and `<id>.json`, a [`LostRow`], which is there first.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::dir::{CacheDir, LOST};
use super::folder::Folder;
use crate::blocking::MayBlock;

/// Number of the form of these rows.
const VERSION: u32 = 1;

/// What is known of bytes in `lost/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRow {
    /// Number of the form of this row.
    pub version: u32,
    /// Endpoint and bucket that they were for; empty when unknown.
    pub bucket: String,
    /// Key that they were for; empty when unknown.
    pub key: String,
    /// Why they are here.
    pub cause: String,
    /// How many they are.
    pub size: u64,
    /// When they came here, in milliseconds since 1970.
    pub time_ms: u64,
    /// Whose mount wrote them; empty when unknown, or where there is one tenant only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// Where they are; empty until they are kept.
    #[serde(skip)]
    pub path: PathBuf,
}

impl LostRow {
    /// A row of now.
    pub fn new(bucket: &str, key: &str, cause: impl Into<String>, size: u64) -> Self {
        Self {
            version: VERSION,
            bucket: bucket.into(),
            key: key.into(),
            cause: cause.into(),
            size,
            time_ms: milliseconds(SystemTime::now()),
            tenant: String::new(),
            path: PathBuf::new(),
        }
    }

    /// With what it counts together: what is of the tenant or, where there is none, of the bucket.
    pub(super) fn whose(&self) -> &str {
        whose(&self.tenant, &self.bucket)
    }
}

/// See [`LostRow::whose`].
pub(super) fn whose<'a>(tenant: &'a str, bucket: &'a str) -> &'a str {
    if tenant.is_empty() { bucket } else { tenant }
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Moves a file of the same disk to `lost/`, under an id that was not used before. Returns where
/// it is.
///
/// # Errors
/// What the disk reports; the file is then where it was.
pub(super) fn keep(
    may: &MayBlock,
    dir: &CacheDir,
    id: u64,
    from: &Path,
    row: &LostRow,
) -> io::Result<PathBuf> {
    let (folder, name) = (dir.folder(), CacheDir::lost_name(id));
    let about = name.with_extension("json");
    let kept = write_row(may, folder, &about, row)
        .and_then(|()| folder.rename(may, folder.name_of(from)?, &name));
    if let Err(error) = kept {
        let _ = folder.remove(may, &about);
        return Err(error);
    }
    let bytes = folder.path().join(name);
    // They are kept whether or not the folder can be made durable at once.
    let lost = folder.folder(may, Path::new(LOST));
    if let Err(error) = lost.and_then(|lost| lost.handle().sync_all()) {
        tracing::warn!(path = %bytes.display(), %error, "folder of lost bytes not synced");
    }
    Ok(bytes)
}

fn write_row(may: &MayBlock, folder: &Folder, name: &Path, row: &LostRow) -> io::Result<()> {
    let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut file = folder.file(may, name, new)?;
    file.write_all(&serde_json::to_vec(row)?)?;
    file.sync_all()
}

/// What is in `lost/`, oldest first. Bytes without a row are listed as of an unknown key.
pub(super) fn list(may: &MayBlock, dir: &CacheDir) -> Vec<LostRow> {
    let mut rows: Vec<LostRow> =
        files(may, dir).filter_map(|name| read_row(may, dir, &name).ok()).collect();
    rows.sort_by_key(|row| row.time_ms);
    rows
}

fn read_row(may: &MayBlock, dir: &CacheDir, name: &Path) -> io::Result<LostRow> {
    let folder = dir.folder();
    let metadata = folder.metadata(may, name)?;
    let text = read_text(may, folder, &name.with_extension("json"));
    let row = text.ok().and_then(|text| serde_json::from_slice(&text).ok());
    let unknown = || LostRow {
        time_ms: metadata.modified().map_or(0, milliseconds),
        ..LostRow::new("", "", "unknown", metadata.len())
    };
    let path = folder.path().join(name);
    Ok(LostRow { path, ..row.unwrap_or_else(unknown) })
}

fn read_text(may: &MayBlock, folder: &Folder, name: &Path) -> io::Result<Vec<u8>> {
    /// A row has a key and a cause.
    const MOST: u64 = 1 << 20;
    let file = folder.file(may, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = Vec::new();
    file.take(MOST).read_to_end(&mut text)?;
    Ok(text)
}

/// Bytes that `lost/` takes on the disk, by [`LostRow::whose`] they are.
pub(super) fn bytes(may: &MayBlock, dir: &CacheDir) -> HashMap<String, u64> {
    let mut bytes: HashMap<String, u64> = HashMap::new();
    for name in files(may, dir) {
        let taken = dir.folder().metadata(may, &name);
        let taken = taken.map_or(0, |metadata| metadata.blocks() * 512);
        let whose =
            read_row(may, dir, &name).map_or_else(|_| String::new(), |row| row.whose().into());
        *bytes.entry(whose).or_default() += taken;
    }
    bytes
}

/// The files with bytes.
fn files(may: &MayBlock, dir: &CacheDir) -> impl Iterator<Item = PathBuf> {
    let names = dir.folder().names(may, Path::new(LOST)).unwrap_or_default();
    let names = names.into_iter().map(|name| Path::new(LOST).join(name));
    names.filter(|name| name.extension().is_none())
}

/// What `lost/` is meant to hold at most where nothing is said: 10 GiB or a tenth of a file system
/// of `disk` bytes, whichever is less.
pub fn default_max(disk: u64) -> u64 {
    (disk / 10).min(10 << 30)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::blocking::MAY;

    #[test]
    fn bytes_are_kept_with_what_is_known_of_them() {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::own(MAY, temp.path(), 0).unwrap();
        let from = dir.root().join(CacheDir::staging_name(7));
        fs::write(&from, "precious").unwrap();
        let row = LostRow::new("http://s3\u{1f}b", "k", "AccessDenied", 8);
        let path = keep(MAY, &dir, 7, &from, &row).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        // As an older release left them.
        fs::write(dir.root().join(CacheDir::lost_name(8)), "more").unwrap();
        let rows = list(MAY, &dir);
        assert!(rows.contains(&LostRow { path, ..row }), "{rows:?}");
        assert!(rows.iter().any(|row| (row.cause.as_str(), row.size) == ("unknown", 4)));
        fs::write(&from, "of a tenant").unwrap();
        let row = LostRow { tenant: "ns".into(), ..LostRow::new("http://s3\u{1f}b", "k", "c", 11) };
        keep(MAY, &dir, 9, &from, &row).unwrap();
        assert!(["http://s3\u{1f}b", "", "ns"].iter().all(|whose| bytes(MAY, &dir)[*whose] > 0));
    }

    #[test]
    fn what_cannot_be_moved_leaves_no_row() {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::own(MAY, temp.path(), 0).unwrap();
        let row = LostRow::new("b", "k", "cause", 1);
        keep(MAY, &dir, 7, &dir.root().join(CacheDir::staging_name(7)), &row).unwrap_err();
        assert_eq!(fs::read_dir(dir.root().join(LOST)).unwrap().count(), 0);
    }

    #[test]
    fn the_row_has_the_documented_names() {
        let row = LostRow { time_ms: 5, ..LostRow::new("b", "k", "c", 1) };
        let text = serde_json::to_string(&row).unwrap();
        let expected = r#"{"version":1,"bucket":"b","key":"k","cause":"c","size":1,"time_ms":5}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<LostRow>(expected).unwrap(), row);
        let of_tenant = serde_json::to_string(&LostRow { tenant: "ns".into(), ..row }).unwrap();
        assert!(of_tenant.ends_with(r#","tenant":"ns"}"#), "{of_tenant}");
    }

    #[test]
    fn the_default_bound_is_a_tenth_and_10_gib_at_most() {
        assert_eq!((default_max(1 << 30), default_max(1 << 50)), ((1 << 30) / 10, 10 << 30));
    }
}
