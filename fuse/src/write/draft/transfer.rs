//! The upload of a file under change: which parts were sent, in which state.

use std::io;
use std::time::SystemTime;

use super::upload::Upload;
use super::{Draft, PartState, Phase, UploadId};
use crate::origin::Part;

impl Draft {
    pub(in crate::write) fn upload(&self) -> Option<UploadId> {
        self.state().upload.as_ref().map(|upload| upload.id.clone())
    }

    /// Notes that an upload is about to be begun, durably: its id may never be learnt.
    pub(in crate::write) fn beginning_upload(&self, key: &str) -> io::Result<()> {
        self.record.beginning_upload(key)?;
        self.state().begins = Some((key.to_owned(), SystemTime::now()));
        Ok(())
    }

    /// An upload that was asked for and whose id was never learnt.
    pub(in crate::write) fn begins(&self) -> Option<(String, SystemTime)> {
        self.state().begins.clone()
    }

    pub(in crate::write) fn forget_begins(&self) {
        self.state().begins = None;
    }

    pub(in crate::write) fn begin_upload(&self, id: UploadId) {
        self.record.upload(Some(&id.id));
        let mut state = self.state();
        state.begins = None;
        state.upload = Some(Upload::new(id));
    }

    /// Takes the upload out, as one that is of no use any more.
    pub(in crate::write) fn take_upload(&self) -> Option<UploadId> {
        self.state().upload.take().map(|upload| upload.id)
    }

    /// Notes that an upload is gone from the origin.
    pub(in crate::write) fn upload_ended(&self) {
        self.record.upload(None);
    }

    /// Notes that an upload may still be there: the next mount aborts it.
    pub(in crate::write) fn upload_stays(&self) {
        self.state().unaborted = true;
    }

    /// Claims a part for sending by a commit, as long as it is in the snapshot.
    pub(in crate::write) fn claim(&self, part: u32, len: u64) -> Option<PartState> {
        let mut state = self.state();
        let size = state.contents.size;
        let now = state.contents.part(&self.plan, part, size);
        let claimed = PartState { len, ..now };
        state.upload.as_mut()?.claim(part, claimed).then_some(claimed)
    }

    /// Claims a part that the writer has passed. Not while a commit chooses what to send.
    pub(in crate::write) fn claim_passed(&self, part: u32) -> Option<PartState> {
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
    pub(in crate::write) fn part_sent(
        &self,
        id: &UploadId,
        part: u32,
        of: PartState,
        done: Option<Part>,
    ) {
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
    pub(in crate::write) async fn until_sent(&self) {
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
    pub(in crate::write) fn whole(&self, wanted: &[PartState]) -> Result<Vec<Part>, Vec<u32>> {
        match &self.state().upload {
            Some(upload) => upload.whole(wanted),
            None => Err((1..).zip(wanted).map(|(number, _)| number).collect()),
        }
    }

    /// Whether parts were sent that the object will not have.
    pub(in crate::write) fn exceeds(&self, count: usize) -> bool {
        self.state().upload.as_ref().is_some_and(|upload| upload.exceeds(count))
    }

    /// Whether a part changed since it was in this state.
    pub(in crate::write) fn changed_since(&self, part: u32, of: PartState) -> bool {
        let state = self.state();
        let size = state.contents.size;
        let now = state.contents.part(&self.plan, part, size);
        now.generation != of.generation || now.len < of.len
    }

    pub(in crate::write) fn set_sums(&self, part: u32, of: PartState, sums: Vec<u32>) {
        self.state().contents.set_sums(part, of, sums);
    }
}

/// A part being sent; given back when dropped.
pub(in crate::write) struct Claim<'a> {
    draft: &'a Draft,
    upload: &'a UploadId,
    part: u32,
    of: PartState,
    done: Option<Part>,
}

impl<'a> Claim<'a> {
    pub(in crate::write) fn new(
        draft: &'a Draft,
        upload: &'a UploadId,
        part: u32,
        of: PartState,
    ) -> Self {
        Self { draft, upload, part, of, done: None }
    }

    pub(in crate::write) fn done(mut self, part: Part) {
        self.done = Some(part);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.draft.part_sent(self.upload, self.part, self.of, self.done.take());
    }
}
