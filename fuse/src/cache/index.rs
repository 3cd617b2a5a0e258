//! The index: which versions are held, which of their blocks, and what listings said.

use std::io;
use std::path::Path;

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableError,
};

use super::dir::CacheDir;
use super::error::CacheError;
use super::records::{self, ListingRow, ObjectRow, SEGMENT, UploadRow};
use crate::model::blocks::{self, BlockMap};

/// Schema number of this code. A directory with a higher one is left alone.
pub const SCHEMA: u32 = 1;
/// Memory for redb's own cache, in bytes.
const REDB_CACHE: usize = 16 * 1024 * 1024;
/// Ids set aside at every start, so that ids of a crashed run are not given again.
pub const ID_STRIDE: u64 = 1 << 32;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const BOOT: TableDefinition<'_, &str, &str> = TableDefinition::new("boot");
const VERSIONS: TableDefinition<'_, &[u8], u64> = TableDefinition::new("versions");
const OBJECTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("objects");
const SEGMENTS: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("segments");
const LISTINGS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("listings");
const UPLOADS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("uploads");
/// Which identities have brought bytes of a bucket here.
const IDENTITIES: TableDefinition<'_, (&str, &str), ()> = TableDefinition::new("identities");

/// The index of one cache directory.
pub struct Index {
    db: Database,
    /// Counts unclean boots: a version checked in an earlier epoch is to be checked again.
    pub epoch: u32,
    /// The first id of this run.
    pub first_id: u64,
    /// Whether the run before closed it in order, so that it knows of all that happened.
    pub closed_in_order: bool,
}

/// Changes that are to become durable together.
#[derive(Default)]
pub struct Batch {
    /// Rows to write, with the bytes of their identity.
    pub objects: Vec<(u64, Vec<u8>, ObjectRow)>,
    /// Segments to write.
    pub segments: Vec<(u64, u32, Vec<u8>)>,
    /// Versions to remove: id, bytes of the identity, number of segments.
    pub removed: Vec<(u64, Vec<u8>, u32)>,
    /// Listings to write or, with `None`, to remove.
    pub listings: Vec<(Vec<u8>, Option<ListingRow>)>,
    /// Uploads begun or, with `None`, finished.
    pub uploads: Vec<(String, Option<UploadRow>)>,
    /// Whether the cache is being closed in order.
    pub closing: bool,
}

impl Index {
    /// Opens the index of `dir`; a damaged or foreign one is set aside and a new one made.
    ///
    /// # Errors
    /// [`CacheError::NewerSchema`], or [`CacheError::Index`] when a new one fails too.
    pub fn open(dir: &CacheDir) -> Result<Self, CacheError> {
        Self::open_in(dir, &boot_id())
    }

    fn open_in(dir: &CacheDir, boot_id: &str) -> Result<Self, CacheError> {
        let root = dir.root().to_owned();
        let failed = |error: String| CacheError::Index { dir: root.clone(), error };
        match Self::try_open(&dir.index_path(), boot_id) {
            Ok(index) => Ok(index),
            Err(Opening::Newer(found)) => {
                Err(CacheError::NewerSchema { dir: root, found, known: SCHEMA })
            }
            Err(Opening::Damaged(reason)) => {
                let aside = dir.set_index_aside().map_err(|e| failed(e.to_string()))?;
                tracing::warn!(%reason, aside = %aside.display(), "index unusable; starting a new one");
                Self::try_open(&dir.index_path(), boot_id).map_err(|e| failed(format!("{e:?}")))
            }
            Err(Opening::Failed(reason)) => Err(failed(reason)),
        }
    }

    fn try_open(path: &Path, boot_id: &str) -> Result<Self, Opening> {
        let fresh = path.metadata().map_or(true, |m| m.len() == 0);
        let db = Database::builder().set_cache_size(REDB_CACHE).create(path)?;
        let txn = quick_write(&db).map_err(Opening::damaged)?;
        let (epoch, first_id, clean) = {
            let mut meta = txn.open_table(META)?;
            let get = |meta: &redb::Table<'_, &str, u64>, name: &str| {
                Ok::<_, StorageError>(meta.get(name)?.map(|v| v.value()))
            };
            match get(&meta, "schema")? {
                None if fresh => {}
                None => return Err(Opening::Damaged("not an index of Weir".into())),
                Some(found) if found > u64::from(SCHEMA) => {
                    return Err(Opening::Newer(u32::try_from(found).unwrap_or(u32::MAX)));
                }
                Some(found) if found < u64::from(SCHEMA) => {
                    return Err(Opening::Damaged(format!("schema {found} is too old")));
                }
                Some(_) => {}
            }
            meta.insert("schema", u64::from(SCHEMA))?;
            let clean = get(&meta, "clean")?.is_some_and(|clean| clean == 1);
            let mut epoch = get(&meta, "epoch")?.unwrap_or(0);
            let mut boot = txn.open_table(BOOT)?;
            let same_boot = boot.get("boot_id")?.is_some_and(|b| b.value() == boot_id);
            // Bytes written before a crash of the process survive it; of the machine they may not.
            if !fresh && !clean && !same_boot {
                epoch += 1;
            }
            boot.insert("boot_id", boot_id)?;
            let first_id = get(&meta, "next_id")?.unwrap_or(1);
            meta.insert("epoch", epoch)?;
            meta.insert("clean", 0)?;
            meta.insert("next_id", first_id + ID_STRIDE)?;
            (epoch, first_id, clean)
        };
        txn.open_table(VERSIONS)?;
        txn.open_table(OBJECTS)?;
        txn.open_table(SEGMENTS)?;
        txn.open_table(LISTINGS)?;
        txn.open_table(UPLOADS)?;
        txn.open_table(IDENTITIES)?;
        txn.commit().map_err(Opening::damaged)?;
        let epoch = u32::try_from(epoch).unwrap_or(u32::MAX);
        Ok(Self { db, epoch, first_id, closed_in_order: clean })
    }

    /// Finds a version by the bytes of its identity.
    pub fn find(&self, identity: &[u8]) -> Option<(u64, ObjectRow)> {
        logged(self.try_find(identity)).flatten()
    }

    fn try_find(&self, identity: &[u8]) -> Result<Option<(u64, ObjectRow)>, redb::Error> {
        let txn = self.db.begin_read()?;
        let Some(id) = txn.open_table(VERSIONS)?.get(identity)?.map(|id| id.value()) else {
            return Ok(None);
        };
        let objects = txn.open_table(OBJECTS)?;
        let Some(row) = objects.get(id)? else { return Ok(None) };
        Ok(postcard::from_bytes::<ObjectRow>(row.value()).ok().map(|row| (id, row)))
    }

    /// The range map of a version of `size` bytes.
    pub fn map(&self, id: u64, size: u64) -> BlockMap {
        logged(self.try_map(id, size)).unwrap_or_else(|| BlockMap::empty(blocks::count(size)))
    }

    fn try_map(&self, id: u64, size: u64) -> Result<BlockMap, redb::Error> {
        let mut map = BlockMap::empty(blocks::count(size));
        let segments = self.db.begin_read()?.open_table(SEGMENTS)?;
        for row in segments.range((id, 0)..=(id, u32::MAX))? {
            let (key, value) = row?;
            if !records::decode_segment(&mut map, key.value().1, value.value()) {
                tracing::warn!(id, segment = key.value().1, "damaged range row; fetching again");
            }
        }
        Ok(map)
    }

    /// The listing stored under `name`.
    pub fn listing(&self, name: &[u8]) -> Option<ListingRow> {
        let read = || -> Result<Option<ListingRow>, redb::Error> {
            let table = self.db.begin_read()?.open_table(LISTINGS)?;
            let row = table.get(name)?;
            Ok(row.and_then(|row| postcard::from_bytes(row.value()).ok()))
        };
        logged(read()).flatten()
    }

    /// The identities that have brought bytes of a bucket here, with `identity` among them from
    /// now on.
    pub fn identities_with(&self, bucket: &str, identity: &str) -> Vec<String> {
        logged(self.try_identities_with(bucket, identity)).unwrap_or_default()
    }

    fn try_identities_with(
        &self,
        bucket: &str,
        identity: &str,
    ) -> Result<Vec<String>, redb::Error> {
        let known = {
            let table = self.db.begin_read()?.open_table(IDENTITIES)?;
            let mut known = Vec::new();
            for row in table.range((bucket, "")..)? {
                let (key, _) = row?;
                match key.value() {
                    (of, identity) if of == bucket => known.push(identity.to_owned()),
                    _ => break,
                }
            }
            known
        };
        if known.iter().any(|known| known == identity) {
            return Ok(known);
        }
        let txn = quick_write(&self.db)?;
        txn.open_table(IDENTITIES)?.insert((bucket, identity), ())?;
        txn.commit()?;
        Ok(known.into_iter().chain([identity.to_owned()]).collect())
    }

    /// Uploads that were begun and never finished.
    pub fn uploads(&self) -> Vec<(String, UploadRow)> {
        let read = || -> Result<Vec<_>, redb::Error> {
            let table = self.db.begin_read()?.open_table(UPLOADS)?;
            let mut out = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                if let Ok(upload) = postcard::from_bytes(value.value()) {
                    out.push((key.value().to_owned(), upload));
                }
            }
            Ok(out)
        };
        logged(read()).unwrap_or_default()
    }

    /// Calls `each` with id and row of every version.
    pub fn for_each_object(&self, mut each: impl FnMut(u64, &ObjectRow)) {
        let mut read = || -> Result<(), redb::Error> {
            let table = self.db.begin_read()?.open_table(OBJECTS)?;
            for row in table.iter()? {
                let (id, value) = row?;
                if let Ok(row) = postcard::from_bytes::<ObjectRow>(value.value()) {
                    each(id.value(), &row);
                }
            }
            Ok(())
        };
        logged(read());
    }

    /// The identity of the version with this id.
    pub fn row(&self, id: u64) -> Option<ObjectRow> {
        let read = || -> Result<Option<ObjectRow>, redb::Error> {
            let table = self.db.begin_read()?.open_table(OBJECTS)?;
            let row = table.get(id)?;
            Ok(row.and_then(|row| postcard::from_bytes(row.value()).ok()))
        };
        logged(read()).flatten()
    }

    /// Makes a batch durable.
    ///
    /// # Errors
    /// What redb reports; nothing of the batch is then in effect.
    pub fn apply(&self, batch: &Batch) -> Result<(), redb::Error> {
        let txn = quick_write(&self.db)?;
        {
            let mut versions = txn.open_table(VERSIONS)?;
            let mut objects = txn.open_table(OBJECTS)?;
            let mut segments = txn.open_table(SEGMENTS)?;
            for (id, identity, segment_count) in &batch.removed {
                // The identity may have a newer id by now.
                let current = versions.get(identity.as_slice())?.map(|v| v.value());
                if current == Some(*id) {
                    versions.remove(identity.as_slice())?;
                }
                objects.remove(id)?;
                for segment in 0..*segment_count {
                    segments.remove((*id, segment))?;
                }
            }
            for (id, identity, row) in &batch.objects {
                versions.insert(identity.as_slice(), id)?;
                objects.insert(id, encode(row)?.as_slice())?;
            }
            for (id, segment, row) in &batch.segments {
                segments.insert((*id, *segment), row.as_slice())?;
            }
            let mut listings = txn.open_table(LISTINGS)?;
            for (name, row) in &batch.listings {
                match row {
                    Some(row) => listings.insert(name.as_slice(), encode(row)?.as_slice())?,
                    None => listings.remove(name.as_slice())?,
                };
            }
            let mut uploads = txn.open_table(UPLOADS)?;
            for (name, row) in &batch.uploads {
                match row {
                    Some(row) => uploads.insert(name.as_str(), encode(row)?.as_slice())?,
                    None => uploads.remove(name.as_str())?,
                };
            }
            if batch.closing {
                txn.open_table(META)?.insert("clean", 1)?;
            }
        }
        txn.commit()?;
        Ok(())
    }
}

/// Number of segments of a version of `size` bytes.
pub fn segment_count(size: u64) -> u32 {
    blocks::count(size).div_ceil(SEGMENT)
}

fn encode<T: serde::Serialize>(row: &T) -> Result<Vec<u8>, redb::Error> {
    postcard::to_stdvec(row).map_err(|e| redb::Error::Io(io::Error::other(e)))
}

/// A write transaction after which a crashed index opens without a full walk.
fn quick_write(db: &Database) -> Result<redb::WriteTransaction, redb::TransactionError> {
    let mut txn = db.begin_write()?;
    txn.set_quick_repair(true);
    Ok(txn)
}

/// A failing look-up means "not cached"; it must not fail the pod.
fn logged<T>(result: Result<T, redb::Error>) -> Option<T> {
    result.inspect_err(|error| tracing::error!(%error, "index look-up failed")).ok()
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().into()
}

#[derive(Debug)]
enum Opening {
    Newer(u32),
    Damaged(String),
    Failed(String),
}

impl Opening {
    fn damaged(error: impl std::fmt::Display) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl From<DatabaseError> for Opening {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Storage(StorageError::Io(e))
                if e.kind() != io::ErrorKind::InvalidData =>
            {
                // A damaged file shows as an unexpected end; a failing disk as anything else.
                match e.kind() {
                    io::ErrorKind::UnexpectedEof => Self::Damaged(e.to_string()),
                    _ => Self::Failed(e.to_string()),
                }
            }
            other => Self::Damaged(other.to_string()),
        }
    }
}

impl From<TableError> for Opening {
    fn from(error: TableError) -> Self {
        Self::damaged(error)
    }
}

impl From<StorageError> for Opening {
    fn from(error: StorageError) -> Self {
        Self::damaged(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(verified_epoch: u32) -> ObjectRow {
        ObjectRow {
            bucket: "http://s3\u{1f}b".into(),
            key: "k".into(),
            etag: "\"e\"".into(),
            size: 10,
            held: 10,
            last_used: 5,
            verified_epoch,
        }
    }

    #[test]
    fn an_unclean_boot_makes_every_version_unverified() {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::own(temp.path(), 0).unwrap();
        let open = |boot: &str| Index::open_in(&dir, boot).unwrap();
        let index = open("boot-1");
        let batch =
            Batch { objects: vec![(1, b"id".to_vec(), row(index.epoch))], ..Batch::default() };
        index.apply(&batch).unwrap();
        drop(index);
        // The process died, the machine did not.
        let index = open("boot-1");
        assert_eq!(index.find(b"id").unwrap().1.verified_epoch, index.epoch);
        drop(index);
        // The machine died.
        let index = open("boot-2");
        assert!(index.find(b"id").unwrap().1.verified_epoch < index.epoch);
        let (before, first) = (index.epoch, index.first_id);
        index.apply(&Batch { closing: true, ..Batch::default() }).unwrap();
        drop(index);
        // Closed in order, then a boot.
        let index = open("boot-3");
        assert_eq!(index.epoch, before);
        assert!(index.first_id >= first + ID_STRIDE);
    }

    #[test]
    fn a_removed_identity_with_a_newer_id_keeps_the_newer() {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::own(temp.path(), 0).unwrap();
        let index = Index::open(&dir).unwrap();
        let objects = vec![(2, b"id".to_vec(), row(0))];
        index.apply(&Batch { objects, ..Batch::default() }).unwrap();
        let removed = vec![(1, b"id".to_vec(), 1)];
        index.apply(&Batch { removed, ..Batch::default() }).unwrap();
        assert_eq!(index.find(b"id").unwrap().0, 2);
    }
}
