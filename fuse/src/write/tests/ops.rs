//! What can happen to a file, as a future of a node.

use std::sync::Arc;

use super::acts::{Act, Op};
use super::lab::{Bucket, Node};
use super::model::{DIR, FILE, MOVED_DIR};
use super::poll::Hand;
use crate::blocking::MAY;
use crate::namespace::dir::Dir;
use crate::namespace::{self, Namespace};
use crate::write::draft::Draft;
use crate::write::rename::Place;
use crate::write::{WriteError, Writer};

impl Act {
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
                    passed.extend(draft.write(MAY, offset as u64, &data)?);
                }
                if !passed.is_empty() {
                    writer.pass(draft, passed).await;
                }
                Ok(())
            }
            Op::Shrink => draft.truncate(MAY, self.size.bytes() as u64 / 2),
            Op::Grow => draft.truncate(MAY, self.size.larger() as u64),
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
