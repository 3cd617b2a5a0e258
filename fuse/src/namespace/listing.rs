//! Listings of a directory: from the origin, and to and from the index.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, SystemTime};

use super::hidden::HiddenKeys;
use crate::cache::records::{FileEntry, ListingEntry, ListingRow};
use crate::model::blocks::OBJECT_MAX;
use crate::model::key::{BadName, DirPrefix, KeyRole, check_name};
use crate::model::version::{ETag, ObjectInfo};
use crate::origin::ListPage;

/// The names of one directory.
#[derive(Default, Debug)]
pub struct Listing {
    /// `None` marks a directory.
    pub entries: BTreeMap<Box<str>, Option<ObjectInfo>>,
    /// How many requests it took.
    pub pages: u32,
    /// Whether the directory has a marker object.
    pub marker: bool,
    /// The last of its keys so far, without the directory's prefix.
    pub(super) last: Option<Box<str>>,
}

impl Listing {
    /// Adds a page of the listing of `prefix`.
    pub fn add(&mut self, prefix: &DirPrefix, page: ListPage, hidden: &HiddenKeys) {
        self.pages += 1;
        hidden.note_undecodable(page.undecodable);
        let keys = page.objects.last().map(|(key, _)| key).into_iter().chain(page.prefixes.last());
        let last = keys.max().and_then(|key| key.strip_prefix(prefix.as_str()));
        self.last = last.map(Box::from).or(self.last.take());
        for group in page.prefixes {
            match prefix.classify(&group) {
                KeyRole::Dir(name) => self.add_dir(name, hidden, prefix),
                KeyRole::Hidden(reason) => hidden.note(&group, reason),
                KeyRole::File(_) | KeyRole::OwnMarker => {
                    hidden.note(&group, BadName::OutsidePrefix)
                }
            }
        }
        for (key, info) in page.objects {
            match prefix.classify(&key) {
                KeyRole::OwnMarker => {
                    self.marker = true;
                    if info.size > 0 {
                        hidden.note(&key, BadName::MarkerWithContent);
                    }
                }
                KeyRole::File(_) if info.size > OBJECT_MAX => hidden.note(&key, BadName::Size),
                KeyRole::File(name) => self.add_file(name, info, hidden, &key),
                // A delimited listing groups these; an undelimited one does not.
                KeyRole::Dir(name) => self.add_dir(name, hidden, prefix),
                KeyRole::Hidden(reason) => hidden.note(&key, reason),
            }
        }
    }

    fn add_dir(&mut self, name: &str, hidden: &HiddenKeys, prefix: &DirPrefix) {
        if let Some(Some(_)) = self.entries.insert(name.into(), None) {
            hidden.note(&prefix.key_of(name), BadName::ShadowedByDirectory);
        }
    }

    fn add_file(&mut self, name: &str, info: ObjectInfo, hidden: &HiddenKeys, key: &str) {
        match self.entries.get(name) {
            Some(None) => hidden.note(key, BadName::ShadowedByDirectory),
            _ => {
                self.entries.insert(name.into(), Some(info));
            }
        }
    }

    /// A number that differs, but for rare accidents, from that of any other listing.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.marker.hash(&mut hasher);
        for (name, info) in &self.entries {
            name.hash(&mut hasher);
            info.as_ref().map(|i| (i.size, &i.etag, i.mtime)).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The row that keeps this listing across restarts.
    pub fn to_row(&self, fetched: SystemTime) -> ListingRow {
        let entries = self.entries.iter().map(|(name, info)| ListingEntry {
            name: name.to_string(),
            file: info.as_ref().map(|info| FileEntry {
                size: info.size,
                etag: info.etag.as_ref().map(|e| e.as_str().to_owned()),
                mtime_ms: to_ms(info.mtime),
            }),
        });
        ListingRow {
            fetched_ms: to_ms(fetched),
            pages: self.pages,
            marker: self.marker,
            entries: entries.collect(),
        }
    }

    /// The listing in a row, with its age.
    pub fn from_row(row: ListingRow) -> (Self, Duration) {
        let age = age(&row);
        let entry = |entry: ListingEntry| {
            let info = entry.file.map(|file| ObjectInfo {
                size: file.size,
                etag: file.etag.as_deref().and_then(ETag::new),
                mtime: from_ms(file.mtime_ms),
                version_id: None,
                writer: None,
            });
            (entry.name.into(), info)
        };
        // The disk may have been written by somebody else.
        let can_be = |entry: &ListingEntry| {
            let size = entry.file.as_ref().map_or(0, |file| file.size);
            check_name(&entry.name).is_ok() && size <= OBJECT_MAX
        };
        let entries = row.entries.into_iter().filter(can_be).map(entry).collect();
        (Self { entries, pages: row.pages, marker: row.marker, last: None }, age)
    }
}

/// How long ago a listing in a row was begun.
pub(super) fn age(row: &ListingRow) -> Duration {
    SystemTime::now().duration_since(from_ms(row.fetched_ms)).unwrap_or_default()
}

fn to_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn from_ms(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

#[cfg(test)]
mod fuzz;
