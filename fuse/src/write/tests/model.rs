//! What may be seen: a bucket, files under change, and the steps that operations consist of.
//!
//! Steps are atomic; those of two operations come in any order that the gates allow.

use std::collections::BTreeMap;

use bytes::Bytes;
use rustix::io::Errno;

/// The file that all is about, and where it may go.
pub(super) const FILE: &str = "d/f";
pub(super) const OTHER: &str = "d/o";
pub(super) const AWAY: &str = "e/g";
/// The directory of the file, and what it is renamed to.
pub(super) const DIR: &str = "d/";
pub(super) const MOVED_DIR: &str = "x/";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stand {
    Open,
    Unlinked,
    Superseded,
    /// Its last writer has ended, or its process was killed.
    Ended,
    Killed,
}

/// A file under change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct File {
    pub(super) key: String,
    pub(super) bytes: Bytes,
    /// What must be at its key; `None`: nothing.
    pub(super) seen: Option<Bytes>,
    /// Whether its bytes were acknowledged.
    pub(super) clean: bool,
    pub(super) stand: Stand,
    /// Of which bytes its writer was told that they are not stored.
    pub(super) told: Option<Bytes>,
    /// Of which an fsync under way would tell.
    fsync: Bytes,
}

/// Everything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct World {
    pub(super) bucket: BTreeMap<String, Bytes>,
    /// By node.
    pub(super) files: Vec<File>,
    /// What must be kept for a person.
    pub(super) lost: Vec<Bytes>,
    /// All that the files ever held.
    pub(super) history: Vec<Bytes>,
}

/// What an operation consists of.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Write {
        offset: usize,
        data: Bytes,
    },
    Resize(usize),
    /// An fsync begins.
    Begin,
    Commit {
        tells: bool,
    },
    /// The commit that the end of the last writer begins with: it ends in any case.
    Finish,
    End,
    Unlink,
    /// The commit that a rename begins with; the name must be there.
    CommitNamed,
    CommitDir,
    Move,
    MoveOver,
    MoveDir,
    /// What a rename that is dropped may leave.
    Copy(&'static str, &'static str),
    Remove(&'static str),
    /// Another file has taken the name.
    Replaced,
    Put(Bytes),
    Delete,
    Kill,
}

pub(super) type Outcome = Result<(), Errno>;

impl File {
    pub(super) fn new(bytes: Bytes, seen: Option<Bytes>) -> Self {
        Self {
            key: FILE.into(),
            bytes,
            seen,
            clean: false,
            stand: Stand::Open,
            told: None,
            fsync: Bytes::new(),
        }
    }

    fn is_at(&self, key: &str) -> bool {
        self.stand == Stand::Open && self.key == key
    }

    fn is_below_dir(&self) -> bool {
        self.stand == Stand::Open && self.key.starts_with(DIR)
    }
}

impl World {
    /// Carries out one step of an operation on a node.
    pub(super) fn step(&mut self, node: usize, step: &Step) -> Outcome {
        match step {
            Step::Write { offset, data } => self.change(node, |bytes| {
                bytes.resize(bytes.len().max(offset + data.len()), 0);
                bytes[*offset..offset + data.len()].copy_from_slice(data);
            }),
            Step::Resize(size) => self.change(node, |bytes| bytes.resize(*size, 0)),
            Step::Begin => {
                self.files[node].fsync = self.files[node].bytes.clone();
                Ok(())
            }
            Step::Commit { tells } => {
                let done = self.commit(node);
                if done.is_err() && *tells {
                    self.files[node].told = Some(self.files[node].fsync.clone());
                }
                done
            }
            Step::Finish => {
                let _ = self.commit(node);
                Ok(())
            }
            Step::End => self.end(node),
            Step::Unlink => self.unlink(node),
            Step::CommitNamed if self.files[node].is_at(FILE) => self.commit(node),
            Step::CommitNamed => self.bucket.get(FILE).map(|_| ()).ok_or(Errno::NOENT),
            Step::CommitDir => self.commit_dir(node),
            Step::Move => self.move_away(node),
            Step::MoveOver => self.move_over(node),
            Step::MoveDir => self.move_dir(node),
            Step::Copy(from, to) => {
                let bytes = self.bucket.get(*from).cloned();
                bytes.map(|bytes| self.bucket.insert((*to).into(), bytes));
                Ok(())
            }
            Step::Remove(key) => {
                self.bucket.remove(*key);
                Ok(())
            }
            Step::Replaced if self.files[node].is_at(FILE) => {
                self.files[node].stand = Stand::Unlinked;
                Ok(())
            }
            Step::Replaced => Ok(()),
            Step::Put(bytes) => {
                self.bucket.insert(FILE.into(), bytes.clone());
                Ok(())
            }
            Step::Delete => {
                self.bucket.remove(FILE);
                Ok(())
            }
            Step::Kill => self.kill(node),
        }
    }

    fn change(&mut self, node: usize, how: impl FnOnce(&mut Vec<u8>)) -> Outcome {
        let file = &mut self.files[node];
        match file.stand {
            Stand::Superseded => return Err(Errno::STALE),
            Stand::Ended => return Err(Errno::IO),
            Stand::Killed => return Ok(()),
            Stand::Open | Stand::Unlinked => {}
        }
        let mut bytes = file.bytes.to_vec();
        how(&mut bytes);
        file.bytes = bytes.into();
        file.clean = false;
        self.history.push(file.bytes.clone());
        Ok(())
    }

    fn commit(&mut self, node: usize) -> Outcome {
        let file = &mut self.files[node];
        match file.stand {
            Stand::Superseded => return Err(Errno::STALE),
            Stand::Open if !file.clean => {}
            _ => return Ok(()),
        }
        if self.bucket.get(&file.key) != file.seen.as_ref() {
            file.stand = Stand::Superseded;
            return Err(Errno::STALE);
        }
        self.bucket.insert(file.key.clone(), file.bytes.clone());
        file.seen = Some(file.bytes.clone());
        file.clean = true;
        Ok(())
    }

    fn end(&mut self, node: usize) -> Outcome {
        let file = &mut self.files[node];
        match file.stand {
            Stand::Ended | Stand::Killed => return Ok(()),
            Stand::Open | Stand::Superseded
                if !file.clean && file.told.as_ref() != Some(&file.bytes) =>
            {
                self.lost.push(file.bytes.clone());
            }
            _ => {}
        }
        file.stand = Stand::Ended;
        Ok(())
    }

    fn kill(&mut self, node: usize) -> Outcome {
        let file = &mut self.files[node];
        let told = file.told.as_ref() == Some(&file.bytes);
        let open = matches!(file.stand, Stand::Open | Stand::Superseded);
        if open && !file.clean && !told && !file.bytes.is_empty() {
            self.lost.push(file.bytes.clone());
        }
        file.stand = Stand::Killed;
        Ok(())
    }

    fn unlink(&mut self, node: usize) -> Outcome {
        let file = &mut self.files[node];
        if !file.is_at(FILE) {
            return self.bucket.remove(FILE).map(|_| ()).ok_or(Errno::NOENT);
        }
        file.stand = Stand::Unlinked;
        // Nothing of it was ever stored, so nothing is removed.
        if let Some(seen) = &file.seen {
            let present = self.bucket.remove(FILE);
            if present.is_some_and(|present| present != *seen) {
                file.stand = Stand::Superseded;
            }
        }
        Ok(())
    }

    fn move_away(&mut self, node: usize) -> Outcome {
        let file = &mut self.files[node];
        let present = self.bucket.remove(FILE);
        if file.is_at(FILE) {
            match present == file.seen {
                true => file.key = AWAY.into(),
                false => file.stand = Stand::Superseded,
            }
        }
        let bytes = present.ok_or(Errno::NOENT)?;
        self.bucket.insert(AWAY.into(), bytes);
        Ok(())
    }

    fn move_over(&mut self, node: usize) -> Outcome {
        let bytes = self.bucket.remove(OTHER).ok_or(Errno::NOENT)?;
        let present = self.bucket.insert(FILE.into(), bytes.clone());
        let file = &mut self.files[node];
        if file.is_at(FILE) {
            // It may be there already, by a rename that was dropped.
            let replaced = present == file.seen || present.as_ref() == Some(&bytes);
            file.stand = if replaced { Stand::Unlinked } else { Stand::Superseded };
        }
        Ok(())
    }

    fn commit_dir(&mut self, node: usize) -> Outcome {
        let below = |prefix: &str| self.bucket.keys().any(|key| key.starts_with(prefix));
        let file = &self.files[node];
        if !below(DIR) && !file.is_below_dir() {
            return Err(Errno::NOENT);
        }
        if below(MOVED_DIR) {
            return Err(Errno::NOTEMPTY);
        }
        if file.is_below_dir() { self.commit(node) } else { Ok(()) }
    }

    fn move_dir(&mut self, node: usize) -> Outcome {
        let moved = |key: &str| format!("{MOVED_DIR}{}", &key[DIR.len()..]);
        let file = &mut self.files[node];
        if file.is_below_dir() {
            match self.bucket.get(&file.key) == file.seen.as_ref() {
                true => file.key = moved(&file.key),
                false => file.stand = Stand::Superseded,
            }
        }
        let keys: Vec<_> = self.bucket.keys().filter(|key| key.starts_with(DIR)).cloned().collect();
        for key in keys {
            let bytes = self.bucket.remove(&key).unwrap_or_default();
            self.bucket.insert(moved(&key), bytes);
        }
        Ok(())
    }
}

/// An operation as it is seen by the model.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    pub(super) node: usize,
    pub(super) steps: Vec<Step>,
    /// Whether it holds the gates, so that no other that does comes between its steps.
    pub(super) gated: bool,
}

/// A world after two operations, and what they came to.
pub(super) type End = (World, Outcome, Outcome);

/// All ends of two operations that both are carried out.
pub(super) fn ends(world: &World, a: &Steps, b: &Steps) -> Vec<End> {
    let mut out = Vec::new();
    if a.gated && b.gated && a.node == b.node {
        for a_first in [true, false] {
            let mut world = world.clone();
            let (ra, rb) = match a_first {
                true => {
                    let ra = all(&mut world, a);
                    (ra, all(&mut world, b))
                }
                false => {
                    let rb = all(&mut world, b);
                    (all(&mut world, a), rb)
                }
            };
            out.push((world, ra, rb));
        }
        return out;
    }
    merge(world, (a, 0, Ok(())), (b, 0, Ok(())), &mut out);
    out
}

/// An operation, how many steps of it are done, and what they came to.
type Part<'a> = (&'a Steps, usize, Outcome);

fn merge(world: &World, a: Part<'_>, b: Part<'_>, out: &mut Vec<End>) {
    let next = |of: Part<'_>| {
        let step = of.0.steps.get(of.1).filter(|_| of.2.is_ok())?;
        let mut world = world.clone();
        let done = world.step(of.0.node, step);
        Some((world, done))
    };
    let (on_a, on_b) = (next(a), next(b));
    if on_a.is_none() && on_b.is_none() {
        out.push((world.clone(), a.2, b.2));
        return;
    }
    if let Some((world, done)) = on_a {
        merge(&world, (a.0, a.1 + 1, done), b, out);
    }
    if let Some((world, done)) = on_b {
        merge(&world, a, (b.0, b.1 + 1, done), out);
    }
}

/// All ends where the first operation was dropped: after each of its steps.
pub(super) fn ends_dropped(world: &World, a: &Steps, b: &Steps) -> Vec<End> {
    let mut out = Vec::new();
    let mut world = world.clone();
    for done in 0..=a.steps.len() {
        let mut end = world.clone();
        let rb = all(&mut end, b);
        out.push((end, Ok(()), rb));
        let step = a.steps.get(done);
        if step.is_none_or(|step| world.step(a.node, step).is_err()) {
            // What it did before is its whole effect.
            if step.is_some() {
                let rb = all(&mut world, b);
                out.push((world, Ok(()), rb));
            }
            break;
        }
    }
    out
}

/// Carries out an operation, up to its first error.
pub(super) fn all(world: &mut World, of: &Steps) -> Outcome {
    of.steps.iter().try_for_each(|step| world.step(of.node, step))
}
