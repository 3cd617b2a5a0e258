//! A multipart upload under way: the key that it was begun under, and what of it was sent.

use std::collections::HashMap;

use super::contents::PartState;
use super::live::LiveUpload;
use crate::origin::Part;
use crate::write::layout::Layout;

/// A multipart upload under way.
pub(super) struct Upload {
    pub(super) id: UploadId,
    pub(super) layout: Layout,
    /// Tells that it is this process's for as long as it lives.
    _live: LiveUpload,
    parts: HashMap<u32, (PartState, Part)>,
    /// Parts that are being sent, and in which state.
    sending: HashMap<u32, PartState>,
}

/// Names an upload. The key is the one that it was begun under, whatever the file's is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::write) struct UploadId {
    pub(in crate::write) key: String,
    pub(in crate::write) id: String,
    /// Nonce that the object will carry.
    pub(in crate::write) writer: String,
}

impl Upload {
    pub(super) fn new(id: UploadId, layout: Layout, live: LiveUpload) -> Self {
        Self { id, layout, _live: live, parts: HashMap::new(), sending: HashMap::new() }
    }

    /// Claims a part for sending. `false`: this state of it was sent, or is being sent.
    pub(super) fn claim(&mut self, part: u32, state: PartState) -> bool {
        let sent = self.parts.get(&part).is_some_and(|(of, _)| *of == state);
        if sent || self.sending.get(&part) == Some(&state) {
            return false;
        }
        self.sending.insert(part, state);
        true
    }

    /// Notes how the sending of a part ended.
    pub(super) fn sent(&mut self, part: u32, state: PartState, done: Option<Part>) {
        if self.sending.get(&part) == Some(&state) {
            self.sending.remove(&part);
        }
        if let Some(done) = done {
            self.parts.insert(part, (state, done));
        }
    }

    pub(super) fn is_sending(&self) -> bool {
        !self.sending.is_empty()
    }

    /// The parts of a whole object, or those that are missing. A part that was sent in a later
    /// state than the one wanted will do, if it is as long.
    pub(super) fn whole(&self, wanted: &[PartState]) -> Result<Vec<Part>, Vec<u32>> {
        let (mut done, mut missing) = (Vec::new(), Vec::new());
        for (number, want) in (1..).zip(wanted) {
            match self.parts.get(&number) {
                Some((of, part)) if holds(of, want) => done.push(part.clone()),
                _ => missing.push(number),
            }
        }
        if missing.is_empty() { Ok(done) } else { Err(missing) }
    }

    /// Whether a part was sent, or is being sent, in a state that will do for this one.
    pub(super) fn has(&self, number: u32, want: &PartState) -> bool {
        let sent = self.parts.get(&number).map(|(of, _)| of);
        sent.into_iter().chain(self.sending.get(&number)).any(|of| holds(of, want))
    }

    /// Whether parts were sent that lie beyond an object of `count` parts.
    pub(super) fn exceeds(&self, count: usize) -> bool {
        self.parts.keys().any(|number| *number as usize > count)
    }
}

fn holds(of: &PartState, want: &PartState) -> bool {
    of.start == want.start && of.len == want.len && of.generation >= want.generation
}
