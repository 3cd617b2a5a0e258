//! The upload of a file under change: which parts were sent, in which state.

use std::io;
use std::ops::Range;
use std::time::SystemTime;

use super::live::LiveUpload;
use super::upload::Upload;
use super::{Base, Draft, PartState, Phase, Snapshot, State, UploadId};
use crate::blocking::MayBlock;
use crate::origin::{Condition, CopySource, Part};
use crate::write::layout::Layout;

impl Draft {
    pub(in crate::write) fn upload(&self) -> Option<UploadId> {
        self.state().upload.as_ref().map(|upload| upload.id.clone())
    }

    /// Notes that an upload is about to be begun, durably: its id may never be learnt.
    pub(in crate::write) fn beginning_upload(&self, may: &MayBlock, key: &str) -> io::Result<()> {
        self.record.beginning_upload(may, key)?;
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

    pub(in crate::write) fn begin_upload(&self, id: UploadId, layout: Layout, live: LiveUpload) {
        live.begun(&id.id);
        self.record.upload(Some(&id.id));
        let mut state = self.state();
        state.begins = None;
        state.contents.eager_from(layout.plan_start());
        state.upload = Some(Upload::new(id, layout, live));
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

    /// How an upload that is begun now is best divided: for a commit of `snapshot`, or for one to
    /// come. What the origin holds already is copied, if `copies` are to be had.
    pub(in crate::write) fn layout(&self, snapshot: Option<&Snapshot>, copies: bool) -> Layout {
        let state = self.state();
        match state.base().filter(|_| copies) {
            Some(base) => {
                let size = snapshot.map(|snapshot| snapshot.size);
                let end = size.map_or(base.size, |size| size.min(base.size));
                let unchanged = state.contents.unchanged_since(base.generation, end);
                Layout::over(self.plan, &unchanged, size)
            }
            None => Layout::plain(self.plan),
        }
    }

    /// Whether the upload under way serves a commit as well as a new one of this layout would.
    pub(in crate::write) fn upload_serves(&self, snapshot: &Snapshot, fresh: &Layout) -> bool {
        let mut state = self.state();
        let Some(layout) = state.upload.as_ref().map(|upload| upload.layout.clone()) else {
            return false;
        };
        let left = state.bytes_left(snapshot, &layout, true);
        let anew = state.bytes_left(snapshot, fresh, false);
        snapshot.size > 0
            && layout.fits(snapshot.size)
            && left <= anew.saturating_add(self.plan.base())
    }

    /// The parts of a snapshot, as the upload under way is divided.
    pub(in crate::write) fn parts(&self, snapshot: &Snapshot) -> Vec<PartState> {
        let mut state = self.state();
        let layout = state.upload.as_ref().map(|upload| upload.layout.clone());
        let layout = layout.unwrap_or_else(|| Layout::plain(self.plan));
        state.parts(snapshot, &layout)
    }

    /// The state of the whole file.
    pub(in crate::write) fn whole_file(&self, snapshot: &Snapshot) -> PartState {
        self.state().contents.part(0..snapshot.size)
    }

    /// Claims a part for a commit, as it is now; with the version that has it, where that can be
    /// copied.
    pub(in crate::write) fn claim(
        &self,
        part: u32,
        want: PartState,
    ) -> Option<(PartState, Option<CopySource>)> {
        let mut state = self.state();
        let now = state.contents.part(want.range());
        let source = match state.is_unchanged(&now) {
            true => state.source(self.key()),
            false => None,
        };
        let upload = state.upload.as_mut()?;
        let source = source.filter(|_| upload.layout.has_copies());
        upload.claim(part, now).then_some((now, source))
    }

    /// Claims a part that the writer has passed; with its number. Not while a commit chooses what
    /// to send.
    pub(in crate::write) fn claim_passed(&self, range: Range<u64>) -> Option<(u32, PartState)> {
        let mut state = self.state();
        if state.phase != Phase::Writing || state.contents.size < range.end {
            return None;
        }
        let now = state.contents.part(range.clone());
        let upload = state.upload.as_mut()?;
        let part = upload.layout.number_of(&range)?;
        upload.claim(part, now).then_some((part, now))
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
    pub(in crate::write) fn changed_since(&self, of: PartState) -> bool {
        self.state().contents.changed_since(of)
    }

    /// The checksum of a block, where it is known.
    pub(in crate::write) fn sum(&self, block: u64) -> Option<u32> {
        self.state().contents.sum(block)
    }

    /// Notes the checksum of a block of a part that was read in this state.
    pub(in crate::write) fn block_read(&self, of: PartState, block: Range<u64>, crc32c: u32) {
        self.state().contents.read(of, block, crc32c);
    }
}

impl State {
    /// The version that the origin holds, if what is here is a change of it.
    fn base(&self) -> Option<Base> {
        matches!(self.seen, Condition::Matches(_)).then_some(self.stored).flatten()
    }

    fn is_unchanged(&self, part: &PartState) -> bool {
        let base = self.base();
        base.is_some_and(|b| part.generation <= b.generation && part.range().end <= b.size)
    }

    fn source(&self, key: String) -> Option<CopySource> {
        let size = self.base()?.size;
        match &self.seen {
            Condition::Matches(etag) => Some(CopySource { key, etag: etag.clone(), size }),
            _ => None,
        }
    }

    fn parts(&mut self, snapshot: &Snapshot, layout: &Layout) -> Vec<PartState> {
        let parts = layout.parts(snapshot.size).map(|range| {
            let now = self.contents.part(range);
            PartState { generation: now.generation.min(snapshot.generation), ..now }
        });
        parts.collect()
    }

    /// The bytes that a commit sends by an upload of this layout: the one under way, or a new one.
    fn bytes_left(&mut self, snapshot: &Snapshot, layout: &Layout, under_way: bool) -> u64 {
        let parts = self.parts(snapshot, layout);
        let upload = self.upload.as_ref().filter(|_| under_way);
        let is_sent = |(number, part): &(u32, PartState)| {
            layout.has_copies() && self.is_unchanged(part)
                || upload.is_some_and(|upload| upload.has(*number, part))
        };
        (1..).zip(parts).filter(|part| !is_sent(part)).map(|(_, part)| part.len).sum()
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
