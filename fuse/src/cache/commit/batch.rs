//! One batch: rows, then bytes onto the medium, then the commit.

use std::io;

use super::Changes;
use crate::blocking::MayBlock;
use crate::cache::index::{Batch, Index};
use crate::cache::reserve;
use crate::cache::shared::Shared;

/// Up to so many files of a batch are synced one by one. More are synced by one syncfs, which is
/// faster for many, but waits for whatever else is being written to the file system.
const FILES_MAX: usize = 16;

/// Makes changes durable.
///
/// # Errors
/// Why the index took none of them.
pub(super) fn commit(
    may: &MayBlock,
    shared: &Shared,
    index: &Index,
    changes: &mut Changes,
    closing: bool,
) -> Result<(), redb::Error> {
    let mut batch = Batch { closing, ..Batch::default() };
    for (id, (version, segments)) in &changes.versions {
        batch.objects.push((*id, version.key.to_bytes(), version.row()));
        for segment in segments {
            batch.segments.push((*id, *segment, version.segment(*segment)));
        }
    }
    // A failed sync means that the bytes may be missing: then they are not to be named. They
    // stay usable for this process only.
    if let Err(error) = sync(may, shared, changes) {
        // That it succeeds says nothing: there may have been nothing to write.
        shared.note_disk(Err(&error));
        tracing::error!(%error, "cache disk does not sync; what is new in the cache is for this run only");
        batch.objects.clear();
        batch.segments.clear();
        changes.versions.drain().for_each(|(_, (version, _))| version.distrust());
    }
    batch.removed.extend(&changes.removed);
    batch.listings.extend(changes.listings.iter().map(|(name, row)| (&name[..], row.as_ref())));
    batch.uploads.extend(changes.uploads.iter().map(|(id, row)| (&id[..], row.as_ref())));
    batch.verdicts.extend(changes.verdicts.iter().map(|(of, row)| (of.as_str(), &row[..])));
    let done = apply(may, shared, index, |index| index.apply(may, &batch));
    shared.space.set_index(index.bytes(may));
    if done.is_ok() && !closing {
        reserve::take(may, &shared.dir, shared.space.limits().min_free);
    }
    done
}

/// Puts the bytes of changed blocks onto the medium.
fn sync(may: &MayBlock, shared: &Shared, changes: &Changes) -> io::Result<()> {
    let changed = || changes.versions.values().filter(|(_, segments)| !segments.is_empty());
    match changed().count() {
        0 => Ok(()),
        1..=FILES_MAX => {
            // All of them, so that no error waits for a later batch.
            let mut done = Ok(());
            for (version, _) in changed() {
                done = version.sync(may).and(done);
            }
            done
        }
        _ => shared.dir.sync(may),
    }
}

/// redb refuses everything after its first I/O error (`StorageError::PreviousIo`), until it is
/// opened again. What is kept for the index may be all that was missing; if not, it can at least be
/// read until it is tried again.
pub(in crate::cache) fn apply(
    may: &MayBlock,
    shared: &Shared,
    index: &Index,
    act: impl Fn(&Index) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    let Err(error) = act(index) else { return Ok(()) };
    if shared.committer.is_closed() {
        return Err(error);
    }
    let given = reserve::give(may, &shared.dir);
    tracing::warn!(%error, given, "index not written; opening it again");
    index.reopen(may)?;
    let again = act(index);
    if again.is_err() {
        index.reopen(may)?;
    }
    again
}
