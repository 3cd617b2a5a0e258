//! What there is of a version on the disk: its file, and which blocks are in it.
//!
//! All of it changes under one lock. A version is *absent* (no file counts), *present* (a file is in
//! place; the map names the blocks that are in it, none to all), or *changing*: one thread is
//! putting another file in place, and whoever needs the file waits. Each file that was put in place
//! is an *incarnation*. Who has used a file without the lock says which one it was, and changes
//! nothing when another has taken its place.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use super::file::CacheFile;
use super::folder::Folder;
use crate::blocking::MayBlock;
use crate::model::blocks::{self, BlockMap};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// The epoch of a version whose bytes may be wrong: it is never the present one.
pub(super) const UNVERIFIED: u32 = u32::MAX;
/// The epoch of a version of which some bytes are not the origin's own, until all were compared with its
/// tag. It is never the present one, either.
pub(super) const BORROWED: u32 = u32::MAX - 1;

/// A version's file, and what is in it.
pub(super) struct Body {
    folder: Arc<Folder>,
    name: PathBuf,
    size: u64,
    state: Mutex<State>,
    /// A change of the file has ended.
    settled: Condvar,
}

/// What is known of the file.
pub(super) struct State {
    life: Life,
    incarnation: u64,
    /// Open, if it is.
    file: Option<Arc<CacheFile>>,
    /// The blocks in it; none unless it is present.
    pub(super) map: BlockMap,
    /// Bytes of these blocks.
    pub(super) held_bytes: u64,
    /// The unclean-boot epoch in which every checksum was last checked.
    pub(super) verified_epoch: u32,
    /// How often it was doubted what is held, by this process.
    pub(super) doubts: u64,
    /// Whether what was held was given up, so that what is here now came after that.
    pub(super) was_given_up: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Absent,
    Changing,
    Present,
}

/// A file as of a moment.
pub(super) struct OpenBody {
    pub(super) file: Arc<CacheFile>,
    pub(super) incarnation: u64,
}

/// A file that could not be opened.
#[derive(Debug)]
pub(super) struct Unusable {
    pub(super) incarnation: u64,
    pub(super) error: io::Error,
}

impl Unusable {
    /// Whether the file is no more what was put there, as opposed to a disk that fails.
    pub(super) fn is_gone(&self) -> bool {
        is_gone(&self.error)
    }
}

/// Whether an error says that a file is missing, cut, or another one.
pub(super) fn is_gone(error: &io::Error) -> bool {
    let gone = [io::ErrorKind::NotFound, io::ErrorKind::InvalidData];
    gone.contains(&error.kind())
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

impl Body {
    /// What the index says of a version: these blocks, as of this epoch.
    pub(super) fn new(
        (folder, name): (Arc<Folder>, PathBuf),
        size: u64,
        map: BlockMap,
        verified_epoch: u32,
    ) -> Self {
        let held_bytes = map.held_blocks().map(|block| blocks::len_of(block, size) as u64).sum();
        let life = if map.held() > 0 { Life::Present } else { Life::Absent };
        let state = State {
            life,
            incarnation: 0,
            file: None,
            map,
            held_bytes,
            verified_epoch,
            doubts: 0,
            was_given_up: false,
        };
        Self { folder, name, size, state: Mutex::new(state), settled: Condvar::new() }
    }

    /// The blocks in it, as of now.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settled(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        while state.life == Life::Changing {
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// The open file, with what `look` sees of its blocks at the same moment; `None` when absent.
    ///
    /// # Errors
    /// [`Unusable`]: its blocks are to be forgotten if it is gone.
    pub(super) fn open_with<T>(
        &self,
        may: &MayBlock,
        look: impl Fn(&State) -> T,
    ) -> Result<Option<(OpenBody, T)>, Unusable> {
        loop {
            let incarnation = {
                let state = self.settled();
                if state.life == Life::Absent {
                    return Ok(None);
                }
                if let Some(file) = &state.file {
                    let opened = OpenBody { file: file.clone(), incarnation: state.incarnation };
                    return Ok(Some((opened, look(&state))));
                }
                state.incarnation
            };
            let opened = CacheFile::open(may, &self.folder, &self.name, self.size);
            let mut state = self.settled();
            if state.incarnation != incarnation {
                continue;
            }
            let file = Arc::new(opened.map_err(|error| Unusable { incarnation, error })?);
            let file = state.file.get_or_insert(file).clone();
            return Ok(Some((OpenBody { file, incarnation }, look(&state))));
        }
    }

    /// Closes a file that is not needed open.
    pub(super) fn close(&self, incarnation: u64) {
        let mut state = self.state();
        if state.incarnation == incarnation && state.life == Life::Present {
            state.file = None;
        }
    }

    /// Puts another file in place, if `may` allows it: one thread at a time, and without the lock
    /// while `put` runs. Says whether it did, and by how many bytes what is held has changed. When
    /// `put` fails the version is absent.
    pub(super) fn replace<T>(
        &self,
        may: impl FnOnce(&State) -> bool,
        put: impl FnOnce() -> io::Result<T>,
        fill: impl FnOnce(&mut State, T),
    ) -> (io::Result<bool>, i64) {
        let mut state = self.settled();
        if !may(&state) {
            return (Ok(false), 0);
        }
        state.life = Life::Changing;
        drop(state);
        let mut change = Change { body: self, ended: false };
        let put = put();
        let mut state = self.state();
        let before = state.held_bytes;
        state.renew();
        let done = put.map(|put| {
            state.life = Life::Present;
            fill(&mut state, put);
            true
        });
        let held = difference(state.held_bytes, before);
        // Before the lock is left: from then on another thread may be changing it.
        change.ended = true;
        drop(state);
        drop(change);
        (done, held)
    }

    /// Notes consecutive blocks as held by this incarnation and says how many bytes that adds;
    /// `None` when another one has taken its place.
    pub(super) fn hold(&self, incarnation: u64, first: u32, sums: &[u32]) -> Option<i64> {
        let mut state = self.settled();
        if state.incarnation != incarnation || state.life != Life::Present {
            return None;
        }
        let before = state.held_bytes;
        for (block, sum) in (first..).zip(sums) {
            if !state.map.has(block) {
                state.held_bytes += blocks::len_of(block, self.size) as u64;
            }
            state.map.insert(block, *sum);
        }
        Some(difference(state.held_bytes, before))
    }

    /// Forgets blocks of this incarnation; says by how many bytes what is held has changed.
    pub(super) fn forget(&self, incarnation: u64, forgotten: Range<u32>) -> i64 {
        let mut state = self.settled();
        if state.incarnation != incarnation {
            return 0;
        }
        let before = state.held_bytes;
        for block in forgotten {
            if state.map.remove(block) {
                state.held_bytes -= blocks::len_of(block, self.size) as u64;
            }
        }
        difference(state.held_bytes, before)
    }

    /// Gives this incarnation up, with all its blocks; says by how many bytes what is held has
    /// changed, and in which segments.
    pub(super) fn forget_all(&self, incarnation: u64) -> (i64, Vec<u32>) {
        let mut state = self.settled();
        if state.incarnation != incarnation {
            return (0, Vec::new());
        }
        let (before, segments) = (state.held_bytes, state.map.segments().collect());
        state.renew();
        (difference(0, before), segments)
    }

    /// Puts what was written to the file onto the medium. A file that is gone needs none.
    ///
    /// # Errors
    /// What open and fdatasync report.
    pub(super) fn sync(&self, may: &MayBlock) -> io::Result<()> {
        let open = self.settled().file.clone();
        match open.map_or_else(
            || CacheFile::open(may, &self.folder, &self.name, self.size).map(Arc::new),
            Ok,
        ) {
            Err(error) if is_gone(&error) => Ok(()),
            file => file?.sync(may),
        }
    }
}

impl State {
    /// Whether no file counts.
    pub(super) fn is_absent(&self) -> bool {
        self.life == Life::Absent
    }

    /// Which of the files that there were one after the other it is.
    pub(super) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Begins a new incarnation, as yet absent.
    fn renew(&mut self) {
        self.life = Life::Absent;
        self.incarnation += 1;
        self.file = None;
        self.map = BlockMap::empty(self.map.len());
        self.held_bytes = 0;
    }

    /// Notes the file that was just made.
    pub(super) fn made(&mut self, file: CacheFile) {
        self.file = Some(Arc::new(file));
    }

    /// Notes that all blocks are held, and were checked in `epoch`.
    pub(super) fn fill(&mut self, size: u64, sums: &[u32], epoch: u32) {
        for (block, crc) in (0..).zip(sums) {
            self.map.insert(block, *crc);
        }
        self.held_bytes = size;
        self.verified_epoch = epoch;
    }

    /// The checksums of these blocks, if all are held.
    pub(super) fn sums(&self, run: Range<u32>) -> Option<Vec<u32>> {
        let mut sums = Vec::with_capacity(run.len());
        for block in run {
            sums.push(self.map.get(block)?);
        }
        Some(sums)
    }
}

/// Ends a change of the file, also when it was cut short.
struct Change<'a> {
    body: &'a Body,
    ended: bool,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.body.state().renew();
        }
        self.body.settled.notify_all();
    }
}

fn difference(now: u64, before: u64) -> i64 {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    signed(now) - signed(before)
}
