//! What changes where a file under change stands with the origin. The gate is held.

use super::{Attempt, Base, Draft, Operation, Outcome, Phase, Remains, Snapshot, State, seen_of};
use crate::blocking::MayBlock;
use crate::model::version::ObjectInfo;
use crate::origin::Condition;
use crate::write::WriteError;

impl Draft {
    /// What the table says of an operation now; an error where it is refused.
    pub(in crate::write) fn step(&self, operation: Operation) -> Result<Outcome, WriteError> {
        let state = self.state();
        match state.phase.outcome(operation) {
            Outcome::Refuse(_) => state.allowed(operation).map(|()| Outcome::Nothing),
            other => Ok(other),
        }
    }

    /// What the next store is to replace.
    pub(in crate::write) fn seen(&self) -> Condition {
        self.state().seen.clone()
    }

    /// Begins a commit: the state that it is to store. The gate is held. Ends when dropped,
    /// however that comes to be.
    pub(in crate::write) fn commit(&self) -> Commit<'_> {
        self.note_answer();
        let mut state = self.state();
        state.phase = Phase::Committing;
        let snapshot = state.contents.snapshot();
        drop(state);
        Commit { draft: self, snapshot }
    }

    /// Notes a request that may store `snapshot` from now on.
    pub(in crate::write) fn sending(&self, writer: &str, snapshot: &Snapshot) {
        let mut state = self.state();
        state.phase = Phase::InDoubt;
        state.removing = false;
        let would_store = Base { generation: snapshot.generation, size: snapshot.size };
        state.sent.push(Attempt { writer: writer.to_owned(), would_store });
        drop(state);
        self.record.sent(writer);
    }

    /// Notes a request that may remove the object from now on.
    pub(in crate::write) fn removing(&self) {
        let mut state = self.state();
        state.phase = Phase::InDoubt;
        state.removing = true;
    }

    /// Whether the request whose end is not known was to remove the object.
    pub(in crate::write) fn is_removing(&self) -> bool {
        self.state().removing
    }

    /// Notes that the request in doubt had no effect.
    pub(in crate::write) fn unchanged(&self) {
        self.state().settle();
    }

    /// Whether an object with this nonce is a store of this draft.
    pub(in crate::write) fn wrote(&self, writer: Option<&str>) -> bool {
        let state = self.state();
        writer.is_some_and(|writer| state.sent.iter().any(|attempt| attempt.writer == writer))
    }

    /// Notes that the origin holds what the request with this nonce stored.
    pub(in crate::write) fn stored(&self, writer: &str, info: &ObjectInfo) {
        let mut state = self.state();
        let Some(attempt) = state.sent.iter().find(|attempt| attempt.writer == writer) else {
            return;
        };
        let base = attempt.would_store;
        state.stored = Some(base);
        state.contents.eager_from(base.size);
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
        self.end_inquiry();
        self.node.set_stored(info);
    }

    /// Notes that it is another object now, of the same bytes: a copy under a new name.
    pub(in crate::write) fn moved(&self, info: &ObjectInfo) {
        let mut state = self.state();
        state.seen = seen_of(info);
        self.record.moved(&self.node, &state.seen);
    }

    /// Notes that its name was removed.
    pub(in crate::write) fn unlink(&self) {
        let mut state = self.state();
        if state.phase != Phase::Sealed {
            state.phase = Phase::Unlinked;
        }
        self.record.unlinked();
    }

    /// Notes that somebody else was faster.
    pub(in crate::write) fn supersede(&self) {
        self.state().phase = Phase::Superseded;
    }

    /// Counts the changes so far.
    pub fn generation(&self) -> u64 {
        self.state().contents.generation()
    }

    /// Notes that a close or fsync tells its process that what was there at this generation is
    /// not stored.
    pub fn report(&self, generation: u64) {
        self.state().reported = Some(generation);
    }

    /// What is left to do after its last writer.
    pub(in crate::write) fn remains(&self) -> Remains {
        self.state().remains()
    }

    /// As [`Draft::remains`]; no write begins from now on, and those under way are waited for.
    pub(in crate::write) async fn end_writes(&self) -> Remains {
        let (remains, generation) = {
            let mut state = self.state();
            let remains = state.remains();
            let is_unlinked = state.phase == Phase::Unlinked;
            state.phase = Phase::Sealed;
            (remains, (!is_unlinked).then(|| state.contents.generation()))
        };
        self.calls().in_place(|may| self.wait_for_writes(may)).await;
        match generation {
            // One that was under way was told that it is written.
            Some(before) if !self.state().contents.is(Some(before)) => Remains::Untold,
            _ => remains,
        }
    }

    /// Ends it. The caller has moved or removed the bytes.
    pub(in crate::write) fn seal(&self) {
        self.state().phase = Phase::Sealed;
    }

    /// Ends its record, unless that is still needed. The caller has moved or removed the bytes.
    pub(in crate::write) fn end_record(&self, may: &MayBlock) {
        let unaborted = self.state().unaborted;
        if !unaborted {
            self.record.remove(may);
        }
    }

    /// What a conflict means to its writer.
    pub(in crate::write) fn conflict(&self) -> WriteError {
        self.state().conflict()
    }
}

impl State {
    fn remains(&self) -> Remains {
        match self.phase {
            Phase::Stored => Remains::Stored,
            Phase::Unlinked | Phase::Sealed => Remains::Nothing,
            _ if self.contents.is(self.reported) => Remains::Nothing,
            _ => Remains::Untold,
        }
    }
}

/// A commit under way.
pub(in crate::write) struct Commit<'a> {
    draft: &'a Draft,
    pub(in crate::write) snapshot: Snapshot,
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
