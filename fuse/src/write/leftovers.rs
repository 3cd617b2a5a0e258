//! What processes that have died left: renames that were under way are ended, uploads are aborted,
//! and bytes that were not stored go where a person finds them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Writer;
use super::clean::CleanHandles;
use super::draft::{Leftover, Owner, PendingId, leftovers};
use super::renaming::{NamesHeld, RenameLeftover, Renames, is_record};
use crate::blocking::MayBlock;
use crate::cache::dir::FROZEN;
use crate::cache::{LostRow, NodeCache};
use crate::logged::LoggedName;

/// What was in the staging folders when their cache was opened; each is worked off once, by a
/// mount with the bucket and identity of the one that wrote it.
pub struct Leftovers {
    files: Mutex<Vec<Leftover>>,
    renames: HashMap<Owner, Unended>,
    clean: CleanHandles,
}

/// Renames of one owner, and the keys that they are about.
struct Unended {
    renames: Renames,
    keys: Vec<String>,
}

impl Leftovers {
    /// Reads the records beside what is there. Bytes of nobody knows whom go to `lost/` at once.
    pub fn of(may: &MayBlock, cache: &NodeCache) -> Self {
        Self::among(may, cache, cache.take_staged())
    }

    /// As [`Leftovers::of`], of these files.
    pub(super) fn among(may: &MayBlock, cache: &NodeCache, files: Vec<PathBuf>) -> Self {
        // Copies of bytes that lie beside them.
        let (copies, files): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|path| path.extension().is_some_and(|of| of == FROZEN));
        for copy in copies {
            let _ = std::fs::remove_file(copy);
        }
        let (renames, files): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|path| is_record(path));
        let (known, unknown): (Vec<_>, Vec<_>) =
            leftovers(may, files).into_iter().partition(|left| left.owner.is_some());
        for leftover in &unknown {
            keep_bytes(may, cache, leftover);
            leftover.forget_record(may);
        }
        let clean = CleanHandles::of(&known);
        Self { files: Mutex::new(known), renames: by_owner(may, renames), clean }
    }

    /// Bucket and key of each file that was being written, and of each upload.
    pub(crate) fn keys(&self) -> Vec<(String, String)> {
        let mut keys = Vec::new();
        for left in &*self.files() {
            let Some(owner) = &left.owner else { continue };
            let Some((_, bucket)) = owner.bucket.split_once('\u{1f}') else { continue };
            let begun = left.upload.as_ref().map(|upload| &upload.key);
            let of_it = [Some(&left.key), begun].into_iter().flatten();
            let named = of_it.filter(|key| !key.is_empty());
            keys.extend(named.map(|key| (bucket.to_owned(), key.clone())));
        }
        keys
    }

    /// Whether the kernel has this handle of a mount from an earlier engine, and the origin holds
    /// all that was written through it.
    pub fn is_clean(&self, mount: &str, fh: u64) -> bool {
        self.clean.has(mount, fh)
    }

    /// Forgets that a handle is clean: it is closed, or a write through it was refused.
    pub fn forget_handle(&self, may: &MayBlock, mount: &str, fh: u64) {
        self.clean.forget(may, mount, fh);
    }

    /// The file that a clean handle of an earlier engine's is of.
    pub(crate) fn file_of(&self, mount: &str, fh: u64) -> Option<PathBuf> {
        self.clean.file_of(mount, fh)
    }

    /// Forgets the handles of a mount that is gone.
    pub async fn forget_mount(&self, cache: &NodeCache, mount: &str) {
        for left in self.clean.take_mount(mount) {
            cache.at_disk_of(&left.staging, |may| left.forget_record(may)).await;
        }
    }

    /// Takes those of these owners.
    pub fn take(&self, owners: &[Owner]) -> Vec<Leftover> {
        let is_theirs = |leftover: &Leftover| {
            leftover.owner.as_ref().is_some_and(|owner| owners.contains(owner))
        };
        self.files().extract_if(.., |leftover| is_theirs(leftover)).collect()
    }

    /// Renames of these owners that are not ended yet, as far as anybody knows. Who has locked them
    /// ends them.
    pub(super) fn renames(&self, owners: &[Owner]) -> Vec<Renames> {
        // Locked: somebody is about it.
        let ended = |renames: &Renames| renames.try_lock().is_ok_and(|left| left.is_empty());
        let of_them = owners.iter().filter_map(|owner| self.renames.get(owner));
        of_them.map(|unended| &unended.renames).filter(|left| !ended(left)).cloned().collect()
    }

    /// The keys that these renames are about.
    pub(super) fn renamed_keys(&self, owners: &[Owner]) -> Vec<String> {
        let of_them = owners.iter().filter_map(|owner| self.renames.get(owner));
        of_them.flat_map(|unended| &unended.keys).cloned().collect()
    }

    fn files(&self) -> MutexGuard<'_, Vec<Leftover>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn by_owner(may: &MayBlock, records: Vec<PathBuf>) -> HashMap<Owner, Unended> {
    let mut lists: HashMap<Owner, Vec<RenameLeftover>> = HashMap::new();
    for left in records.into_iter().filter_map(|path| RenameLeftover::read(may, path)) {
        lists.entry(left.owner.clone()).or_default().push(left);
    }
    let unended = |renames: Vec<RenameLeftover>| Unended {
        keys: renames.iter().flat_map(RenameLeftover::keys).map(str::to_owned).collect(),
        renames: Arc::new(tokio::sync::Mutex::new(renames)),
    };
    lists.into_iter().map(|(owner, renames)| (owner, unended(renames))).collect()
}

impl Writer {
    /// Works off what earlier runs left with this mount's bucket and identity; `held` are its
    /// names ([`Writer::hold_names`]). What the origin does not allow, or does not answer, is left
    /// for the next run.
    pub async fn work_off(&self, leftovers: &Leftovers, held: Option<NamesHeld>) {
        if let Some(held) = held {
            self.end_renames(leftovers, held).await;
        }
        for leftover in leftovers.take(&self.owners()) {
            let ended = match &leftover.upload {
                Some(upload) => self.end_upload(upload).await,
                None => true,
            };
            let cache = &self.names.cache;
            let work_off = |may: &_| {
                keep_bytes(may, cache, &leftover);
                if ended && !leftovers.clean.worked_off(may, &leftover) {
                    leftover.forget_record(may);
                }
            };
            cache.at_disk_of(&leftover.staging, work_off).await;
        }
        let cache = &self.names.cache;
        for (id, row) in cache.take_journaled_uploads(self.names.bucket()) {
            tracing::info!(key = %LoggedName(&row.key), "aborting an upload of an earlier release");
            if self.abort(&row.key, &id).await {
                cache.forget_journaled_upload(&id);
            }
        }
    }

    async fn end_upload(&self, upload: &PendingId) -> bool {
        tracing::info!(key = %LoggedName(&upload.key), "aborting an upload of an earlier run");
        match &upload.id {
            Some(id) => self.abort(&upload.key, id).await,
            None => self.abort_begun(&upload.key, upload.begun).await,
        }
    }
}

fn keep_bytes(may: &MayBlock, cache: &NodeCache, leftover: &Leftover) {
    let size = std::fs::metadata(&leftover.staging).map_or(0, |metadata| metadata.len());
    if leftover.clean || leftover.unlinked || size == 0 {
        let _ = std::fs::remove_file(&leftover.staging);
        return;
    }
    let bucket = leftover.owner.as_ref().map_or("", |owner| &owner.bucket);
    let cause = "the process that wrote it ended before it was closed";
    let tenant = leftover.tenant.clone();
    let row = LostRow { tenant, ..LostRow::new(bucket, &leftover.key, cause, size) };
    match cache.keep_lost(may, &leftover.staging, &row) {
        Ok(kept) => tracing::warn!(
            key = %LoggedName(&leftover.key), kept = %kept.display(),
            "bytes of an earlier run were not stored; see weir lost"
        ),
        Err(error) => tracing::error!(
            key = %LoggedName(&leftover.key), %error,
            "bytes of an earlier run were not stored, and are not kept either"
        ),
    }
}
