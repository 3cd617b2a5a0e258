//! A rename, and the kill of its process at one of its requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::acts::pattern;
use super::lab::{Bucket, Lab, Node};
use super::poll::{Hand, Polled, drive};
use crate::blocking::MAY;
use crate::origin::faulty::{Fault, Gate, Op};
use crate::origin::{Condition, CopySource, Origin, WriteIntent};
use crate::write::draft::Draft;

/// More polls than any of these renames takes.
pub(super) const POLLS_MAX: u32 = 500;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    File,
    /// Over another file.
    Over,
    Dir,
}

/// Who stored what is renamed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// Another tool: there is no nonce.
    Theirs,
    Ours,
    /// It is under change, and not stored yet.
    Draft,
    /// As theirs, of parts.
    Parts,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Source,
    Target,
}

pub(super) const KINDS: [Kind; 3] = [Kind::File, Kind::Over, Kind::Dir];
pub(super) const SOURCES: [Source; 3] = [Source::Theirs, Source::Ours, Source::Draft];

pub(super) type Tree = BTreeMap<String, Bytes>;

/// Where a rename is when its process is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// After so many polls.
    Polls(u32),
    /// Its requests of this kind, from the `n`th on, have had no effect; all others have.
    Before(Op, usize),
    /// That request has had its effect, and its process was not answered.
    After(Op, usize),
}

impl Stop {
    /// Those that a rename in the order of its polls does not come to: of requests that are sent
    /// at once, some are carried out.
    pub(super) fn of_many() -> impl Iterator<Item = Self> {
        let ops = [Op::Copy, Op::Delete].into_iter();
        ops.flat_map(|op| (1..=4).flat_map(move |n| [Self::Before(op, n), Self::After(op, n)]))
    }
}

pub(super) struct Case {
    pub(super) kind: Kind,
    pub(super) source: Source,
}

impl Case {
    pub(super) fn places(&self) -> [(&'static str, &'static str); 2] {
        match self.kind {
            Kind::File | Kind::Over => [("d", "f"), ("e", "g")],
            Kind::Dir => [("", "d"), ("", "x")],
        }
    }

    /// The key of the file that all is about, there and here.
    pub(super) fn key(&self, end: End) -> &'static str {
        match (self.kind, end) {
            (_, End::Source) => "d/f",
            (Kind::Dir, End::Target) => "x/f",
            (_, End::Target) => "e/g",
        }
    }

    pub(super) fn bytes() -> Bytes {
        pattern(1, 3000)
    }

    pub(super) fn before(&self) -> Tree {
        let mut all = Tree::from([
            ("d/f".into(), Self::bytes()),
            ("e/there".into(), Bytes::from_static(b"so that the directory is")),
        ]);
        if self.kind == Kind::Over {
            all.insert("e/g".into(), pattern(2, 2000));
        }
        if self.kind == Kind::Dir {
            all.extend(["d/1", "d/sub/2", "d/sub/3"].map(|key| (key.into(), pattern(3, 100))));
        }
        all
    }

    pub(super) fn after(&self) -> Tree {
        let mut all = self.before();
        let moved: Vec<_> = all.keys().filter(|key| key.starts_with("d/")).cloned().collect();
        for key in moved {
            let bytes = all.remove(&key).unwrap();
            let to = match self.kind {
                Kind::Dir => key.replacen("d/", "x/", 1),
                _ => self.key(End::Target).to_owned(),
            };
            all.insert(to, bytes);
        }
        all
    }

    /// Begins the rename and kills its process at the stop; `None`: it is done before.
    pub(super) fn killed(&self, lab: &Lab, stop: Stop) -> Option<Bucket> {
        let bucket = lab.bucket();
        for (key, bytes) in self.before() {
            bucket.memory.insert(&key, bytes);
        }
        let node = lab.node(&bucket);
        let mut draft = None;
        if self.source == Source::Parts {
            insert_in_parts(&bucket, "d/f", Self::bytes());
        } else if self.source != Source::Theirs {
            bucket.memory.remove("d/f");
            bucket.memory.insert("d/", "");
            let open = node.open(&node.dir("d").unwrap(), "f").unwrap();
            open.write(MAY, 0, &Self::bytes()).unwrap();
            draft = Some(open);
        }
        if self.source == Source::Ours {
            let (writer, open) = (node.writer.clone(), draft.take().unwrap());
            drive(async move { writer.finish(&open).await });
        }
        let [from, to] = self.places();
        let gate = Gate::new();
        let (polls, faults) = match stop {
            Stop::Polls(polls) => (polls, Vec::new()),
            Stop::Before(op, n) => {
                let stall = || Fault::Stall(gate.clone());
                (POLLS_MAX, (n..10).map(|n| (op, n, stall())).collect())
            }
            Stop::After(op, n) => (POLLS_MAX, vec![(op, n, Fault::StallReply(gate.clone()))]),
        };
        for (op, n, fault) in faults {
            bucket.faulty.inject_nth(op, n, fault);
        }
        let mut rename = Hand::new(node.rename(from, to));
        let mut how = Polled::Stepped;
        for _ in 0..polls {
            if rename.is_done() {
                rename.output().unwrap();
                assert_eq!(bucket.objects(), self.after(), "it is not renamed");
                finish(&node, draft);
                assert!(lab.staged().is_empty(), "a record of what is done is left");
                return None;
            }
            if how == Polled::Waits {
                break;
            }
            how = rename.poll();
        }
        assert!(how != Polled::Waits || !matches!(stop, Stop::Polls(_)), "it waits");
        // What is stalled never comes through.
        bucket.faulty.forget_faults();
        lab.kill_all(move || drop((rename, draft, node)));
        Some(bucket)
    }
}

fn finish(node: &Node, draft: Option<Arc<Draft>>) {
    if let Some(draft) = draft {
        let writer = node.writer.clone();
        drive(async move { writer.finish(&draft).await });
    }
}

/// Makes an object of one part, without a nonce.
fn insert_in_parts(bucket: &Bucket, key: &'static str, bytes: Bytes) {
    let memory = bucket.memory.clone();
    drive(async move {
        let size = bytes.len() as u64;
        let etag = memory.insert("whole", bytes);
        let source = CopySource { key: "whole".into(), etag, size };
        let id = memory.create_copy(&source, key).await.unwrap();
        let part = memory.copy_part(&source, 0..size, key, &id, 1).await.unwrap();
        let write = WriteIntent { condition: Condition::Always, writer: String::new() };
        memory.complete_upload(key, &id, &[part], &write).await.unwrap();
        memory.remove("whole");
    });
}
