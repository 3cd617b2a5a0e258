//! What can happen to a file, as steps of the model. Whoever includes this says in `PART` how many
//! bytes a part has.

use bytes::Bytes;

use super::PART;
use super::model::{AWAY, FILE, OTHER, Step, Steps};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Op {
    Write,
    Shrink,
    Grow,
    Fsync,
    Finish,
    Unlink,
    /// Renamed into another directory.
    Away,
    /// Another file is renamed onto it.
    Over,
    /// Its directory is renamed.
    Dir,
    /// Somebody else stores another version.
    Replace,
    /// Somebody else removes it.
    Delete,
    /// The process ends as by SIGKILL; another one works off what it left.
    Kill,
}

impl Op {
    pub(super) const ALL: [Self; 12] = [
        Self::Write,
        Self::Shrink,
        Self::Grow,
        Self::Fsync,
        Self::Finish,
        Self::Unlink,
        Self::Away,
        Self::Over,
        Self::Dir,
        Self::Replace,
        Self::Delete,
        Self::Kill,
    ];
}

/// How large the file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Size {
    OnePut,
    Parts,
}

impl Size {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::OnePut => 3000,
            Self::Parts => 2 * PART + 1000,
        }
    }

    /// Where what is added ends.
    pub(super) fn larger(self) -> usize {
        match self {
            Self::OnePut => 5000,
            Self::Parts => 3 * PART + 1000,
        }
    }
}

/// Bytes that differ by their tag, at every place.
pub(super) fn pattern(tag: u8, len: usize) -> Bytes {
    let byte = |at: usize| (at as u8).wrapping_mul(31) ^ ((at >> 8) as u8) ^ tag;
    (0..len).map(byte).collect::<Vec<u8>>().into()
}

/// An operation by somebody: the bytes that he writes differ from those of others.
#[derive(Clone, Copy)]
pub(super) struct Act {
    pub(super) op: Op,
    pub(super) size: Size,
    pub(super) node: usize,
    pub(super) tag: u8,
}

impl Act {
    /// Bytes that a write adds at the end, and those that it changes near the start.
    pub(super) fn written(&self) -> [(usize, Bytes); 2] {
        let (from, to) = (self.size.bytes(), self.size.larger());
        [(from, pattern(self.tag, to - from)), (10, pattern(self.tag, 100))]
    }

    pub(super) fn replacement(&self) -> Bytes {
        pattern(self.tag.wrapping_add(1), self.size.bytes())
    }

    /// The operation as steps of the model. Dropped, a rename is more of them.
    pub(super) fn steps(&self, dropped: bool) -> Steps {
        let rename = |commit: Option<Step>, moves: Step, parts: Vec<Step>| {
            // What it does last is to note in memory what it has done.
            let rest = if dropped { parts } else { vec![moves] };
            commit.into_iter().chain(rest).collect()
        };
        let commit = |tells| Step::Commit { tells };
        let (copy, remove) = (Step::Copy, Step::Remove);
        let steps = match self.op {
            Op::Write => {
                let [end, start] =
                    self.written().map(|(offset, data)| Step::Write { offset, data });
                vec![end, start]
            }
            Op::Shrink => vec![Step::Resize(self.size.bytes() / 2)],
            Op::Grow => vec![Step::Resize(self.size.larger())],
            Op::Fsync => vec![Step::Begin, commit(true)],
            Op::Finish => vec![Step::Finish, Step::End],
            Op::Unlink => vec![Step::Unlink],
            Op::Away => {
                rename(Some(Step::CommitNamed), Step::Move, vec![copy(FILE, AWAY), remove(FILE)])
            }
            Op::Over => {
                rename(None, Step::MoveOver, vec![copy(OTHER, FILE), remove(OTHER), Step::Replaced])
            }
            Op::Dir => {
                let [file, other] = ["x/f", "x/o"];
                let copies = vec![copy(FILE, file), copy(OTHER, other)];
                let parts = [copies, vec![remove(FILE), remove(OTHER)]].concat();
                rename(Some(Step::CommitDir), Step::MoveDir, parts)
            }
            Op::Replace => vec![Step::Put(self.replacement())],
            Op::Delete => vec![Step::Delete],
            Op::Kill => vec![Step::Kill],
        };
        let gated =
            matches!(self.op, Op::Fsync | Op::Finish | Op::Unlink | Op::Away | Op::Over | Op::Dir);
        Steps { node: self.node, steps, gated }
    }
}
