//! Renames whose process is killed at each of their requests, before its effect and after it, and
//! what the next process makes of them.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use bytes::Bytes;

use super::acts::pattern;
use super::lab::{Bucket, Lab};
use super::poll::{Hand, Polled, drive};
use super::renaming::{Case, End, KINDS, POLLS_MAX, SOURCES, Source, Stop, Tree};
use crate::origin::OriginError;
use crate::origin::faulty::{Fault, Op};
use crate::write::WriteError;

/// What somebody else does between the kill and the next process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meddling {
    Replaces(End),
    Removes(End),
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
fn check_whole(lab: &Lab, case: &Case, bucket: &Bucket, forward: bool) {
    let (found, lost) = (bucket.objects(), lab.take_lost());
    let mut unstored = case.before();
    unstored.remove("d/f");
    let is_kept = case.source == Source::Draft && found == unstored;
    if is_kept {
        assert_eq!(lost, [Case::bytes()]);
    } else {
        let is_done = found == case.after();
        assert!(is_done || found == case.before(), "there are {:?}", found.keys());
        assert!(is_done || !forward, "its point of no return was passed");
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
        let forward = lab
            .staged()
            .into_values()
            .any(|text| String::from_utf8_lossy(&text).contains(r#""forward":true"#));
        next.work_off(lab.leftovers());
        check_whole(&lab, case, &bucket, forward);
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
        let leftovers = Arc::new(leftovers);
        let of_first = leftovers.clone();
        drive(async move { one.work_off(&of_first, held_first).await });
        drive(async move { two.work_off(&leftovers, held_second).await });
        again.run(None::<&mut Hand<()>>);
        let again = again.output();
        let found = bucket.objects();
        // Of one that was made before the kernel makes a success.
        assert!(matches!(again, Ok(()) | Err(WriteError::Absent)), "{again:?}");
        let is_new = found == case.after();
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
            let over = case.before().get("e/g").cloned();
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

/// Its copy has another tag, and none of the two has a nonce: it is known by what was noted.
#[test]
fn the_copy_of_an_object_in_parts_is_known_by_its_tag() {
    let lab = Lab::new();
    let _runtime = lab.enter();
    for kind in KINDS {
        let case = Case { kind, source: Source::Parts };
        let bucket = case.killed(&lab, Stop::Before(Op::Delete, 1)).unwrap();
        lab.node(&bucket).work_off(lab.leftovers());
        check_whole(&lab, &case, &bucket, true);
    }
}

fn refuse_removals(bucket: &Bucket) {
    for _ in 0..10 {
        let refusal = OriginError::Denied("AccessDenied".into());
        bucket.faulty.inject_once(Op::Delete, Fault::Fail(refusal));
    }
}
