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

mod contents;
pub mod phase;
mod record;
mod upload;

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

pub use phase::{Operation, Outcome, Phase, Refusal};

pub(super) use contents::{PartState, Snapshot};
use tokio::sync::Notify;

pub use record::{Leftover, Owner, PendingId, leftovers};
pub(super) use upload::UploadId;

use super::WriteError;
use super::parts::{OBJECT_MAX, PartPlan};
use crate::cache::StagingFile;
use crate::model::version::ObjectInfo;
use crate::namespace::file::FileNode;
use crate::origin::{Condition, OriginError, Part};
use contents::Contents;
use record::Record;
use upload::Upload;

/// A file under change. All handles of its name share it.
pub struct Draft {
    /// The node under which it is shown; its place is the file's.
    pub node: Arc<FileNode>,
    staging: StagingFile,
    plan: PartPlan,
    record: Record,
    /// Taken before the record's lock and the node's.
    state: Mutex<State>,
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
    /// The generation that the origin holds as an object.
    stored: Option<u64>,
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
    generation: u64,
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
    /// The origin holds all of it; the checksums of all blocks, where they are known.
    Stored(Option<Vec<u32>>),
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
        owner: Owner,
    ) -> Arc<Self> {
        let contents = Contents::new();
        let clean = !beginning.dirty;
        let state = State {
            phase: if clean { Phase::Stored } else { Phase::Writing },
            seen: beginning.seen,
            exclusive: beginning.exclusive,
            stored: clean.then_some(contents.generation),
            contents,
            upload: None,
            begins: None,
            unaborted: false,
            sent: Vec::new(),
            removing: false,
            reported: None,
            writers: beginning.writers,
        };
        let record = Record::beside(staging.path(), owner);
        let gate = tokio::sync::Mutex::new(());
        let state = Mutex::new(state);
        Arc::new(Self { node, staging, plan, record, state, part_ended: Notify::new(), gate })
    }

    /// Where the bytes are.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    pub(super) fn staging(&self) -> &StagingFile {
        &self.staging
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
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<Vec<u32>, WriteError> {
        let end = offset.saturating_add(data.len() as u64);
        if end > OBJECT_MAX {
            return Err(WriteError::TooLarge);
        }
        self.state().allowed(Operation::Write)?;
        if data.is_empty() {
            return Ok(Vec::new());
        }
        self.staging.reserve(end).map_err(io::Error::from)?;
        // Where there are no bytes there is nothing to lose, and nothing to note.
        if !self.record.is_begun() {
            let seen = self.seen();
            self.record.begin(&self.node, &seen);
        }
        self.file().write_all_at(data, offset)?;
        let mut state = self.state();
        let passed = state.contents.wrote(&self.plan, offset, end);
        let size = state.contents.size;
        self.became_dirty(state);
        self.node.set_size(size);
        Ok(passed)
    }

    /// Cuts or extends.
    ///
    /// # Errors
    /// As [`Draft::write`].
    pub fn truncate(&self, size: u64) -> Result<(), WriteError> {
        if size > OBJECT_MAX {
            return Err(WriteError::TooLarge);
        }
        let mut state = self.state();
        state.allowed(Operation::Truncate)?;
        if size == state.contents.size {
            return Ok(());
        }
        self.file().set_len(size)?;
        self.staging.shrink(size);
        state.contents.resized(&self.plan, size);
        self.became_dirty(state);
        self.node.set_size(size);
        Ok(())
    }

    fn became_dirty(&self, mut state: MutexGuard<'_, State>) {
        if state.phase == Phase::Stored {
            state.phase = Phase::Writing;
            // Under the lock: its lines are in the order of what happened.
            self.record.dirty();
        }
    }

    /// Reads what was written, up to the end.
    ///
    /// # Errors
    /// What the cache disk reports.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let size = self.size();
        let len = size.saturating_sub(offset).min(len as u64) as usize;
        let mut out = vec![0; len];
        let mut filled = 0;
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
    /// what was sent is not needed in memory (mm/fadvise.c: DONTNEED begins to write dirty pages
    /// and drops clean ones).
    pub(super) fn leave_page_cache(&self, offset: u64, len: u64) {
        let len = NonZeroU64::new(len);
        let _ = rustix::fs::fadvise(self.file(), offset, len, rustix::fs::Advice::DontNeed);
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

    /// Whether it has ended.
    pub fn is_sealed(&self) -> bool {
        self.phase() == Phase::Sealed
    }

    /// What the table says of an operation now; an error where it is refused.
    pub(super) fn step(&self, operation: Operation) -> Result<Outcome, WriteError> {
        let state = self.state();
        match state.phase.outcome(operation) {
            Outcome::Refuse(_) => state.allowed(operation).map(|()| Outcome::Nothing),
            other => Ok(other),
        }
    }

    /// What the next store is to replace.
    pub(super) fn seen(&self) -> Condition {
        self.state().seen.clone()
    }

    /// Begins a commit: the state that it is to store. The gate is held. Ends when dropped,
    /// however that comes to be.
    pub(super) fn commit(&self) -> Commit<'_> {
        let mut state = self.state();
        state.phase = Phase::Committing;
        let snapshot = state.contents.snapshot(&self.plan);
        drop(state);
        Commit { draft: self, snapshot }
    }

    /// Notes a request that may store `snapshot` from now on.
    pub(super) fn sending(&self, writer: &str, snapshot: &Snapshot) {
        let mut state = self.state();
        state.phase = Phase::InDoubt;
        state.removing = false;
        state.sent.push(Attempt { writer: writer.to_owned(), generation: snapshot.generation });
        drop(state);
        self.record.sent(writer);
    }

    /// Notes a request that may remove the object from now on.
    pub(super) fn removing(&self) {
        let mut state = self.state();
        state.phase = Phase::InDoubt;
        state.removing = true;
    }

    /// Whether the request whose end is not known was to remove the object.
    pub(super) fn is_removing(&self) -> bool {
        self.state().removing
    }

    /// Notes that the request in doubt had no effect.
    pub(super) fn unchanged(&self) {
        self.state().settle();
    }

    /// Whether an object with this nonce is a store of this draft.
    pub(super) fn wrote(&self, writer: Option<&str>) -> bool {
        let state = self.state();
        writer.is_some_and(|writer| state.sent.iter().any(|attempt| attempt.writer == writer))
    }

    /// Notes that the origin holds what the request with this nonce stored.
    pub(super) fn stored(&self, writer: &str, info: &ObjectInfo) {
        let mut state = self.state();
        let Some(attempt) = state.sent.iter().find(|attempt| attempt.writer == writer) else {
            return;
        };
        state.stored = Some(attempt.generation);
        state.seen = seen_of(info);
        state.sent.clear();
        state.exclusive = false;
        // What was sent under another nonce belongs to an object that will not be.
        if state.upload.as_ref().is_some_and(|upload| upload.id.writer == writer) {
            state.upload = None;
        }
        state.settle();
        self.record.stored(state.phase == Phase::Stored, &state.seen);
        drop(state);
        self.node.set_stored(info);
    }

    /// Notes that it is another object now, of the same bytes: a copy under a new name.
    pub(super) fn moved(&self, info: &ObjectInfo) {
        let mut state = self.state();
        state.seen = seen_of(info);
        self.record.moved(&self.node, &state.seen);
    }

    /// Notes that its name was removed.
    pub(super) fn unlink(&self) {
        let mut state = self.state();
        if state.phase != Phase::Sealed {
            state.phase = Phase::Unlinked;
        }
        self.record.unlinked();
    }

    /// Notes that somebody else was faster.
    pub(super) fn supersede(&self) {
        self.state().phase = Phase::Superseded;
    }

    /// Counts the changes so far.
    pub fn generation(&self) -> u64 {
        self.state().contents.generation
    }

    /// Notes that a close or fsync tells its process that what was there at this generation is
    /// not stored.
    pub fn report(&self, generation: u64) {
        self.state().reported = Some(generation);
    }

    /// What is left to do after its last writer.
    pub(super) fn remains(&self) -> Remains {
        let state = self.state();
        match state.phase {
            Phase::Stored => Remains::Stored(state.contents.sums(&self.plan)),
            Phase::Unlinked | Phase::Sealed => Remains::Nothing,
            _ if state.reported == Some(state.contents.generation) => Remains::Nothing,
            _ => Remains::Untold,
        }
    }

    /// Ends it. The caller has moved or removed the bytes.
    pub(super) fn seal(&self) {
        let mut state = self.state();
        state.phase = Phase::Sealed;
        if !state.unaborted {
            self.record.remove();
        }
    }

    /// What a conflict means to its writer.
    pub(super) fn conflict(&self) -> WriteError {
        self.state().conflict()
    }

    pub(super) fn upload(&self) -> Option<UploadId> {
        self.state().upload.as_ref().map(|upload| upload.id.clone())
    }

    /// Notes that an upload is about to be begun, durably: its id may never be learnt.
    pub(super) fn beginning_upload(&self, key: &str) -> io::Result<()> {
        self.record.beginning_upload(key)?;
        self.state().begins = Some((key.to_owned(), SystemTime::now()));
        Ok(())
    }

    /// An upload that was asked for and whose id was never learnt.
    pub(super) fn begins(&self) -> Option<(String, SystemTime)> {
        self.state().begins.clone()
    }

    pub(super) fn forget_begins(&self) {
        self.state().begins = None;
    }

    pub(super) fn begin_upload(&self, id: UploadId) {
        self.record.upload(Some(&id.id));
        let mut state = self.state();
        state.begins = None;
        state.upload = Some(Upload::new(id));
    }

    /// Takes the upload out, as one that is of no use any more.
    pub(super) fn take_upload(&self) -> Option<UploadId> {
        self.state().upload.take().map(|upload| upload.id)
    }

    /// Notes that an upload is gone from the origin.
    pub(super) fn upload_ended(&self) {
        self.record.upload(None);
    }

    /// Notes that an upload may still be there: the next mount aborts it.
    pub(super) fn upload_stays(&self) {
        self.state().unaborted = true;
    }

    /// Claims a part for sending by a commit, as long as it is in the snapshot.
    pub(super) fn claim(&self, part: u32, len: u64) -> Option<PartState> {
        let mut state = self.state();
        let size = state.contents.size;
        let now = state.contents.part(&self.plan, part, size);
        let claimed = PartState { len, ..now };
        state.upload.as_mut()?.claim(part, claimed).then_some(claimed)
    }

    /// Claims a part that the writer has passed. Not while a commit chooses what to send.
    pub(super) fn claim_passed(&self, part: u32) -> Option<PartState> {
        let mut state = self.state();
        let size = state.contents.size;
        let now = state.contents.part(&self.plan, part, size);
        let whole = self.plan.range(part);
        if state.phase != Phase::Writing || now.len != whole.end - whole.start {
            return None;
        }
        state.upload.as_mut()?.claim(part, now).then_some(now)
    }

    /// Notes how the sending of a part ended.
    pub(super) fn part_sent(&self, id: &UploadId, part: u32, of: PartState, done: Option<Part>) {
        let mut state = self.state();
        let Some(upload) = state.upload.as_mut().filter(|upload| upload.id == *id) else { return };
        if let Some(done) = &done {
            self.record.part(of, done);
        }
        upload.sent(part, of, done);
        drop(state);
        self.part_ended.notify_waiters();
    }

    /// Waits until no part is being sent.
    pub(super) async fn until_sent(&self) {
        loop {
            let part_ended = self.part_ended.notified();
            tokio::pin!(part_ended);
            part_ended.as_mut().enable();
            if !self.state().upload.as_ref().is_some_and(Upload::is_sending) {
                return;
            }
            part_ended.await;
        }
    }

    /// The parts of the object to be, or those that are to be sent first.
    pub(super) fn whole(&self, wanted: &[PartState]) -> Result<Vec<Part>, Vec<u32>> {
        match &self.state().upload {
            Some(upload) => upload.whole(wanted),
            None => Err((1..).zip(wanted).map(|(number, _)| number).collect()),
        }
    }

    /// Whether parts were sent that the object will not have.
    pub(super) fn exceeds(&self, count: usize) -> bool {
        self.state().upload.as_ref().is_some_and(|upload| upload.exceeds(count))
    }

    /// Whether a part changed since it was in this state.
    pub(super) fn changed_since(&self, part: u32, of: PartState) -> bool {
        let state = self.state();
        let size = state.contents.size;
        let now = state.contents.part(&self.plan, part, size);
        now.generation != of.generation || now.len < of.len
    }

    pub(super) fn set_sums(&self, part: u32, of: PartState, sums: Vec<u32>) {
        self.state().contents.set_sums(part, of, sums);
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
        let clean = self.stored == Some(self.contents.generation);
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

/// A commit under way.
pub(super) struct Commit<'a> {
    draft: &'a Draft,
    pub(super) snapshot: Snapshot,
}

impl Drop for Commit<'_> {
    fn drop(&mut self) {
        let mut state = self.draft.state();
        // Not where it has ended otherwise, or where its last request is in doubt.
        if state.phase == Phase::Committing {
            state.settle();
        }
    }
}

/// A part being sent; given back when dropped.
pub(super) struct Claim<'a> {
    draft: &'a Draft,
    upload: &'a UploadId,
    part: u32,
    of: PartState,
    done: Option<Part>,
}

impl<'a> Claim<'a> {
    pub(super) fn new(draft: &'a Draft, upload: &'a UploadId, part: u32, of: PartState) -> Self {
        Self { draft, upload, part, of, done: None }
    }

    pub(super) fn done(mut self, part: Part) {
        self.done = Some(part);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.draft.part_sent(self.upload, self.part, self.of, self.done.take());
    }
}
