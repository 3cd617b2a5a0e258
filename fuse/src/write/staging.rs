//! A file being written: its bytes on NVMe, and what of them the origin holds.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::WriteError;
use super::parts::{OBJECT_MAX, PartPlan};
use crate::cache::StagingFile;
use crate::namespace::file::FileNode;
use crate::origin::{Condition, Part};

/// A file being written. All handles of its name share it.
pub struct Staging {
    /// The node under which it is shown.
    pub node: Arc<FileNode>,
    bytes: StagingFile,
    plan: PartPlan,
    state: Mutex<State>,
    /// Held by the one who stores it.
    pub(crate) gate: tokio::sync::Mutex<()>,
}

struct State {
    size: u64,
    /// Counts changes.
    generation: u64,
    /// The generation that the origin holds as an object.
    stored: Option<u64>,
    condition: Condition,
    /// Where a sequential writer has come to.
    front: u64,
    /// The first part that was not handed out for sending yet.
    eager: u32,
    /// Generation of the last change of each part.
    changed: HashMap<u32, u64>,
    upload: Option<Upload>,
    /// Its name was removed: nothing is stored any more.
    unlinked: bool,
    /// Somebody else was faster: nothing is stored any more.
    overtaken: bool,
    /// Its file has become an immutable cached version.
    sealed: bool,
    /// Checksums by block, of parts as of a generation.
    sums: HashMap<u32, (u64, Vec<u32>)>,
}

/// A multipart upload under way.
struct Upload {
    id: String,
    writer: String,
    parts: HashMap<u32, (u64, Part)>,
    /// Parts that are being sent, with their generation.
    sending: HashMap<u32, u64>,
}

/// What is to be stored, as of a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) generation: u64,
    pub(super) size: u64,
    pub(super) condition: Condition,
}

impl Staging {
    /// Begins with an empty staging file. `dirty` says whether emptiness itself is to be stored.
    pub fn create(
        node: Arc<FileNode>,
        bytes: StagingFile,
        plan: PartPlan,
        condition: Condition,
        dirty: bool,
    ) -> Arc<Self> {
        let state = State {
            size: 0,
            generation: 1,
            stored: (!dirty).then_some(1),
            condition,
            front: 0,
            eager: 1,
            changed: HashMap::new(),
            upload: None,
            unlinked: false,
            overtaken: false,
            sealed: false,
            sums: HashMap::new(),
        };
        let gate = tokio::sync::Mutex::new(());
        Arc::new(Self { node, bytes, plan, state: Mutex::new(state), gate })
    }

    /// Where the bytes are.
    pub fn path(&self) -> &Path {
        self.bytes.path()
    }

    /// The file with the bytes.
    pub(super) fn bytes(&self) -> &StagingFile {
        &self.bytes
    }

    /// Writes at any offset. Returns the parts that a sequential writer has just passed.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`], or what the cache disk reports.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<Vec<u32>, WriteError> {
        let end = offset.saturating_add(data.len() as u64);
        if end > OBJECT_MAX {
            return Err(WriteError::TooLarge);
        }
        if data.is_empty() {
            return Ok(Vec::new());
        }
        self.bytes.reserve(end).map_err(io::Error::from)?;
        self.bytes.file().write_all_at(data, offset)?;
        let mut state = self.state();
        state.size = state.size.max(end);
        let size = state.size;
        state.touch(
            self.plan.part_at(offset)..=self.plan.part_at(end.saturating_sub(1).max(offset)),
        );
        let mut passed = Vec::new();
        if offset == state.front {
            state.front = end;
            // What fits a single PUT goes in one, at the end.
            if size > self.plan.base() {
                let filling = self.plan.part_at(end);
                passed.extend(state.eager..filling);
                state.eager = state.eager.max(filling);
            }
        }
        drop(state);
        self.node.set_size(size);
        Ok(passed)
    }

    /// Cuts or extends.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`], or what the cache disk reports.
    pub fn truncate(&self, size: u64) -> Result<(), WriteError> {
        if size > OBJECT_MAX {
            return Err(WriteError::TooLarge);
        }
        let mut state = self.state();
        if size == state.size {
            return Ok(());
        }
        self.bytes.file().set_len(size)?;
        self.bytes.shrink(size);
        let low = size.min(state.size);
        let high = size.max(state.size);
        state.touch(self.plan.part_at(low)..=self.plan.part_at(high.saturating_sub(1).max(low)));
        state.size = size;
        state.front = state.front.min(size);
        drop(state);
        self.node.set_size(size);
        Ok(())
    }

    /// Reads what was written, up to the end.
    ///
    /// # Errors
    /// What the cache disk reports.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let size = self.state().size;
        let len = size.saturating_sub(offset).min(len as u64) as usize;
        let mut out = vec![0; len];
        self.bytes.file().read_exact_at(&mut out, offset)?;
        Ok(out)
    }

    /// Fills `into` from `offset` on.
    ///
    /// # Errors
    /// What the cache disk reports; `UnexpectedEof` when there is less.
    pub(super) fn read_exact(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if offset.saturating_add(into.len() as u64) > self.state().size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.bytes.file().read_exact_at(into, offset)
    }

    /// Asks the kernel to write a range to the disk and, where that is done, to drop its pages:
    /// what was sent is not needed in memory (mm/fadvise.c: DONTNEED begins to write dirty pages
    /// and drops clean ones).
    pub(super) fn leave_page_cache(&self, offset: u64, len: u64) {
        let len = std::num::NonZeroU64::new(len);
        let _ = rustix::fs::fadvise(self.bytes.file(), offset, len, rustix::fs::Advice::DontNeed);
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.state().size
    }

    /// Whether the origin does not hold the present state yet.
    pub fn is_dirty(&self) -> bool {
        let state = self.state();
        !state.unlinked && state.stored != Some(state.generation)
    }

    /// Notes that the name was removed. Returns an upload to abort.
    pub fn unlink(&self) -> Option<String> {
        let mut state = self.state();
        state.unlinked = true;
        state.upload.take().map(|upload| upload.id)
    }

    /// Whether the name was removed.
    pub fn is_unlinked(&self) -> bool {
        self.state().unlinked
    }

    /// Notes that somebody else was faster. That is final: what a later try would overwrite is
    /// not what the writer has seen, even if it has the same bytes.
    pub(super) fn overtake(&self) {
        self.state().overtaken = true;
    }

    /// Whether somebody else was faster, so that no open may join it any more.
    pub fn is_overtaken(&self) -> bool {
        self.state().overtaken
    }

    /// Whether the file has become an immutable cached version, so that no more may be written.
    pub fn is_sealed(&self) -> bool {
        self.state().sealed
    }

    /// Ends writing for good. Returns the checksums of all blocks if the origin holds exactly
    /// what is here.
    pub(super) fn seal(&self) -> Option<Vec<u32>> {
        let mut state = self.state();
        state.sealed = true;
        if state.unlinked || state.stored != Some(state.generation) {
            return None;
        }
        let mut all = Vec::new();
        for part in 1..=self.plan.count(state.size) {
            let generation = state.changed.get(&part).copied().unwrap_or(0);
            let (of, sums) = state.sums.get(&part)?;
            if *of != generation {
                return None;
            }
            all.extend_from_slice(sums);
        }
        Some(all)
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let state = self.state();
        Snapshot {
            generation: state.generation,
            size: state.size,
            condition: state.condition.clone(),
        }
    }

    /// The generation of a part's last change.
    pub(super) fn part_generation(&self, part: u32) -> u64 {
        self.state().changed.get(&part).copied().unwrap_or(0)
    }

    pub(super) fn upload(&self) -> Option<(String, String)> {
        self.state().upload.as_ref().map(|u| (u.id.clone(), u.writer.clone()))
    }

    pub(super) fn set_upload(&self, upload: Option<(String, String)>) {
        self.state().upload = upload.map(|(id, writer)| Upload {
            id,
            writer,
            parts: HashMap::new(),
            sending: HashMap::new(),
        });
    }

    /// Claims a part for sending; `None` when this state of it was sent or is being sent.
    pub(super) fn claim(&self, part: u32) -> Option<u64> {
        let mut state = self.state();
        let generation = state.changed.get(&part).copied().unwrap_or(0);
        let upload = state.upload.as_mut()?;
        let sent = upload.parts.get(&part).is_some_and(|(of, _)| *of == generation);
        if sent || upload.sending.get(&part) == Some(&generation) {
            return None;
        }
        upload.sending.insert(part, generation);
        Some(generation)
    }

    /// Notes how the sending of a part ended.
    pub(super) fn sent(&self, id: &str, part: u32, generation: u64, done: Option<Part>) {
        let mut state = self.state();
        let Some(upload) = state.upload.as_mut().filter(|u| u.id == id) else { return };
        if upload.sending.get(&part) == Some(&generation) {
            upload.sending.remove(&part);
        }
        if let Some(done) = done {
            upload.parts.insert(part, (generation, done));
        }
    }

    /// Whether a part is being sent.
    pub(super) fn is_sending(&self) -> bool {
        self.state().upload.as_ref().is_some_and(|u| !u.sending.is_empty())
    }

    /// The stored parts of an object of `size` bytes, and which are still to be sent.
    pub(super) fn parts(&self, size: u64) -> Result<Vec<Part>, Vec<u32>> {
        let state = self.state();
        let (mut done, mut missing) = (Vec::new(), Vec::new());
        for number in 1..=self.plan.count(size) {
            let generation = state.changed.get(&number).copied().unwrap_or(0);
            match state.upload.as_ref().and_then(|u| u.parts.get(&number)) {
                Some((of, part)) if *of == generation => done.push(part.clone()),
                _ => missing.push(number),
            }
        }
        if missing.is_empty() { Ok(done) } else { Err(missing) }
    }

    pub(super) fn set_sums(&self, part: u32, generation: u64, sums: Vec<u32>) {
        self.state().sums.insert(part, (generation, sums));
    }

    /// Notes that the origin holds the state of `snapshot`.
    pub(super) fn set_stored(&self, snapshot: &Snapshot, next: Condition) {
        let mut state = self.state();
        state.stored = Some(snapshot.generation);
        state.condition = next;
        state.upload = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn touch(&mut self, parts: std::ops::RangeInclusive<u32>) {
        self.generation += 1;
        for part in parts {
            self.changed.insert(part, self.generation);
        }
    }
}
