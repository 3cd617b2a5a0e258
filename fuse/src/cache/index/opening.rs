//! Opening an index: what an earlier run left is taken over, or set aside.

use std::io;
use std::path::Path;

use redb::{Database, ReadableTable, Table};
use rustix::fs::OFlags;

use super::{
    BOOT, Index, LISTINGS, META, OBJECTS, SEGMENTS, UPLOADS, VERDICTS, VERSIONS, quick_write,
    region_evictions, signers,
};
use crate::blocking::MayBlock;
use crate::cache::dir::{CacheDir, INDEX};
use crate::cache::error::CacheError;
use crate::cache::folder::Folder;
use crate::cache::reserve;
use crate::cache::version::now_secs;
use crate::sync::RwLock;

/// Schema number of this code. It grows when a row or a table changes its meaning; then what the
/// number before wrote is taken over here, and `docs/cache-format.md` says what changed.
const SCHEMA: u64 = 1;
/// Memory for redb's own cache, in bytes.
const REDB_CACHE: usize = 16 * 1024 * 1024;
/// Ids set aside at every start, so that ids of a crashed run are not given again.
pub(super) const ID_STRIDE: u64 = 1 << 32;

impl Index {
    /// Opens the index of `dir`. One that is damaged, foreign, or of a newer Weir is set aside and a
    /// new one made.
    ///
    /// # Errors
    /// [`CacheError::InUse`] when it is open elsewhere, [`CacheError::Index`] when the disk fails
    /// or a new one cannot be made.
    pub fn open(may: &MayBlock, dir: &CacheDir) -> Result<Self, CacheError> {
        Self::open_in(may, dir, &boot_id())
    }

    pub(super) fn open_in(
        may: &MayBlock,
        dir: &CacheDir,
        boot_id: &str,
    ) -> Result<Self, CacheError> {
        let root = dir.root().to_owned();
        let failed = |error: String| CacheError::Index { dir: root.clone(), error };
        let mut opened = try_open(may, dir, boot_id);
        if matches!(opened, Err(Obstacle::Disk(_))) && reserve::give(may, dir) {
            opened = try_open(may, dir, boot_id);
        }
        let (why, reason) = match opened {
            Ok(index) => return Ok(index),
            Err(Obstacle::InUse) => {
                let owner = format!("{} (its index is open)", std::process::id());
                return Err(CacheError::InUse { dir: root, owner });
            }
            Err(Obstacle::Disk(reason)) => return Err(failed(reason)),
            Err(Obstacle::Newer(schema)) => ("newer", format!("its schema is {schema}")),
            Err(Obstacle::Damaged(reason)) => ("damaged", reason),
        };
        let aside = dir.set_index_aside(may, why).map_err(|e| failed(e.to_string()))?;
        tracing::warn!(%reason, aside = %aside.display(), "index unusable; starting a new one");
        try_open(may, dir, boot_id).map_err(|obstacle| failed(format!("{obstacle:?}")))
    }
}

fn try_open(may: &MayBlock, dir: &CacheDir, boot_id: &str) -> Result<Index, Obstacle> {
    take_over(may, dir, boot_id).unwrap_or_else(|error| Err(Obstacle::of(error)))
}

/// Opens what is there, or begins a new one.
fn take_over(
    may: &MayBlock,
    dir: &CacheDir,
    boot_id: &str,
) -> Result<Result<Index, Obstacle>, redb::Error> {
    let folder = dir.folder().clone();
    let file = folder.private(may, Path::new(INDEX))?;
    let fresh = file.metadata()?.len() == 0;
    let db = Database::builder().set_cache_size(REDB_CACHE).create_file(file)?;
    let txn = quick_write(&db)?;
    let (epoch, first_id, closed_in_order) = {
        let mut meta = txn.open_table(META)?;
        if let Err(obstacle) = check_schema(get(&meta, "schema")?, fresh) {
            return Ok(Err(obstacle));
        }
        meta.insert("schema", SCHEMA)?;
        let clean = get(&meta, "clean")? == Some(1);
        let mut epoch = get(&meta, "epoch")?.unwrap_or(0);
        let mut boot = txn.open_table(BOOT)?;
        let same_boot = boot.get("boot_id")?.is_some_and(|b| b.value() == boot_id);
        // Bytes written before a crash of the process survive it; of the machine they may not.
        if !fresh && !clean && !same_boot {
            epoch += 1;
        }
        boot.insert("boot_id", boot_id)?;
        // The files of an index that is gone, and what is lost, keep their names.
        let first_id = get(&meta, "next_id")?.unwrap_or_else(|| dir.greatest_id(may) + 1);
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
    signers::take_over(&txn, now_secs())?;
    txn.open_table(VERDICTS)?;
    region_evictions::make(&txn)?;
    txn.commit()?;
    let epoch = u32::try_from(epoch).unwrap_or(u32::MAX - 1);
    let db = RwLock::new(Some(db));
    Ok(Ok(Index { folder, db, epoch, first_id, closed_in_order }))
}

fn check_schema(found: Option<u64>, fresh: bool) -> Result<(), Obstacle> {
    match found {
        None if fresh => Ok(()),
        None => Err(Obstacle::Damaged("not an index of Weir".into())),
        Some(SCHEMA) => Ok(()),
        Some(newer) if newer > SCHEMA => Err(Obstacle::Newer(newer)),
        Some(older) => Err(Obstacle::Damaged(format!("schema {older} never was"))),
    }
}

fn get(meta: &Table<'_, &str, u64>, name: &str) -> Result<Option<u64>, redb::Error> {
    Ok(meta.get(name)?.map(|value| value.value()))
}

/// Opens an index that this process had open before.
pub(super) fn open_again(may: &MayBlock, folder: &Folder) -> Result<Database, redb::Error> {
    let file = folder.file(may, Path::new(INDEX), OFlags::RDWR)?;
    if file.metadata()?.len() == 0 {
        // redb would make a new one in it.
        return Err(redb::Error::Corrupted("the index is empty".into()));
    }
    Ok(Database::builder().set_cache_size(REDB_CACHE).create_file(file)?)
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().into()
}

/// Why an index cannot be used.
#[derive(Debug)]
enum Obstacle {
    /// A newer Weir has written it, with this schema.
    Newer(u64),
    /// It is not what this program wrote.
    Damaged(String),
    /// It may be right, but the disk fails or is full.
    Disk(String),
    /// It is open.
    InUse,
}

impl Obstacle {
    fn of(error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            // A damaged file shows as an unexpected end; a failing disk as anything else.
            redb::Error::Io(error)
                if ![io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof]
                    .contains(&error.kind()) =>
            {
                Self::Disk(error.to_string())
            }
            redb::Error::PreviousIo => Self::Disk("it failed before".into()),
            error => Self::Damaged(error.to_string()),
        }
    }
}
