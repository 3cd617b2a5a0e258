//! Renames whose process is killed at each of their requests, before its effect and after it, and
//! what the next process makes of them.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};

use bytes::Bytes;

use super::lab::{Bucket, Lab, Node};
use super::ops::pattern;
use super::poll::{Hand, Polled, drive};
use crate::origin::OriginError;
use crate::origin::faulty::{Fault, Gate, Op};
use crate::write::WriteError;

/// More polls than any of these renames takes.
const POLLS_MAX: u32 = 500;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    File,
    /// Over another file.
    Over,
    Dir,
}

/// Who stored what is renamed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// Another tool: there is no nonce.
    Theirs,
    Ours,
    /// It is under change, and not stored yet.
    Draft,
}

/// What somebody else does between the kill and the next process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meddling {
    Replaces(End),
    Removes(End),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Source,
    Target,
}

const KINDS: [Kind; 3] = [Kind::File, Kind::Over, Kind::Dir];
const SOURCES: [Source; 3] = [Source::Theirs, Source::Ours, Source::Draft];

type Tree = BTreeMap<String, Bytes>;

/// Where a rename is when its process is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
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
    fn of_many() -> impl Iterator<Item = Self> {
        let ops = [Op::Copy, Op::Delete].into_iter();
        ops.flat_map(|op| (1..=4).flat_map(move |n| [Self::Before(op, n), Self::After(op, n)]))
    }
}

struct Case {
    kind: Kind,
    source: Source,
}

impl Case {
    fn places(&self) -> [(&'static str, &'static str); 2] {
        match self.kind {
            Kind::File | Kind::Over => [("d", "f"), ("e", "g")],
            Kind::Dir => [("", "d"), ("", "x")],
        }
    }

    /// The key of the file that all is about, there and here.
    fn key(&self, end: End) -> &'static str {
        match (self.kind, end) {
            (_, End::Source) => "d/f",
            (Kind::Dir, End::Target) => "x/f",
            (_, End::Target) => "e/g",
        }
    }

    fn bytes() -> Bytes {
        pattern(1, 3000)
    }

    fn old(&self) -> Tree {
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

    fn new(&self) -> Tree {
        let mut all = self.old();
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
    fn killed(&self, lab: &Lab, stop: Stop) -> Option<Bucket> {
        let bucket = lab.bucket();
        for (key, bytes) in self.old() {
            bucket.memory.insert(&key, bytes);
        }
        let node = lab.node(&bucket);
        let mut draft = None;
        if self.source != Source::Theirs {
            bucket.memory.remove("d/f");
            bucket.memory.insert("d/", "");
            let open = node.open(&node.dir("d").unwrap(), "f").unwrap();
            open.write(0, &Self::bytes()).unwrap();
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
                assert_eq!(bucket.objects(), self.new(), "it is not renamed");
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

fn finish(node: &Node, draft: Option<std::sync::Arc<crate::write::draft::Draft>>) {
    if let Some(draft) = draft {
        let writer = node.writer.clone();
        drive(async move { writer.finish(&draft).await });
    }
}

/// Takes the cases through every stop; tells in which a check fails.
fn at_every_stop(lab: &Lab, mut check: impl FnMut(&Case, Bucket)) {
    let mut failures = Vec::new();
    let mut stops = 0;
    for kind in KINDS {
        for source in SOURCES {
            let case = Case { kind, source };
            let mut done = false;
            for stop in (0..POLLS_MAX).map(Stop::Polls).chain(Stop::of_many()) {
                if done && matches!(stop, Stop::Polls(_)) {
                    continue;
                }
                let ended = panic::catch_unwind(AssertUnwindSafe(|| {
                    let bucket = case.killed(lab, stop)?;
                    check(&case, bucket);
                    Some(())
                }));
                match ended {
                    Ok(None) => done = true,
                    Ok(Some(())) => stops += 1,
                    Err(_) => failures.push(format!("{kind:?} of {source:?}, {stop:?}")),
                }
                lab.tidy();
            }
        }
    }
    assert!(stops > 100, "only {stops} stops");
    assert!(failures.is_empty(), "{} of {stops}:\n{}", failures.len(), failures.join("\n"));
}

/// The old tree or the new one, whole. What was under change and not stored is kept.
fn check_whole(lab: &Lab, case: &Case, bucket: &Bucket) {
    let (found, lost) = (bucket.objects(), lab.take_lost());
    let mut unstored = case.old();
    unstored.remove("d/f");
    let is_kept = case.source == Source::Draft && found == unstored;
    if is_kept {
        assert_eq!(lost, [Case::bytes()]);
    } else {
        assert!(found == case.old() || found == case.new(), "there are {:?}", found.keys());
        assert!(lost.iter().all(|bytes| *bytes == Case::bytes()));
    }
    assert!(lab.staged().is_empty(), "left: {:?}", lab.staged().keys());
    assert_eq!(bucket.memory.open_uploads(), 0);
}

#[test]
fn a_rename_that_is_killed_at_any_request_is_undone_or_gone_on_with() {
    let lab = Lab::new();
    let _runtime = lab.enter();
    at_every_stop(&lab, |case, bucket| {
        let next = lab.node(&bucket);
        next.work_off(lab.leftovers());
        check_whole(&lab, case, &bucket);
        // The names are of use: the rename is asked for again, as the kernel does.
        let [from, to] = case.places();
        let again = drive(next.rename(from, to));
        assert!(again.is_ok() || !bucket.objects().contains_key("d/f"), "{again:?}");
    });
}

/// As the kernel asks again while another mount of the same bucket is about it.
#[test]
fn names_wait_for_renames_of_earlier_processes_in_all_mounts() {
    let lab = Lab::new();
    let _runtime = lab.enter();
    at_every_stop(&lab, |case, bucket| {
        let leftovers = lab.leftovers();
        let (first, second) = (lab.node(&bucket), lab.node(&bucket));
        let (held_first, held_second) =
            (first.writer.hold_names(&leftovers), second.writer.hold_names(&leftovers));
        let is_held = held_first.is_some();
        assert_eq!(is_held, held_second.is_some());
        let [from, to] = case.places();
        let mut again = Hand::new(second.rename(from, to));
        if is_held {
            while again.poll() == Polled::Stepped {}
            // A name that is gone is none that is waited for.
            let is_there = bucket.objects().keys().any(|key| key.starts_with("d/"));
            assert!(!again.is_done() || !is_there, "it did not wait");
        }
        let (one, two) = (first.writer.clone(), second.writer.clone());
        let leftovers = std::sync::Arc::new(leftovers);
        let of_first = leftovers.clone();
        drive(async move { one.work_off(&of_first, held_first).await });
        drive(async move { two.work_off(&leftovers, held_second).await });
        again.run(None::<&mut Hand<()>>);
        let again = again.output();
        let found = bucket.objects();
        // Of one that was made before the kernel makes a success.
        assert!(matches!(again, Ok(()) | Err(WriteError::Absent)), "{again:?}");
        let is_new = found == case.new();
        let is_kept = case.source == Source::Draft && !lab.take_lost().is_empty();
        assert!(is_new || is_kept, "{again:?}: there are {:?}", found.keys());
        assert!(lab.staged().is_empty(), "left: {:?}", lab.staged().keys());
    });
}

#[test]
fn what_somebody_else_did_after_a_rename_was_killed_stays() {
    let lab = Lab::new();
    let _runtime = lab.enter();
    let theirs = pattern(99, 3000);
    for meddling in [
        Meddling::Replaces(End::Source),
        Meddling::Replaces(End::Target),
        Meddling::Removes(End::Source),
        Meddling::Removes(End::Target),
    ] {
        at_every_stop(&lab, |case, bucket| {
            let key = match meddling {
                Meddling::Replaces(end) => {
                    bucket.memory.insert(case.key(end), theirs.clone());
                    case.key(end)
                }
                Meddling::Removes(end) => {
                    bucket.memory.remove(case.key(end));
                    case.key(end)
                }
            };
            let before = bucket.objects();
            lab.node(&bucket).work_off(lab.leftovers());
            let after = bucket.objects();
            if matches!(meddling, Meddling::Replaces(_)) {
                assert_eq!(after.get(key), Some(&theirs), "{meddling:?}: {key}");
            }
            let has = |all: &Tree, bytes: &Bytes| all.values().any(|there| there == bytes);
            // What a rename was to replace is what it may replace.
            let over = case.old().get("e/g").cloned();
            for bytes in before.values().filter(|bytes| Some(*bytes) != over.as_ref()) {
                assert!(has(&after, bytes), "{meddling:?}: bytes are lost");
            }
            assert!(lab.staged().is_empty(), "{meddling:?}: {:?}", lab.staged().keys());
        });
    }
}

#[test]
fn a_rename_that_may_not_be_ended_is_tried_a_few_times_and_loses_nothing() {
    let lab = Lab::new();
    let _runtime = lab.enter();
    at_every_stop(&lab, |case, bucket| {
        let mut sessions = 0;
        while sessions == 0 || !lab.leftovers_of_renames().is_empty() {
            sessions += 1;
            assert!(sessions < 10, "it is tried for ever");
            refuse_removals(&bucket);
            bucket.stepped.begun();
            lab.node(&bucket).work_off(lab.leftovers());
            assert!(bucket.stepped.begun().len() < 40, "too many requests");
        }
        let found = bucket.objects();
        let there = |end| found.get(case.key(end)) == Some(&Case::bytes());
        let is_kept = !lab.take_lost().is_empty();
        assert!(there(End::Source) || there(End::Target) || is_kept, "its bytes are lost");
    });
}

/// Who was told of a failure, and went on, loses nothing by a later try to undo it.
#[test]
fn a_late_undo_leaves_what_its_user_went_on_with() {
    let lab = Lab::new();
    let _runtime = lab.enter();
    at_every_stop(&lab, |case, bucket| {
        refuse_removals(&bucket);
        lab.node(&bucket).work_off(lab.leftovers());
        lab.take_lost();
        if lab.leftovers_of_renames().is_empty() {
            return;
        }
        // Both names are there; one of them is replaced.
        let newer = pattern(77, 10);
        bucket.memory.insert(case.key(End::Source), newer.clone());
        let before = bucket.objects();
        bucket.faulty.forget_faults();
        lab.node(&bucket).work_off(lab.leftovers());
        let after = bucket.objects();
        assert_eq!(after.get(case.key(End::Source)), Some(&newer));
        let kept = case.key(End::Target);
        assert_eq!(after.get(kept), before.get(kept), "its copy is gone");
    });
}

fn refuse_removals(bucket: &Bucket) {
    for _ in 0..10 {
        let refusal = OriginError::Denied("AccessDenied".into());
        bucket.faulty.inject_once(Op::Delete, Fault::Fail(refusal));
    }
}
