use std::collections::HashSet;

use super::*;
use crate::model::version::ETag;
use crate::origin::faulty::{Fault, Faulty, Gate, Op};
use crate::origin::memory::{Behaviour, MemoryOrigin, Obedience};
use crate::origin::uploads::MemoryUploads;
use ConditionKind as Kind;

const KEY: &str = "dir/key";

struct World {
    memory: Arc<MemoryOrigin>,
    faulty: Arc<Faulty>,
    verdicts: Arc<MemoryVerdicts>,
    uploads: MemoryUploads,
    origin: Conditional,
}

fn world(behaviour: Behaviour) -> World {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    memory.behave(behaviour);
    let faulty = Arc::new(Faulty::new(memory.clone()));
    let verdicts = Arc::new(MemoryVerdicts::default());
    let uploads = MemoryUploads::default();
    let logged = Arc::new(uploads.clone());
    let origin = Conditional::new(faulty.clone(), &DirPrefix::root(), verdicts.clone(), logged);
    World { memory, faulty, verdicts, uploads, origin }
}

fn behaviour(kinds: impl IntoIterator<Item = Kind>, obedience: Obedience) -> Behaviour {
    Behaviour::default().with(kinds, obedience).with_part_min(1)
}

fn intent(condition: Condition) -> WriteIntent {
    WriteIntent { condition, writer: "w".into() }
}

fn wrong() -> ETag {
    ETag::new("wrong").unwrap()
}

fn source(key: &str, etag: ETag, size: u64) -> CopySource {
    CopySource { key: key.into(), etag, size }
}

/// Sends a request of this kind whose condition holds, or does not hold.
async fn send(world: &World, kind: Kind, holds: bool) -> Result<(), OriginError> {
    let (memory, origin) = (&world.memory, &world.origin);
    let there = memory.insert(KEY, "old");
    let from = memory.insert("from", "from");
    let target = memory.insert("to", "old");
    let condition = |etag: &ETag| Condition::Matches(if holds { etag.clone() } else { wrong() });
    if holds && matches!(kind, Kind::PutAbsent | Kind::CompleteAbsent) {
        memory.remove(KEY);
    }
    if holds && kind == Kind::CopyAbsent {
        memory.remove("to");
    }
    let put = async |condition| {
        origin.put(KEY, UploadBody::of("new"), &intent(condition)).await.map(|_| ())
    };
    let complete = async |condition| {
        let id = origin.create_upload(KEY, "w", PartKind::Sent).await?;
        let parts = [origin.upload_part(KEY, &id, 1, UploadBody::of("new")).await?];
        let done = origin.complete_upload(KEY, &id, &parts, &intent(condition)).await;
        if done.is_err() {
            origin.abort_upload(KEY, &id).await?;
        }
        done.map(|_| ())
    };
    let copy = async |etag: &ETag, condition| {
        let source = source("from", etag.clone(), 4);
        origin.copy(&source, "to", &condition).await.map(|_| ())
    };
    let pin = if holds { from.clone() } else { wrong() };
    match kind {
        Kind::PutAbsent => put(Condition::Absent).await,
        Kind::PutMatches => put(condition(&there)).await,
        Kind::CompleteAbsent => complete(Condition::Absent).await,
        Kind::CompleteMatches => complete(condition(&there)).await,
        Kind::CopyAbsent => copy(&from, Condition::Absent).await,
        Kind::CopyMatches => copy(&from, condition(&target)).await,
        Kind::DeleteMatches => origin.delete(KEY, &condition(&there)).await,
        Kind::CopySource => copy(&pin, Condition::Always).await,
        Kind::CopyPartSource => {
            let id = origin.create_upload("to", "w", PartKind::Mixed).await?;
            let source = source("from", pin, 4);
            let sent = origin.copy_part(&source, 0..4, "to", &id, 1).await.map(|_| ());
            origin.abort_upload("to", &id).await?;
            sent
        }
    }
}

fn kept(memory: &MemoryOrigin) -> bool {
    [KEY, "to"].map(|key| memory.bytes(key)) == [Some("old".into()), Some("old".into())]
}

/// However the endpoint takes a condition: what does not hold is refused and has no effect, what
/// holds passes, and nothing is left.
#[tokio::test]
async fn every_condition_holds_whatever_the_endpoint_makes_of_it() {
    use Obedience::*;
    for kind in Kind::ALL {
        for obedience in [Obeyed, ObeyedBare, Ignored, Refused501, Refused412] {
            if obedience == ObeyedBare && format!("{kind:?}").ends_with("Absent") {
                continue;
            }
            let world = world(behaviour([kind], obedience));
            for round in 0..2 {
                let at = format!("{kind:?} {obedience:?} {round}");
                let error = send(&world, kind, false).await.expect_err(&at);
                let of_source = matches!(kind, Kind::CopySource | Kind::CopyPartSource);
                match error {
                    OriginError::Conflict if !of_source => {}
                    OriginError::Changed if of_source => {}
                    other => panic!("{at}: {other}"),
                }
                assert!(kept(&world.memory), "{at}: took effect");
                send(&world, kind, true).await.expect(&at);
                assert_eq!(world.memory.open_uploads(), 0, "{at}");
                assert_eq!(world.uploads.open(), [], "{at}");
                let page = ListRequest {
                    prefix: ".weir".into(),
                    delimited: false,
                    token: None,
                    max_keys: 9,
                };
                assert!(world.memory.list(&page).await.unwrap().objects.is_empty(), "{at}");
            }
        }
    }
}

/// As above for all kinds at once: then no copy by parts is of help.
#[tokio::test]
async fn conditions_hold_where_the_endpoint_obeys_none() {
    for obedience in [Obedience::Ignored, Obedience::Refused501, Obedience::Refused412] {
        let world = world(behaviour(Kind::ALL, obedience));
        for kind in Kind::ALL {
            send(&world, kind, false).await.expect_err(&format!("{kind:?}"));
            assert!(kept(&world.memory), "{kind:?} {obedience:?}");
            send(&world, kind, true).await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_endpoint_is_asked_once_for_each_kind_and_not_without_a_condition() {
    let world = world(Behaviour::default());
    let always = intent(Condition::Always);
    world.faulty.inject_nth(Op::Put, 2, Fault::Fail(OriginError::TimedOut));
    world.origin.put(KEY, UploadBody::of("1"), &always).await.unwrap();
    world.origin.put(KEY, UploadBody::of("2"), &always).await.expect_err("the second PUT");
    world.faulty.inject_nth(Op::Delete, 2, Fault::Fail(OriginError::TimedOut));
    world.origin.delete(KEY, &Condition::Always).await.unwrap();
    world.origin.delete(KEY, &Condition::Always).await.expect_err("the second DELETE");

    send(&world, Kind::PutMatches, true).await.unwrap();
    let etag = world.memory.insert(KEY, "old");
    world.faulty.inject_nth(Op::Put, 2, Fault::Fail(OriginError::TimedOut));
    let write = intent(Condition::Matches(etag));
    world.origin.put(KEY, UploadBody::of("x"), &write).await.unwrap();
    world.origin.put(KEY, UploadBody::of("y"), &always).await.expect_err("the second PUT");

    // Another mount knows it, too.
    let (faulty, verdicts) = (world.faulty.clone(), world.verdicts.clone());
    let uploads = Arc::new(MemoryUploads::default());
    let second = Conditional::new(faulty, &DirPrefix::root(), verdicts, uploads);
    let etag = world.memory.insert(KEY, "old");
    world.faulty.inject_nth(Op::Put, 2, Fault::Fail(OriginError::TimedOut));
    let write = intent(Condition::Matches(etag));
    second.put(KEY, UploadBody::of("x"), &write).await.unwrap();
    second.put(KEY, UploadBody::of("y"), &always).await.expect_err("the second PUT");
}

#[tokio::test]
async fn a_completion_that_was_expected_is_one_request() {
    for condition in [Condition::Absent, Condition::Matches(wrong())] {
        let world = world(Behaviour::default());
        world.origin.expect_completion(&condition).await;
        let id = world.origin.create_upload("new", "w", PartKind::Sent).await.unwrap();
        let parts = [world.origin.upload_part("new", &id, 1, UploadBody::of("x")).await.unwrap()];
        world.faulty.inject_nth(Op::Put, 1, Fault::Fail(OriginError::TimedOut));
        world.faulty.inject_nth(Op::Complete, 2, Fault::Fail(OriginError::TimedOut));
        let write = intent(condition.clone());
        let done = world.origin.complete_upload("new", &id, &parts, &write).await;
        match condition {
            Condition::Absent => drop(done.unwrap()),
            _ => assert!(matches!(done, Err(OriginError::Conflict | OriginError::NotFound))),
        }
        let again = world.origin.complete_upload("new", &id, &parts, &write).await;
        assert!(matches!(again, Err(OriginError::TimedOut)), "{again:?}");
    }
}

#[tokio::test]
async fn a_probe_that_proves_nothing_is_made_again_later() {
    let world = world(behaviour([Kind::PutMatches], Obedience::Ignored));
    let question = Question::Condition(Kind::PutMatches);
    for _ in 0..3 {
        let denied = OriginError::Denied("AccessDenied".into());
        world.faulty.inject_once(Op::Put, Fault::Fail(denied));
    }
    assert_eq!(world.origin.verdict(question).await, None);
    assert_eq!(world.origin.verdict(question).await, None);
    world.origin.state().unanswered.clear();
    assert_eq!(world.origin.verdict(question).await, Some(Verdict::Ignored));
}

#[tokio::test]
async fn a_copy_of_what_was_replaced_meanwhile_is_told_where_nothing_is_obeyed() {
    let world = world(behaviour(Kind::ALL, Obedience::Ignored));
    let etag = world.memory.insert("from", "old");
    for kind in Kind::ALL {
        world.origin.verdict(Question::Condition(kind)).await;
    }
    let gate = Gate::new();
    world.faulty.inject_once(Op::Copy, Fault::Stall(gate.clone()));
    let source = source("from", etag, 3);
    let (copied, ()) = tokio::join!(world.origin.copy(&source, "to", &Condition::Absent), async {
        gate.reached().await;
        world.memory.insert("from", "new");
        gate.open();
    });
    assert!(matches!(copied, Err(OriginError::Changed)), "{copied:?}");
    assert!(world.memory.bytes("to").is_none(), "the copy of another version is left");
}

#[tokio::test]
async fn a_copy_goes_by_parts_where_only_these_obey() {
    let world = world(behaviour([Kind::CopySource], Obedience::Ignored));
    let etag = world.memory.insert("from", "bytes");
    for kind in Kind::ALL {
        world.origin.verdict(Question::Condition(kind)).await;
    }
    world.faulty.inject_once(Op::Copy, Fault::Fail(OriginError::TimedOut));
    let copied = world.origin.copy(&source("from", etag, 5), "to", &Condition::Absent).await;
    assert!(copied.unwrap().etag.unwrap().as_str().ends_with("-1\""));
    assert_eq!(world.memory.bytes("to").unwrap(), "bytes");
    let etag = world.memory.insert("from", "");
    world.origin.copy(&source("from", etag, 0), "empty", &Condition::Absent).await.unwrap();
    assert_eq!(world.memory.bytes("empty").unwrap(), "");
}

/// As OpenStack Swift 2.30 does: what was found out with an object of one part does not hold for it.
#[tokio::test]
async fn a_multipart_object_whose_tag_is_refused_is_copied_all_the_same() {
    let behaviour = Behaviour::default().with_part_min(1);
    let world = world(Behaviour { multipart_sources_refused: true, ..behaviour });
    let always = intent(Condition::Always);
    let id = world.origin.create_upload("from", "w", PartKind::Sent).await.unwrap();
    let parts = [world.origin.upload_part("from", &id, 1, UploadBody::of("bytes")).await.unwrap()];
    let stored = world.origin.complete_upload("from", &id, &parts, &always).await.unwrap();
    let source = source("from", stored.etag.unwrap(), 5);
    world.origin.copy(&source, "to", &Condition::Absent).await.unwrap();
    assert_eq!(world.memory.bytes("to").unwrap(), "bytes");

    let id = world.origin.create_copy(&source, "parts").await.unwrap();
    let part = world.origin.copy_part(&source, 0..5, "parts", &id, 1).await.unwrap();
    world.origin.complete_upload("parts", &id, &[part], &always).await.unwrap();
    assert_eq!(world.memory.bytes("parts").unwrap(), "bytes");

    world.memory.insert("from", "other");
    let copied = world.origin.copy(&source, "third", &Condition::Absent).await;
    assert!(matches!(copied, Err(OriginError::Changed)), "{copied:?}");
    assert!(world.memory.bytes("third").is_none());
}

/// Whoever ends before it, as a process that is killed does, leaves what tells of the upload.
#[tokio::test]
async fn an_upload_of_a_copy_is_remembered_until_it_is_gone() {
    let world = world(behaviour([Kind::CopySource], Obedience::Ignored));
    let etag = world.memory.insert("from", "bytes");
    for kind in Kind::ALL {
        world.origin.verdict(Question::Condition(kind)).await;
    }
    assert_eq!(world.uploads.open(), []);
    for (op, knows_id) in [(Op::Create, false), (Op::CopyPart, true), (Op::Complete, true)] {
        let gate = Gate::new();
        world.faulty.inject_once(op, Fault::StallReply(gate.clone()));
        let source = source("from", etag.clone(), 5);
        tokio::select! {
            _ = world.origin.copy(&source, "to", &Condition::Absent) => panic!("did not stall"),
            () = gate.reached() => {}
        }
        let (key, id) = world.uploads.open().pop().expect("it is remembered");
        assert_eq!((key.as_str(), id.is_some()), ("to", knows_id), "{op:?}");
        world.memory.remove("to");
    }
    let before = world.uploads.open();
    let source = source("from", etag, 5);
    world.origin.copy(&source, "to", &Condition::Absent).await.unwrap();
    assert_eq!(world.uploads.open(), before);
}

#[tokio::test]
async fn a_completion_that_met_another_write_is_told_apart() {
    let world = world(behaviour([Kind::CompleteAbsent], Obedience::Refused409));
    let error = send(&world, Kind::CompleteAbsent, true).await.unwrap_err();
    assert!(matches!(error, OriginError::UploadClash(_)), "{error}");
}

#[tokio::test]
async fn bodies_are_guarded_in_another_way_where_checksums_mean_nothing() {
    let world = world(Behaviour { checksums_obeyed: false, ..Behaviour::default() });
    let damaged = || UploadBody::Memory { bytes: "x".into(), crc32c: 1 };
    let write = intent(Condition::Absent);
    let error = world.origin.put(KEY, damaged(), &write).await.unwrap_err();
    assert!(error.is_digest_mismatch(), "{error}");
    assert!(world.memory.bytes(KEY).is_none());
}

#[tokio::test]
async fn a_weak_tag_is_compared_by_a_request_of_its_own() {
    let world = world(Behaviour::default());
    world.memory.insert(KEY, "old");
    let weak = intent(Condition::Matches(ETag::new("W/\"x\"").unwrap()));
    world.faulty.inject_once(Op::Put, Fault::Fail(OriginError::TimedOut));
    let error = world.origin.put(KEY, UploadBody::empty(), &weak).await.unwrap_err();
    assert!(matches!(error, OriginError::Conflict), "{error}");
}

#[tokio::test]
async fn an_object_without_a_tag_is_not_written_over_where_conditions_mean_nothing() {
    let kinds = [Kind::PutAbsent, Kind::CompleteAbsent, Kind::CopyAbsent];
    for obedience in [Obedience::Ignored, Obedience::Refused501] {
        let world = world(Behaviour { tags_untold: true, ..behaviour(kinds, obedience) });
        for kind in kinds {
            let sent = send(&world, kind, false).await;
            assert!(matches!(sent, Err(OriginError::Conflict)), "{kind:?}: {sent:?}");
            assert_eq!(world.memory.bytes(KEY).unwrap(), "old");
            assert_eq!(world.memory.bytes("to").unwrap(), "old");
        }
    }
}

#[test]
fn the_kinds_are_all_different() {
    assert_eq!(Kind::ALL.into_iter().collect::<HashSet<_>>().len(), 9);
}
