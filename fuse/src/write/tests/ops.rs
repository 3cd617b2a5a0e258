//! What can happen to a file: as a future of a node, and as steps of the model.

use std::sync::Arc;

use bytes::Bytes;

use super::lab::{Bucket, Node};
use super::model::{AWAY, DIR, FILE, MOVED_DIR, OTHER, Step, Steps};
use super::poll::Hand;
use crate::model::blocks::BLOCK;
use crate::namespace::dir::Dir;
use crate::namespace::{self, Namespace};
use crate::write::draft::Draft;
use crate::write::rename::Place;
use crate::write::{WriteError, Writer};

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
            Self::Parts => 2 * BLOCK as usize + 1000,
        }
    }

    /// Where what is added ends.
    fn larger(self) -> usize {
        match self {
            Self::OnePut => 5000,
            Self::Parts => 3 * BLOCK as usize + 1000,
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
    fn written(&self) -> [(usize, Bytes); 2] {
        let (from, to) = (self.size.bytes(), self.size.larger());
        [(from, pattern(self.tag, to - from)), (10, pattern(self.tag, 100))]
    }

    fn replacement(&self) -> Bytes {
        pattern(self.tag.wrapping_add(1), self.size.bytes())
    }

    /// The operation as a future of its node. One that needs a handle does nothing where its
    /// process has none any more.
    pub(super) fn start(
        &self,
        bucket: &Bucket,
        node: &Node,
        draft: Option<&Arc<Draft>>,
    ) -> Hand<Result<(), WriteError>> {
        let (act, writer, memory) = (*self, node.writer.clone(), bucket.memory.clone());
        let draft = draft.cloned();
        Hand::new(async move {
            match (act.op, draft) {
                (Op::Unlink | Op::Away | Op::Over | Op::Dir, _) => by_name(act.op, &writer).await,
                (Op::Replace, _) => {
                    memory.insert(FILE, act.replacement());
                    Ok(())
                }
                (Op::Delete, _) => {
                    memory.remove(FILE);
                    Ok(())
                }
                (Op::Kill, _) => unreachable!("it is no operation of the process"),
                (_, None) => Ok(()),
                (_, Some(draft)) => act.by_handle(&writer, &draft).await,
            }
        })
    }

    async fn by_handle(&self, writer: &Writer, draft: &Arc<Draft>) -> Result<(), WriteError> {
        match self.op {
            Op::Write => {
                let mut passed = Vec::new();
                for (offset, data) in self.written() {
                    passed.extend(draft.write(offset as u64, &data)?);
                }
                if !passed.is_empty() {
                    writer.pass(draft, passed).await;
                }
                Ok(())
            }
            Op::Shrink => draft.truncate(self.size.bytes() as u64 / 2),
            Op::Grow => draft.truncate(self.size.larger() as u64),
            Op::Fsync => {
                let generation = draft.generation();
                let done = writer.commit(draft).await;
                done.inspect_err(|_| draft.report(generation))
            }
            _ => {
                writer.finish(draft).await;
                Ok(())
            }
        }
    }

    /// The same for the model. Dropped, a rename is more steps.
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

/// What a process asks for by a path.
async fn by_name(op: Op, writer: &Writer) -> Result<(), WriteError> {
    let names = &writer.names;
    let root = names.root();
    let below = |dir: &'static str| dir.trim_end_matches('/');
    if op == Op::Dir {
        let (from, to) = (below(DIR), below(MOVED_DIR));
        let (from, to) = (Place { dir: root, name: from }, Place { dir: root, name: to });
        return writer.rename(from, to, false).await;
    }
    let dir = dir_of(names, below(DIR)).await?;
    let file = Place { dir: &dir, name: "f" };
    match op {
        Op::Unlink => writer.unlink(&dir, "f").await,
        Op::Over => writer.rename(Place { dir: &dir, name: "o" }, file, false).await,
        _ => {
            let away = dir_of(names, "e").await?;
            writer.rename(file, Place { dir: &away, name: "g" }, false).await
        }
    }
}

async fn dir_of(names: &Namespace, name: &str) -> Result<Arc<Dir>, WriteError> {
    match names.lookup(names.root(), name).await? {
        namespace::Node::Dir(dir) => Ok(dir),
        namespace::Node::File(_) => Err(WriteError::NotDir),
    }
}
