//! `lost/` of a cache directory: files whose bytes could not be stored, each beside a record of
//! what it is. It is read without owning the cache, so that a mount may run meanwhile: files appear
//! there under new names only, and only people take them away.

use std::fs;
use std::io;
use std::iter::Sum;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

/// Version of the records that this release understands.
const VERSION: u32 = 1;
/// What stands between endpoint and bucket in a record.
const BETWEEN: char = '\u{1f}';

/// A file that could not be stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LostFile {
    /// Names it within its directory.
    pub id: String,
    /// The cache directory that holds it.
    pub cache_dir: PathBuf,
    /// The endpoint's URL, or `aws:` and a region; empty when not known.
    pub endpoint: String,
    /// The bucket; empty when not known.
    pub bucket: String,
    /// The key; empty when not known.
    pub key: String,
    /// Why it could not be stored.
    pub cause: String,
    /// Its size in bytes.
    pub size: u64,
    /// When that was, in milliseconds since 1970.
    pub time_ms: u64,
}

/// A record as it is on the disk.
#[derive(Deserialize)]
struct Record {
    version: u32,
    bucket: String,
    key: String,
    cause: String,
    time_ms: u64,
}

/// How many files are in `lost/`, and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct LostTotal {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Sum for LostTotal {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            files: sum.files + one.files,
            bytes: sum.bytes + one.bytes,
        })
    }
}

impl LostFile {
    /// Where the bytes are.
    pub fn path(&self) -> PathBuf {
        folder(&self.cache_dir).join(&self.id)
    }

    fn record_path(&self) -> PathBuf {
        folder(&self.cache_dir).join(format!("{}.json", self.id))
    }

    /// Removes the bytes, then the record.
    ///
    /// # Errors
    /// What unlink reports.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_file(self.path())?;
        match fs::remove_file(self.record_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn folder(cache_dir: &Path) -> PathBuf {
    cache_dir.join("lost")
}

/// Bytes of each file, by id.
fn files(cache_dir: &Path) -> io::Result<Vec<(String, fs::Metadata)>> {
    let entries = match fs::read_dir(folder(cache_dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(id) = entry.file_name().into_string() else { continue };
        if id.ends_with(".json") {
            continue;
        }
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => files.push((id, metadata)),
            // Not ours, or taken away meanwhile.
            _ => {}
        }
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(files)
}

/// All of a cache directory, by id. Bytes without a record that can be read have an unknown key.
///
/// # Errors
/// What reading the directory reports, but for one that is not there.
pub fn list(cache_dir: &Path) -> io::Result<Vec<LostFile>> {
    let describe = |(id, metadata): (String, fs::Metadata)| {
        let changed = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let changed = changed.map_or(0, |since| since.as_millis() as u64);
        let mut file = LostFile {
            id,
            cache_dir: cache_dir.to_owned(),
            endpoint: String::new(),
            bucket: String::new(),
            key: String::new(),
            cause: String::new(),
            size: metadata.len(),
            time_ms: changed,
        };
        let text = fs::read(file.record_path()).unwrap_or_default();
        let record = serde_json::from_slice::<Record>(&text).ok();
        if let Some(record) = record.filter(|record| record.version == VERSION) {
            let (endpoint, bucket) = record.bucket.split_once(BETWEEN).unwrap_or_default();
            (file.endpoint, file.bucket) = (endpoint.to_owned(), bucket.to_owned());
            (file.key, file.cause, file.time_ms) = (record.key, record.cause, record.time_ms);
        }
        file
    };
    Ok(files(cache_dir)?.into_iter().map(describe).collect())
}

/// What a cache directory holds; nothing where it cannot be read.
pub fn total(cache_dir: &Path) -> LostTotal {
    let files = files(cache_dir).unwrap_or_default();
    LostTotal { files: files.len() as u64, bytes: files.iter().map(|(_, m)| m.len()).sum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bucket: &str, version: u32) -> String {
        let of = serde_json::json!({
            "version": version, "bucket": bucket, "key": "dir/k", "cause": "no route",
            "size": 3, "time_ms": 1_700_000_000_000_u64,
        });
        of.to_string()
    }

    #[test]
    fn bytes_count_with_a_record_or_without_and_records_alone_do_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(list(dir.path()).unwrap(), []);
        let lost = dir.path().join("lost");
        fs::create_dir(&lost).unwrap();
        for (name, bytes) in [
            ("a", "abc".to_owned()),
            ("a.json", record("http://s3:9000\u{1f}bucket", 1)),
            ("b", "12345".to_owned()),
            ("c.json", record("x\u{1f}y", 1)),
            ("d", String::new()),
            ("d.json", record("x\u{1f}y", 2)),
            ("e", String::new()),
            ("e.json", "{".to_owned()),
        ] {
            fs::write(lost.join(name), bytes).unwrap();
        }
        fs::create_dir(lost.join("folder")).unwrap();
        let all = list(dir.path()).unwrap();
        assert_eq!(all.iter().map(|f| f.id.as_str()).collect::<Vec<_>>(), ["a", "b", "d", "e"]);
        let first = &all[0];
        assert_eq!((first.endpoint.as_str(), first.bucket.as_str()), ("http://s3:9000", "bucket"));
        assert_eq!(
            (first.key.as_str(), first.cause.as_str(), first.size),
            ("dir/k", "no route", 3)
        );
        assert_eq!(first.time_ms, 1_700_000_000_000);
        assert!(all[1..].iter().all(|file| file.key.is_empty() && file.time_ms > first.time_ms));
        assert_eq!(total(dir.path()), LostTotal { files: 4, bytes: 8 });
        first.remove().unwrap();
        all[1].remove().unwrap();
        assert!(!lost.join("a").exists() && !lost.join("a.json").exists());
        assert_eq!(total(dir.path()).files, 2);
    }
}
