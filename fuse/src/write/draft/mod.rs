//! A file under change: one object of one type, from its open for writing to the end of its last
//! writer.
//!
//! It owns all that is known of the change: the name (through its node), the version that it was
//! opened over, the bytes on the cache's disk, what the origin has of them, the handles, the gate
//! and one [`Phase`]. Directory entry, inode mode and nodeid refer to it and keep nothing of
//! their own.
//!
//! Rules: origin first, memory second, under the gate. WRITE and sizes take the lock of memory
//! only. A request that changes the origin is announced ([`Draft::sending`]) before it is sent,
//! so that whoever finds the gate free afterwards knows that its end must be asked for, also
//! where the one who sent it was dropped.

mod changes;
mod contents;
mod inquiry;
mod leftover;
mod live;
mod lone;
pub mod phase;
mod record;
mod spares;
mod sums;
mod transfer;
mod transitions;
mod upload;

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

use tokio::sync::{Notify, watch};

pub use leftover::{Leftover, PendingId, leftovers};
pub use live::LiveUploads;
pub use lone::LoneUploads;
pub use phase::{Operation, Outcome, Phase, Refusal};
pub use record::{Author, Owner};

pub(super) use contents::{PartState, Snapshot};
pub(super) use spares::Spares;
pub(super) use sums::by_block;
pub(super) use transfer::Claim;
pub(super) use upload::UploadId;

use super::WriteError;
use super::parts::{OBJECT_MAX, PartPlan};
use crate::blocking::{MayBlock, Turns};
use crate::cache::StagingFile;
use crate::model::version::ObjectInfo;
use crate::namespace::file::FileNode;
use crate::origin::{Condition, OriginError};
use crate::page_cache;
use contents::Contents;
use inquiry::Inquiry;
use record::Record;
use upload::Upload;

/// A file under change. All handles of its name share it.
pub struct Draft {
    /// The node under which it is shown; its place is the file's.
    pub node: Arc<FileNode>,
    staging: StagingFile,
    plan: PartPlan,
    record: Record,
    /// Held while bytes are written; by one alone while the file is cut or extended.
    extent: RwLock<()>,
    /// Taken before the lock of the record's notes and the node's.
    state: Mutex<State>,
    /// Asked for when it was opened.
    inquiry: watch::Sender<Inquiry>,
    /// A part is not being sent any more.
    part_ended: Notify,
    /// Held by whoever changes what the origin has of it, or its name. Taken after the gates of
    /// the directories above it.
    pub(super) gate: tokio::sync::Mutex<()>,
}

struct State {
    phase: Phase,
    /// What the open saw, or what was stored since: the origin must still hold it.
    seen: Condition,
    /// Whether an object that appeared meanwhile is EEXIST to the writer.
    exclusive: bool,
    contents: Contents,
    /// What the origin holds as an object.
    stored: Option<Base>,
    upload: Option<Upload>,
    /// An upload that was asked for, by key and time: its id may never be learnt.
    begins: Option<(String, SystemTime)>,
    /// Whether an upload could not be aborted, so that the record is still needed.
    unaborted: bool,
    /// Stores whose answer may have been lost, and what each would have stored.
    sent: Vec<Attempt>,
    /// Whether the request in doubt is a removal.
    removing: bool,
    /// The generation of which a close or fsync has told that it is not stored.
    reported: Option<u64>,
    writers: u32,
}

/// A request to store, by its nonce.
struct Attempt {
    writer: String,
    would_store: Base,
}

/// A state of the file that the origin holds.
#[derive(Clone, Copy)]
struct Base {
    generation: u64,
    size: u64,
}

/// What a file is opened over.
pub struct Beginning {
    /// What the origin must still hold at the first commit.
    pub seen: Condition,
    /// Whether it is to be new, so that an object that appears meanwhile is EEXIST.
    pub exclusive: bool,
    /// Whether emptiness itself is to be stored.
    pub dirty: bool,
    /// How many handles there are through which can be written.
    pub writers: u32,
}

/// What is left to do for whoever ends the last writer.
pub(super) enum Remains {
    /// The origin holds all of it.
    Stored,
    /// Nothing: it has no name, or its writer was told that it is not stored.
    Nothing,
    /// Bytes that nobody was told about.
    Untold,
}

impl Draft {
    /// Begins a change with one writer. Nothing of the origin is asked.
    pub(super) fn new(
        node: Arc<FileNode>,
        staging: StagingFile,
        plan: PartPlan,
        beginning: Beginning,
        author: Author,
        spares: Arc<Spares>,
    ) -> Arc<Self> {
        let mut contents = Contents::new();
        let clean = !beginning.dirty;
        let state = State {
            phase: if clean { Phase::Stored } else { Phase::Writing },
            seen: beginning.seen,
            exclusive: beginning.exclusive,
            stored: clean.then(|| Base { generation: contents.generation(), size: 0 }),
            contents,
            upload: None,
            begins: None,
            unaborted: false,
            sent: Vec::new(),
            removing: false,
            reported: None,
            writers: beginning.writers,
        };
        let record = Record::beside(staging.path(), author, spares);
        let gate = tokio::sync::Mutex::new(());
        let state = Mutex::new(state);
        let inquiry = watch::Sender::new(Inquiry::Over);
        let part_ended = Notify::new();
        let extent = RwLock::default();
        Arc::new(Self { node, staging, plan, record, extent, state, inquiry, part_ended, gate })
    }

    /// Where the bytes are.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    pub(super) fn staging(&self) -> &StagingFile {
        &self.staging
    }

    /// Turns at the disk that the bytes are on.
    pub fn calls(&self) -> &Arc<Turns> {
        self.staging.calls()
    }

    /// Turns there of the engine's threads.
    pub fn threads(&self) -> &Arc<Turns> {
        self.staging.threads()
    }

    /// As [`Draft::note_down`], for one who may wait.
    pub(super) fn write_down(&self, may: &MayBlock) {
        self.record.write(may);
    }

    /// Puts what is known of it on the disk, for a later process: before it is relied on that the
    /// origin was asked, or somebody is answered.
    pub async fn note_down(&self) {
        if self.record.waits() {
            self.calls().in_place(|may| self.record.write(may)).await;
        }
    }

    pub(super) fn file(&self) -> &Arc<File> {
        self.staging.file()
    }

    /// The object's key.
    pub fn key(&self) -> String {
        self.node.key()
    }

    /// Writes at any offset. Returns the parts that a sequential writer has just passed.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`], ESTALE once another version took the name, ENOSPC where the
    /// cache has no room, or what its disk reports.
    pub fn write(
        &self,
        may: &MayBlock,
        offset: u64,
        data: &[u8],
    ) -> Result<Vec<Range<u64>>, WriteError> {
        let end = offset.saturating_add(data.len() as u64);
        if end > OBJECT_MAX {
            return Err(WriteError::TooLarge);
        }
        self.state().allowed(Operation::Write)?;
        if data.is_empty() {
            return Ok(Vec::new());
        }
        self.staging.reserve(may, end)?;
        // Where there are no bytes there is nothing to lose, and nothing to note.
        if !self.record.is_begun() {
            let seen = self.seen();
            self.record.begin(may, &self.node, &seen);
        }
        // While the bytes are at hand.
        let sums = sums::slices(offset, data);
        let whole = self.extent.read().unwrap_or_else(PoisonError::into_inner);
        let turn = {
            let mut state = self.state();
            // It may have ended meanwhile.
            state.allowed(Operation::Write)?;
            state.contents.begin_write()
        };
        let written = {
            let _call = self.calls().call();
            self.file().write_all_at(data, offset)
        };
        let mut state = self.state();
        if let Err(error) = written {
            state.contents.failed(offset..end);
            self.became_dirty(state);
            drop(whole);
            // What lies beyond the end would show up once the file is extended.
            let _whole = self.extent.write().unwrap_or_else(PoisonError::into_inner);
            let _ = self.file().set_len(self.size());
            self.record.write(may);
            return Err(error.into());
        }
        let passed = state.contents.wrote(&self.plan, offset..end, &sums, turn);
        let size = state.contents.size;
        self.became_dirty(state);
        self.node.set_size(size);
        drop(whole);
        if self.record.waits() {
            self.record.write(may);
        }
        Ok(passed)
    }

    /// Cuts or extends.
    ///
    /// # Errors
    /// As [`Draft::write`].
    pub fn truncate(&self, may: &MayBlock, size: u64) -> Result<(), WriteError> {
        if size > OBJECT_MAX {
            return Err(WriteError::TooLarge);
        }
        // Zeros take no room. Who asks for more of them than there could be room for is refused here,
        // not by the bill for what would be sent.
        self.staging.could_have(size)?;
        // Nobody who asks about the file waits for its disk.
        let whole = self.extent.write().unwrap_or_else(PoisonError::into_inner);
        {
            let state = self.state();
            state.allowed(Operation::Truncate)?;
            if size == state.contents.size {
                return Ok(());
            }
        }
        {
            let _call = self.calls().call();
            self.file().set_len(size)?;
        }
        self.staging.shrink(size);
        let mut state = self.state();
        state.contents.resized(size);
        self.became_dirty(state);
        self.node.set_size(size);
        drop(whole);
        self.record.write(may);
        Ok(())
    }

    /// The size in bytes, once no change of it is under way.
    pub(super) fn settled_size(&self, _: &MayBlock) -> u64 {
        let _whole = self.extent.read().unwrap_or_else(PoisonError::into_inner);
        self.size()
    }

    /// Waits for writes that are under way.
    pub(super) fn wait_for_writes(&self, _: &MayBlock) {
        drop(self.extent.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn became_dirty(&self, mut state: MutexGuard<'_, State>) {
        if state.phase == Phase::Stored {
            state.phase = Phase::Writing;
            // Under the lock: its lines are in the order of what happened.
            self.record.dirty();
        }
    }

    /// Reads what was written, up to the end, where it is in memory.
    pub fn read_now(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let len = self.size().saturating_sub(offset).min(len as u64) as usize;
        let mut out = vec![0; len];
        page_cache::read(self.file(), &mut out, offset).ok()?;
        Some(out)
    }

    /// Reads what was written, up to the end.
    ///
    /// # Errors
    /// What the cache disk reports.
    pub fn read(&self, _: &MayBlock, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let size = self.size();
        let len = size.saturating_sub(offset).min(len as u64) as usize;
        let mut out = vec![0; len];
        let mut filled = 0;
        let _call = self.calls().call();
        while filled < len {
            match self.file().read_at(&mut out[filled..], offset + filled as u64)? {
                // Cut by somebody meanwhile.
                0 => break,
                read => filled += read,
            }
        }
        out.truncate(filled);
        Ok(out)
    }

    /// Asks the kernel to write a range to the disk and, where that is done, to drop its pages:
    /// what was sent is not needed in memory.
    pub(super) fn leave_page_cache(&self, _: &MayBlock, offset: u64, len: u64) {
        let Some(len) = NonZeroU64::new(len) else { return };
        page_cache::leave(self.file(), offset, Some(len));
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.state().contents.size
    }

    /// Where it stands with the origin.
    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    /// Whether the origin does not hold the present state, so that a close has something to do.
    pub fn is_dirty(&self) -> bool {
        !matches!(self.phase(), Phase::Stored | Phase::Unlinked | Phase::Sealed)
    }

    /// Whether somebody else was faster, so that no open may join it any more.
    pub fn is_superseded(&self) -> bool {
        self.phase() == Phase::Superseded
    }

    /// Adds a writer. `false`: its last writer has closed, and what he left is being finished.
    ///
    /// # Errors
    /// ESTALE where the name leads to another version by now.
    pub fn join(&self) -> Result<bool, WriteError> {
        let mut state = self.state();
        state.allowed(Operation::Write)?;
        if state.writers == 0 {
            return Ok(false);
        }
        state.writers += 1;
        Ok(true)
    }

    /// Takes a writer back; says whether it was the last.
    pub fn part(&self) -> bool {
        let mut state = self.state();
        state.writers = state.writers.saturating_sub(1);
        state.writers == 0
    }

    /// Notes a handle that the kernel gets of it.
    pub fn handle(&self, fh: u64) {
        self.record.handle(fh);
    }

    /// Whether it has a writer.
    pub fn has_writer(&self) -> bool {
        self.state().writers > 0
    }

    /// Whether its last writer has closed, and what he left is still being stored.
    pub fn is_finishing(&self) -> bool {
        let state = self.state();
        state.writers == 0 && state.phase != Phase::Sealed
    }

    /// Whether its name was taken away.
    pub fn is_unlinked(&self) -> bool {
        self.phase() == Phase::Unlinked
    }

    /// Whether it has ended.
    pub fn is_sealed(&self) -> bool {
        self.phase() == Phase::Sealed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn allowed(&self, operation: Operation) -> Result<(), WriteError> {
        match self.phase.outcome(operation) {
            Outcome::Refuse(Refusal::Superseded) => Err(self.conflict()),
            Outcome::Refuse(Refusal::Nameless) => Err(WriteError::Absent),
            Outcome::Refuse(Refusal::Ended) => Err(WriteError::Ended),
            _ => Ok(()),
        }
    }

    /// Leaves a commit or a doubt: what is here is stored or it is not.
    fn settle(&mut self) {
        let clean = self.contents.is(self.stored.map(|base| base.generation));
        self.phase = if clean { Phase::Stored } else { Phase::Writing };
        self.removing = false;
    }

    fn conflict(&self) -> WriteError {
        match self.exclusive {
            true => WriteError::Exists,
            false => OriginError::Conflict.into(),
        }
    }
}

fn seen_of(info: &ObjectInfo) -> Condition {
    info.etag.clone().map_or(Condition::Always, Condition::Matches)
}
