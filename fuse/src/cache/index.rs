//! The index: which versions are held, which of their blocks, and what listings said.

mod opening;
mod region_evictions;
mod signers;

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

pub use region_evictions::RegionEviction;
pub use signers::{FORMER_MAX, Signer, Standing, former};

use super::dir::INDEX;
use super::folder::Folder;
use super::records::{self, ListingRow, ObjectRow, UploadRow};
use crate::blocking::MayBlock;
use crate::model::blocks::{self, BlockMap};
use crate::sync::RwLock;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const BOOT: TableDefinition<'_, &str, &str> = TableDefinition::new("boot");
const VERSIONS: TableDefinition<'_, &[u8], u64> = TableDefinition::new("versions");
const OBJECTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("objects");
const SEGMENTS: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("segments");
const LISTINGS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("listings");
const UPLOADS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("uploads");
/// What endpoints were found to obey, by bucket.
const VERDICTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("verdicts");

/// The index of one cache directory.
pub struct Index {
    folder: Arc<Folder>,
    /// `None` once it is closed, and while it could not be opened again.
    db: RwLock<Option<Database>>,
    /// Counts unclean boots: a version checked in an earlier epoch is to be checked again.
    pub epoch: u32,
    /// The first id of this run.
    pub first_id: u64,
    /// Whether the run before closed it in order, so that it knows of all that happened.
    pub closed_in_order: bool,
}

/// Changes that are to become durable together.
#[derive(Default)]
pub struct Batch<'a> {
    /// Rows to write, with the bytes of their identity.
    pub objects: Vec<(u64, Vec<u8>, ObjectRow)>,
    /// Segments to write.
    pub segments: Vec<(u64, u32, Vec<u8>)>,
    /// Ids of versions to remove.
    pub removed: Vec<u64>,
    /// Listings to write or, with `None`, to remove.
    pub listings: Vec<(&'a [u8], Option<&'a ListingRow>)>,
    /// Uploads begun or, with `None`, finished.
    pub uploads: Vec<(&'a str, Option<&'a UploadRow>)>,
    /// What is known of buckets' endpoints.
    pub verdicts: Vec<(&'a str, &'a [u8])>,
    /// Whether the cache is being closed in order.
    pub closing: bool,
}

impl Index {
    /// Opens it once more, as after an error: redb refuses all after the first one.
    ///
    /// # Errors
    /// What redb reports; the index then knows nothing until this succeeds.
    pub fn reopen(&self, may: &MayBlock) -> Result<(), redb::Error> {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        // Its lock of the file goes with it.
        *db = None;
        *db = Some(opening::open_again(may, &self.folder)?);
        Ok(())
    }

    /// Closes it. It knows nothing from here on.
    pub fn close(&self, _: &MayBlock) {
        *self.db.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Bytes that it takes on the disk.
    pub fn bytes(&self, may: &MayBlock) -> u64 {
        self.folder.metadata(may, Path::new(INDEX)).map_or(0, |metadata| metadata.len())
    }

    /// Keeps commits waiting while `act` runs, as a busy disk does.
    #[cfg(test)]
    pub(super) fn stalled<T>(&self, act: impl FnOnce() -> T) -> T {
        self.with(|db| Ok((db.begin_write()?, act()).1)).unwrap()
    }

    fn with<T>(
        &self,
        act: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        act(db.as_ref().ok_or(redb::Error::DatabaseClosed)?)
    }

    /// Finds a version by the bytes of its identity.
    pub fn find(&self, _: &MayBlock, identity: &[u8]) -> Option<(u64, ObjectRow)> {
        logged(self.try_find(identity)).flatten()
    }

    fn try_find(&self, identity: &[u8]) -> Result<Option<(u64, ObjectRow)>, redb::Error> {
        self.with(|db| {
            let txn = db.begin_read()?;
            let Some(id) = txn.open_table(VERSIONS)?.get(identity)?.map(|id| id.value()) else {
                return Ok(None);
            };
            let objects = txn.open_table(OBJECTS)?;
            let Some(row) = objects.get(id)? else { return Ok(None) };
            Ok(postcard::from_bytes::<ObjectRow>(row.value()).ok().map(|row| (id, row)))
        })
    }

    /// The range map of a version of `size` bytes.
    pub fn map(&self, _: &MayBlock, id: u64, size: u64) -> BlockMap {
        logged(self.try_map(id, size)).unwrap_or_else(|| BlockMap::empty(blocks::count(size)))
    }

    fn try_map(&self, id: u64, size: u64) -> Result<BlockMap, redb::Error> {
        let mut map = BlockMap::empty(blocks::count(size));
        self.with(|db| {
            let segments = db.begin_read()?.open_table(SEGMENTS)?;
            for row in segments.range((id, 0)..=(id, u32::MAX))? {
                let (key, value) = row?;
                let segment = key.value().1;
                if !records::decode_segment(&mut map, segment, value.value()) {
                    tracing::warn!(id, segment, "damaged range row; fetching again");
                }
            }
            Ok(())
        })?;
        Ok(map)
    }

    /// The listing stored under `name`.
    pub fn listing(&self, _: &MayBlock, name: &[u8]) -> Option<ListingRow> {
        let read = self.with(|db| {
            let table = db.begin_read()?.open_table(LISTINGS)?;
            let row = table.get(name)?;
            Ok(row.and_then(|row| postcard::from_bytes(row.value()).ok()))
        });
        logged(read).flatten()
    }

    /// What is known of the endpoint of `bucket`.
    pub fn verdicts(&self, _: &MayBlock, bucket: &str) -> Option<Vec<u8>> {
        let read = self.with(|db| {
            let table = db.begin_read()?.open_table(VERDICTS)?;
            Ok(table.get(bucket)?.map(|row| row.value().to_vec()))
        });
        logged(read).flatten()
    }

    /// Uploads that were begun and never finished.
    pub fn uploads(&self, _: &MayBlock) -> Vec<(String, UploadRow)> {
        let read = self.with(|db| {
            let table = db.begin_read()?.open_table(UPLOADS)?;
            let mut out = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                if let Ok(upload) = postcard::from_bytes(value.value()) {
                    out.push((key.value().to_owned(), upload));
                }
            }
            Ok(out)
        });
        logged(read).unwrap_or_default()
    }

    /// Calls `each` with id and row of every version. Says whether it came to the end.
    pub fn for_each_object(&self, _: &MayBlock, mut each: impl FnMut(u64, &ObjectRow)) -> bool {
        let read = self.with(|db| {
            let table = db.begin_read()?.open_table(OBJECTS)?;
            for row in table.iter()? {
                let (id, value) = row?;
                if let Ok(row) = postcard::from_bytes::<ObjectRow>(value.value()) {
                    each(id.value(), &row);
                }
            }
            Ok(())
        });
        logged(read).is_some()
    }

    /// Makes a batch durable.
    ///
    /// # Errors
    /// What redb reports; nothing of the batch is then in effect.
    pub fn apply(&self, _: &MayBlock, batch: &Batch<'_>) -> Result<(), redb::Error> {
        self.with(|db| {
            let txn = quick_write(db)?;
            remove(&txn, &batch.removed)?;
            write(&txn, batch)?;
            if batch.closing {
                txn.open_table(META)?.insert("clean", 1)?;
            }
            Ok(txn.commit()?)
        })
    }
}

/// Removes versions, whatever is known of them.
fn remove(txn: &WriteTransaction, ids: &[u64]) -> Result<(), redb::Error> {
    let mut versions = txn.open_table(VERSIONS)?;
    let mut objects = txn.open_table(OBJECTS)?;
    let mut segments = txn.open_table(SEGMENTS)?;
    for id in ids {
        let row = objects.remove(id)?;
        let row = row.and_then(|row| postcard::from_bytes::<ObjectRow>(row.value()).ok());
        if let Some(key) = row.and_then(|row| row.version_key()) {
            let identity = key.to_bytes();
            // The identity may have a newer id by now.
            let current = versions.get(identity.as_slice())?.map(|v| v.value());
            if current == Some(*id) {
                versions.remove(identity.as_slice())?;
            }
        }
        segments.retain_in((*id, 0)..=(*id, u32::MAX), |_, _| false)?;
    }
    Ok(())
}

fn write(txn: &WriteTransaction, batch: &Batch<'_>) -> Result<(), redb::Error> {
    let mut versions = txn.open_table(VERSIONS)?;
    let mut objects = txn.open_table(OBJECTS)?;
    for (id, identity, row) in &batch.objects {
        versions.insert(identity.as_slice(), id)?;
        objects.insert(id, encode(row)?.as_slice())?;
    }
    let mut segments = txn.open_table(SEGMENTS)?;
    for (id, segment, row) in &batch.segments {
        segments.insert((*id, *segment), row.as_slice())?;
    }
    let mut listings = txn.open_table(LISTINGS)?;
    for (name, row) in &batch.listings {
        match row {
            Some(row) => listings.insert(*name, encode(row)?.as_slice())?,
            None => listings.remove(*name)?,
        };
    }
    let mut uploads = txn.open_table(UPLOADS)?;
    for (name, row) in &batch.uploads {
        match row {
            Some(row) => uploads.insert(*name, encode(row)?.as_slice())?,
            None => uploads.remove(*name)?,
        };
    }
    let mut verdicts = txn.open_table(VERDICTS)?;
    for (bucket, row) in &batch.verdicts {
        verdicts.insert(*bucket, *row)?;
    }
    Ok(())
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

/// A failing look-up means "not cached"; it must not fail the pod. That the index failed before, or
/// is closed, was said when it happened.
fn logged<T>(result: Result<T, redb::Error>) -> Option<T> {
    result
        .inspect_err(|error| match error {
            redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
                tracing::debug!(%error, "index look-up failed");
            }
            error => tracing::error!(%error, "index look-up failed"),
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::opening::ID_STRIDE;
    use super::*;
    use crate::blocking::MAY;
    use crate::cache::dir::CacheDir;
    use crate::cache::error::CacheError;

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
        let dir = CacheDir::own(MAY, temp.path(), 0).unwrap();
        let open = |boot: &str| Index::open_in(MAY, &dir, boot).unwrap();
        let index = open("boot-1");
        let batch =
            Batch { objects: vec![(1, b"id".to_vec(), row(index.epoch))], ..Batch::default() };
        index.apply(MAY, &batch).unwrap();
        drop(index);
        // The process died, the machine did not.
        let index = open("boot-1");
        assert_eq!(index.find(MAY, b"id").unwrap().1.verified_epoch, index.epoch);
        drop(index);
        // The machine died.
        let index = open("boot-2");
        assert!(index.find(MAY, b"id").unwrap().1.verified_epoch < index.epoch);
        let (before, first) = (index.epoch, index.first_id);
        index.apply(MAY, &Batch { closing: true, ..Batch::default() }).unwrap();
        drop(index);
        // Closed in order, then a boot.
        let index = open("boot-3");
        assert_eq!(index.epoch, before);
        assert!(index.first_id >= first + ID_STRIDE);
    }

    #[test]
    fn a_removed_identity_with_a_newer_id_keeps_the_newer() {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::own(MAY, temp.path(), 0).unwrap();
        let index = Index::open(MAY, &dir).unwrap();
        let identity = row(0).version_key().unwrap().to_bytes();
        for id in [1, 2] {
            let objects = vec![(id, identity.clone(), row(0))];
            let segments = vec![(id, 0, vec![0; 64])];
            index.apply(MAY, &Batch { objects, segments, ..Batch::default() }).unwrap();
        }
        index.apply(MAY, &Batch { removed: vec![1, 7], ..Batch::default() }).unwrap();
        assert_eq!(index.find(MAY, &identity).unwrap().0, 2);
        index.apply(MAY, &Batch { removed: vec![2], ..Batch::default() }).unwrap();
        assert!(index.find(MAY, &identity).is_none());
        let mut left = 0;
        assert!(index.for_each_object(MAY, |_, _| left += 1) && left == 0);
    }

    #[test]
    fn an_index_that_is_open_is_in_use_and_not_damaged() {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::own(MAY, temp.path(), 0).unwrap();
        let index = Index::open(MAY, &dir).unwrap();
        let error = Index::open(MAY, &dir).map(|_| ()).unwrap_err();
        assert!(matches!(error, CacheError::InUse { .. }), "{error}");
        index.close(MAY);
        assert!(
            index.find(MAY, b"id").is_none() && !temp.path().join("index.redb.damaged").exists()
        );
        Index::open(MAY, &dir).unwrap();
    }

    #[test]
    fn an_index_can_be_opened_again_and_again() {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::own(MAY, temp.path(), 0).unwrap();
        let index = Index::open(MAY, &dir).unwrap();
        for id in [1, 2] {
            let objects = vec![(id, vec![id as u8], row(0))];
            index.apply(MAY, &Batch { objects, ..Batch::default() }).unwrap();
            index.reopen(MAY).unwrap();
        }
        assert!(index.find(MAY, &[1]).is_some() && index.find(MAY, &[2]).is_some());
        // One that somebody has removed is not begun anew under our feet.
        std::fs::remove_file(dir.root().join(INDEX)).unwrap();
        assert!(index.reopen(MAY).is_err() && index.find(MAY, &[1]).is_none());
    }
}
