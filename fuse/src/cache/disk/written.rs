//! What is written here: staging files, what becomes of them, and links.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::DiskCache;
use super::room::Room;
use crate::blocking::MayBlock;
use crate::cache::dir::{CacheDir, RENAME};
use crate::cache::file::{self, CacheFile};
use crate::cache::lost::{self, LostRow};
use crate::cache::share::Share;
use crate::cache::staging::StagingFile;
use crate::cache::version::CachedVersion;

/// How often what is in `lost/` is counted for those who cannot write because it is full.
const COUNT_EVERY: Duration = Duration::from_secs(2);

impl DiskCache {
    /// Whether a path is in this directory.
    pub(in crate::cache) fn contains(&self, path: &Path) -> bool {
        path.starts_with(self.shared.dir.root())
    }

    /// A new file for what is being written.
    ///
    /// # Errors
    /// What open reports.
    pub(in crate::cache) fn new_staging(
        self: &Arc<Self>,
        may: &MayBlock,
        share: Option<Arc<Share>>,
    ) -> io::Result<StagingFile> {
        let name = CacheDir::staging_name(self.new_id());
        StagingFile::create(may, self.clone(), name, share)
    }

    /// Where a record of what is under way may be put.
    pub(in crate::cache) fn new_record_path(&self) -> PathBuf {
        let name = CacheDir::staging_name(self.new_id()).with_extension(RENAME);
        self.shared.dir.root().join(name)
    }

    /// Puts a staging file whose bytes could not be stored where a person finds it.
    ///
    /// # Errors
    /// What the disk reports; the file is then where it was.
    pub(in crate::cache) fn keep_lost(
        &self,
        may: &MayBlock,
        path: &Path,
        row: &LostRow,
    ) -> io::Result<PathBuf> {
        let kept = lost::keep(may, &self.shared.dir, self.new_id(), path, row)?;
        self.shared.space.add_lost(row.whose(), row.size);
        self.note_use();
        Ok(kept)
    }

    /// What is kept in `lost/`.
    pub(in crate::cache) fn lost(&self, may: &MayBlock) -> Vec<LostRow> {
        lost::list(may, &self.shared.dir)
    }

    /// Whether `lost/` holds as much as it is meant to for those whose this is ([`LostRow::whose`]),
    /// among `others`.
    pub(in crate::cache) fn lost_is_full(&self, may: &MayBlock, whose: &str, others: bool) -> bool {
        let is_full = || self.shared.space.lost_is_full(whose, others);
        if !is_full() {
            return false;
        }
        // Somebody may have looked after it meanwhile.
        let mut counted = self.lost_counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.is_none_or(|at| at.elapsed() > COUNT_EVERY) {
            self.count_lost(may);
            *counted = Some(Instant::now());
        }
        is_full()
    }

    /// Looks at `lost/`, from which people take away.
    pub(super) fn count_lost(&self, may: &MayBlock) {
        self.shared.space.set_lost(lost::bytes(may, &self.shared.dir));
        self.note_use();
    }

    /// Makes a staging file that holds all bytes of `version`, with their checksums by block, the
    /// cached version. Says whether it did.
    pub(in crate::cache) fn adopt(
        &self,
        may: &MayBlock,
        version: &Arc<CachedVersion>,
        staging: &StagingFile,
        sums: &[u32],
        room: &Room,
    ) -> bool {
        let folder = self.shared.dir.folder();
        let from = staging.name();
        let put = |to: &Path| file::place(may, folder, to, || folder.rename(may, from, to));
        let adopted = version.adopt(may, sums, room, put);
        if matches!(adopted, Ok(true)) {
            staging.release();
        }
        self.adopted(version, adopted)
    }

    /// Makes a file of another version that holds the same bytes also the file of this one. Says
    /// whether it did.
    pub(in crate::cache) fn link(
        &self,
        may: &MayBlock,
        version: &Arc<CachedVersion>,
        file: &CacheFile,
        sums: &[u32],
        room: &Room,
    ) -> bool {
        self.adopted(version, version.adopt(may, sums, room, |name| file.link(may, name)))
    }

    fn adopted(&self, version: &Arc<CachedVersion>, adopted: io::Result<bool>) -> bool {
        let adopted = adopted.unwrap_or_else(|error| {
            tracing::warn!(%error, "written file not kept in the cache");
            false
        });
        self.used(version);
        adopted
    }
}
