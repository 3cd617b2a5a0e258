//! Writes of sessions without a kernel, on an origin in memory that misbehaves on command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod node;

use std::sync::Arc;
use std::time::{Duration, Instant};

use node::{InPlace, MIB, Node, ROOT, create, open, read, unavailable};
use rustix::io::Errno;
use weir_fuse::blocking::in_place;
use weir_fuse::engine::Session;
use weir_fuse::engine::names::AttrChange;
use weir_fuse::engine::open::OpenRequest;
use weir_fuse::origin::OriginError;
use weir_fuse::origin::faulty::{Fault, Gate, Op};

#[tokio::test(flavor = "multi_thread")]
async fn a_put_whose_reply_was_lost_is_no_conflict() {
    let node = Node::new();
    let session = node.session();
    for (name, exclusive) in [("plain", false), ("exclusive", true)] {
        let fh = create(&session, name, exclusive).await;
        session.put(fh, 0, b"bytes").unwrap();
        // The probe for conditions comes first; the lost reply is the file's own.
        if exclusive {
            let probe = create(&session, "probed", true).await;
            session.fsync(probe, 0).await.unwrap();
            session.release(probe).await;
        }
        node.faulty.inject_once(Op::Put, Fault::LoseReply(unavailable()));
        assert_eq!(session.fsync(fh, 0).await, Ok(()), "{name}");
        session.release(fh).await;
        assert_eq!(&node.memory.bytes(name).unwrap()[..], b"bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_whose_reply_was_lost_is_no_failure() {
    let node = Node::new();
    let session = node.session();
    let fh = create(&session, "big", true).await;
    let bytes: Vec<u8> = (0..12 * MIB).map(|n| (n / 11) as u8).collect();
    for (at, piece) in bytes.chunks(MIB).enumerate() {
        session.put(fh, (at * MIB) as u64, piece).unwrap();
    }
    node.faulty.inject_once(Op::UploadPart, Fault::Fail(unavailable()));
    node.faulty.inject_once(Op::Complete, Fault::LoseReply(unavailable()));
    assert_eq!(session.fsync(fh, 0).await, Ok(()));
    session.release(fh).await;
    assert!(node.memory.bytes("big").unwrap() == bytes);
    assert_eq!(node.memory.open_uploads(), 0);
    // What was written became the cached version.
    let fh = open(&session, ROOT, "big").await;
    assert!(read(&session, fh, 0, 12 << 20).await.unwrap() == bytes);
    assert_eq!(node.engine.metrics.fetched_bytes.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_somebody_removed_is_made_again() {
    let node = Node::new();
    let session = node.session();
    let fh = create(&session, "big", false).await;
    session.put(fh, 0, &vec![5; 11 * MIB]).unwrap();
    node.faulty.inject_once(Op::Complete, Fault::Fail(OriginError::NoSuchUpload));
    assert_eq!(session.fsync(fh, 0).await, Ok(()));
    assert_eq!(node.memory.bytes("big").unwrap().len(), 11 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_nobody_was_told_about_are_kept_and_counted() {
    let node = Node::new();
    let session = node.session();
    let (told, untold) =
        (create(&session, "told", false).await, create(&session, "f", false).await);
    session.put(told, 0, b"reported").unwrap();
    session.put(untold, 0, b"prec").unwrap();
    node.faulty.fail_all(Some(OriginError::Denied("AccessDenied".into())));
    assert_eq!(session.fsync(told, 0).await, Err(Errno::ACCESS));
    assert_eq!(session.fsync(untold, 0).await, Err(Errno::ACCESS));
    // Through a mapping, after the last close.
    session.put(untold, 4, b"ious").unwrap();
    session.release(told).await;
    session.release(untold).await;
    assert_eq!(node.engine.metrics.lost_closes.get(), 1);
    let lost = node.engine.cache.dirs().next().unwrap().join("lost");
    let kept = std::fs::read_dir(lost).unwrap().map(|entry| entry.unwrap().path());
    let bytes: Vec<_> = kept.filter(|path| path.extension().is_none()).collect();
    assert_eq!(bytes.len(), 1);
    assert_eq!(std::fs::read(&bytes[0]).unwrap(), b"precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_of_an_earlier_engine_is_never_answered_with_success() {
    let node = Node::new();
    node.memory.insert("read", "bytes");
    let before = node.session();
    let (writer, reader) = (create(&before, "f", false).await, open(&before, ROOT, "read").await);
    before.put(writer, 0, b"bytes").unwrap();
    let after = node.session();
    assert_eq!(after.flush(writer, 0).await, Err(Errno::IO));
    assert_eq!(after.fsync(writer, 0).await, Err(Errno::IO));
    assert_eq!(after.put(writer, 0, b"x"), Err(Errno::IO));
    assert_eq!(after.put(reader, 0, b"x"), Err(Errno::BADF));
    assert_eq!(after.fsync(reader, 0).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_whose_record_is_clean_closes_without_error_whatever_engine_is_asked() {
    let node = Node::new();
    node.memory.insert("over", "bytes that are there");
    let session = node.session_of("m", 0);
    let write = OpenRequest { write: true, ..OpenRequest::default() };
    let open = async |name: &str, request: &OpenRequest| {
        let ino = session.lookup(ROOT, name).await.unwrap().attr.ino;
        (ino, session.open(ino, request).await.unwrap().fh)
    };
    let stored = create(&session, "stored", false).await;
    session.put(stored, 0, b"bytes").unwrap();
    let (_, joined) = open("stored", &write).await;
    session.fsync(stored, 0).await.unwrap();
    let dirty = create(&session, "dirty", false).await;
    session.put(dirty, 0, b"bytes").unwrap();
    session.fsync(dirty, 0).await.unwrap();
    session.put(dirty, 5, b" more").unwrap();
    // Two that were there before the file was emptied through one of them.
    let (ino, emptied) = open("over", &write).await;
    let (_, beside) = open("over", &write).await;
    let change = AttrChange { size: Some(0), handle: Some(emptied), ..AttrChange::default() };
    session.setattr(ino, &change).await.unwrap();
    session.put(emptied, 0, b"anew").unwrap();
    session.fsync(emptied, 0).await.unwrap();
    let removed = create(&session, "removed", false).await;
    session.put(removed, 0, b"bytes").unwrap();
    session.unlink(ROOT, "removed").await.unwrap();
    let clean = [stored, joined, emptied, beside, removed];
    let mut node = node;
    for engine in 1..4 {
        node = node.killed();
        let next = node.session_of("m", engine);
        let other = node.session_of("another", engine);
        for fh in clean {
            assert_eq!(next.flush(fh, 0).await, Ok(()), "engine {engine}");
            assert_eq!(next.fsync(fh, 0).await, Ok(()), "engine {engine}");
            assert_eq!(other.flush(fh, 0).await, Err(Errno::IO), "it is not its handle");
        }
        assert_eq!(next.flush(dirty, 0).await, Err(Errno::IO), "engine {engine}");
        until(|| node.records() == 3).await;
    }
    let last = node.session_of("m", 4);
    assert_eq!(last.put(stored, 5, b"x"), Err(Errno::IO));
    assert_eq!(last.flush(stored, 0).await, Err(Errno::IO), "a write through it was refused");
    assert_eq!(last.flush(joined, 0).await, Ok(()));
    for fh in clean {
        last.release(fh).await;
        assert_eq!(last.flush(fh, 0).await, Err(Errno::IO), "it is closed");
    }
    until(|| node.records() == 0).await;
}

/// Waits for a condition.
async fn until(mut check: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if check() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not come to be");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_process_had_not_stored_is_kept_with_its_key() {
    let node = Node::new();
    let session = node.session();
    let (stored, lost) =
        (create(&session, "stored", false).await, create(&session, "f", false).await);
    session.put(stored, 0, b"acknowledged").unwrap();
    session.fsync(stored, 0).await.unwrap();
    session.put(lost, 0, b"not stored").unwrap();
    std::fs::write(node.staging().join("000000000000ffff"), "of nobody knows whom").unwrap();
    let later = node.killed();
    let _session = later.session();
    until(|| in_place(|may| later.engine.cache.lost(may)).len() == 2 && later.staged().is_empty())
        .await;
    let mut kept = in_place(|may| later.engine.cache.lost(may));
    kept.sort_by(|a, b| a.key.cmp(&b.key));
    let keys: Vec<_> = kept.iter().map(|row| row.key.as_str()).collect();
    assert_eq!(keys, ["", "f"]);
    assert_eq!(std::fs::read(&kept[1].path).unwrap(), b"not stored");
    assert!(later.staged().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_file_is_never_published() {
    let node = Node::new();
    node.memory.insert("checkpoint", "the last whole one");
    let session = node.session();
    let ino = session.lookup(ROOT, "checkpoint").await.unwrap().attr.ino;
    let request = OpenRequest { write: true, truncate: true, ..OpenRequest::default() };
    let fh = session.open(ino, &request).await.unwrap().fh;
    session.put(fh, 0, b"half").unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(20);
    assert!(!session.shut_down(until).await);
    assert_eq!(&node.memory.bytes("checkpoint").unwrap()[..], b"the last whole one");
    let kept = in_place(|may| node.engine.cache.lost(may));
    assert_eq!((kept.len(), kept[0].key.as_str()), (1, "checkpoint"));
    assert_eq!(std::fs::read(&kept[0].path).unwrap(), b"half");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_is_refused_changes_nothing() {
    let node = Node::new();
    let session = node.session();
    let fh = create(&session, "f", false).await;
    session.put(fh, 0, b"first").unwrap();
    session.fsync(fh, 0).await.unwrap();
    session.put(fh, 5, b", second").unwrap();
    // The endpoint is probed at the first removal.
    let other = create(&session, "other", false).await;
    session.fsync(other, 0).await.unwrap();
    session.unlink(ROOT, "other").await.unwrap();
    let refused = Fault::Fail(OriginError::Denied("AccessDenied".into()));
    node.faulty.inject_once(Op::Delete, refused);
    assert_eq!(session.unlink(ROOT, "f").await, Err(Errno::ACCESS));
    assert_eq!(session.fsync(fh, 0).await, Ok(()));
    session.release(fh).await;
    assert_eq!(&node.memory.bytes("f").unwrap()[..], b"first, second");
}

#[tokio::test(flavor = "multi_thread")]
async fn fsync_stores_the_file_whatever_the_descriptor() {
    let node = Node::new();
    let session = node.session();
    let fh = create(&session, "f", false).await;
    session.put(fh, 0, b"bytes").unwrap();
    let reader = open(&session, ROOT, "f").await;
    assert_eq!(session.fsync(reader, 0).await, Ok(()));
    assert_eq!(&node.memory.bytes("f").unwrap()[..], b"bytes");
    session.release(reader).await;
    session.release(fh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_was_short_is_sent_again_once_bytes_follow_it() {
    let node = Node::new();
    let session = node.session();
    let fh = create(&session, "f", false).await;
    // The endpoint is probed at the first completion.
    let other = create(&session, "other", false).await;
    session.put(other, 0, &vec![0; 6 * MIB]).unwrap();
    session.fsync(other, 0).await.unwrap();
    // Two parts of 5 MiB, and a third of 3.
    session.put(fh, 0, &vec![1; 13 * MIB]).unwrap();
    let refused = Fault::Fail(OriginError::Denied("AccessDenied".into()));
    node.faulty.inject_once(Op::Complete, refused);
    assert_eq!(session.fsync(fh, 0).await, Err(Errno::ACCESS));
    // Over a hole: no byte of the third part is written.
    session.put(fh, 15 << 20, &vec![2; MIB]).unwrap();
    assert_eq!(session.fsync(fh, 0).await, Ok(()));
    session.release(fh).await;
    let stored = node.memory.bytes("f").unwrap();
    assert_eq!(stored.len(), 16 * MIB);
    assert!(stored[..13 * MIB].iter().all(|byte| *byte == 1));
    assert!(stored[13 * MIB..15 * MIB].iter().all(|byte| *byte == 0));
    assert!(stored[15 * MIB..].iter().all(|byte| *byte == 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_appeared_meanwhile_is_not_overwritten() {
    let node = Node::new();
    let session = node.session();
    for (exclusive, errno) in [(false, Errno::STALE), (true, Errno::EXIST)] {
        let fh = create(&session, "log", exclusive).await;
        session.put(fh, 0, b"mine").unwrap();
        node.memory.insert("log", "theirs");
        assert_eq!(session.fsync(fh, 0).await, Err(errno));
        session.release(fh).await;
        assert_eq!(&node.memory.bytes("log").unwrap()[..], b"theirs");
        session.unlink(ROOT, "log").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_somebody_removed_while_parts_were_missing_is_made_again() {
    let node = Node::new();
    let session = node.session();
    let fh = create(&session, "big", false).await;
    session.put(fh, 0, &vec![5; 12 * MIB]).unwrap();
    for _ in 0..2 {
        node.faulty.inject_once(Op::UploadPart, Fault::Fail(OriginError::NoSuchUpload));
    }
    assert_eq!(session.fsync(fh, 0).await, Ok(()));
    session.release(fh).await;
    assert_eq!(node.memory.bytes("big").unwrap().len(), 12 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_written_on_while_and_after_it_is_renamed() {
    let node = Node::new();
    let session = node.session();
    session.mkdir(ROOT, "d").await.unwrap();
    let d = session.lookup(ROOT, "d").await.unwrap().attr.ino;
    let request = OpenRequest { write: true, ..OpenRequest::default() };
    let fh = session.create(d, "f", &request).await.unwrap().1.fh;
    let mut expected = vec![7; 12 * MIB];
    session.put(fh, 0, &expected).unwrap();
    session.rename(d, "f", d, "g", false).await.unwrap();
    session.rename(ROOT, "d", ROOT, "e", false).await.unwrap();
    session.put(fh, 12 << 20, b"one more line").unwrap();
    expected.extend_from_slice(b"one more line");
    assert_eq!(session.fsync(fh, 0).await, Ok(()));
    session.release(fh).await;
    assert!(node.memory.bytes("e/g").unwrap() == expected);
    assert_eq!(node.memory.bytes("d/f"), None);
    assert_eq!(node.memory.bytes("e/f"), None);
    assert_eq!(node.memory.open_uploads(), 0);
    let e = session.lookup(ROOT, "e").await.unwrap().attr.ino;
    assert_eq!(session.lookup(e, "g").await.unwrap().attr.size, expected.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn rewriting_in_place_keeps_the_old_bytes_until_the_new_ones_are_stored() {
    let node = Node::new();
    node.memory.insert("state", "old state");
    let session = node.session();
    let ino = session.lookup(ROOT, "state").await.unwrap().attr.ino;
    let request = OpenRequest { write: true, ..OpenRequest::default() };
    let fh = session.open(ino, &request).await.unwrap().fh;
    let change = AttrChange { size: Some(0), handle: Some(fh), ..AttrChange::default() };
    session.setattr(ino, &change).await.unwrap();
    assert_eq!(&node.memory.bytes("state").unwrap()[..], b"old state");
    session.put(fh, 0, b"new").unwrap();
    assert_eq!(session.flush(fh, 0).await, Ok(()));
    session.release(fh).await;
    assert_eq!(&node.memory.bytes("state").unwrap()[..], b"new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_never_removes_what_was_stored_meanwhile() {
    let node = Node::new();
    node.memory.insert("f", "old");
    let session = node.session();
    session.lookup(ROOT, "f").await.unwrap();
    // Between the copy and the removal of its source.
    node.memory.insert("f", "newer");
    session.rename(ROOT, "f", ROOT, "g", false).await.unwrap();
    assert_eq!(node.memory.bytes("f"), None);
    assert_eq!(&node.memory.bytes("g").unwrap()[..], b"newer");
}

/// Closes files of these names whose bytes the origin does not take before the gate is opened.
async fn close_against(node: &Node, session: &Arc<Session>, names: &[&str], gate: &Gate) {
    // The endpoint is probed at the first write.
    let first = create(session, "first", false).await;
    session.fsync(first, 0).await.unwrap();
    session.release(first).await;
    for name in names {
        let fh = create(session, name, false).await;
        session.put(fh, 0, b"precious").unwrap();
        node.faulty.inject_once(Op::Put, Fault::Stall(gate.clone()));
        let session = session.clone();
        tokio::spawn(async move { session.release(fh).await });
    }
    gate.reached().await;
    while !session.status().writing.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn unstored(session: &Session) -> Vec<(String, u64, bool)> {
    let files = session.unstored().into_iter();
    let mut names: Vec<_> = files.map(|file| (file.key, file.bytes, file.is_given_up)).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_whose_removal_was_not_answered_does_not_lose_the_file() {
    let node = Node::new();
    node.memory.insert("f", "bytes");
    node.memory.insert("d/f", "bytes");
    let session = node.session();
    for (name, dir) in [("f", false), ("d", true)] {
        // The endpoint is probed at the first removal.
        let probed = create(&session, "probed", false).await;
        session.fsync(probed, 0).await.unwrap();
        session.unlink(ROOT, "probed").await.unwrap();
        session.release(probed).await;
        session.lookup(ROOT, name).await.unwrap();
        node.faulty.inject_once(Op::Delete, Fault::LoseReply(unavailable()));
        for _ in 1..4 {
            node.faulty.inject_once(Op::Delete, Fault::Fail(unavailable()));
        }
        session.rename(ROOT, name, ROOT, "g", false).await.unwrap();
        let (old, new) = if dir { ("d/f", "g/f") } else { ("f", "g") };
        assert_eq!(node.memory.bytes(old), None);
        assert_eq!(&node.memory.bytes(new).unwrap()[..], b"bytes");
        if !dir {
            session.unlink(ROOT, "g").await.unwrap();
        }
    }
    assert!(node.staged().is_empty(), "nothing is left to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_a_rename_that_is_undone_are_not_remembered() {
    let node = Node::new();
    node.memory.insert("d/f", "bytes");
    node.memory.insert("probe", "");
    let session = node.session();
    // The endpoint is probed at the first rename.
    session.rename(ROOT, "probe", ROOT, "probed", false).await.unwrap();
    let never = Gate::new();
    node.faulty.inject_once(Op::Delete, Fault::Stall(never.clone()));
    for _ in 0..10 {
        node.faulty.inject_once(Op::Copy, Fault::StallReply(never.clone()));
    }
    let renaming = tokio::spawn({
        let session = session.clone();
        async move { session.rename(ROOT, "d", ROOT, "x", false).await }
    });
    until(|| node.memory.bytes("x/f").is_some()).await;
    let next = node.killed();
    let gate = Gate::new();
    next.faulty.inject_once(Op::Delete, Fault::Stall(gate.clone()));
    let session = next.session();
    // What it is about to undo is seen, and would be believed for a minute.
    let x = session.lookup(ROOT, "x").await.unwrap().attr.ino;
    session.lookup(x, "f").await.unwrap();
    gate.open();
    until(|| next.staged().is_empty()).await;
    let writing = create(&session, "waits-for-it", false).await;
    session.release(writing).await;
    assert_eq!(session.lookup(ROOT, "x").await.err(), Some(Errno::NOENT));
    assert_eq!(&node.memory.bytes("d/f").unwrap()[..], b"bytes");
    renaming.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_waits_for_all_files_at_once_and_within_one_deadline() {
    let node = Node::new();
    let session = node.session();
    let gate = Gate::new();
    close_against(&node, &session, &["f0", "f1", "f2", "f3"], &gate).await;
    let ended = session.shut_down(Instant::now() + Duration::from_millis(100));
    let stored = tokio::time::timeout(Duration::from_secs(30), ended).await;
    assert_eq!(stored, Ok(false));
    let left = unstored(&session);
    assert_eq!(left.len(), 4);
    assert!(left.iter().all(|(_, bytes, is_given_up)| *bytes == 8 && !is_given_up), "{left:?}");
    gate.open();
    assert!(session.shut_down(Instant::now() + Duration::from_secs(60)).await);
    assert_eq!(&node.memory.bytes("f3").unwrap()[..], b"precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_stored_is_waited_for_and_then_told() {
    let node = Node::new();
    let session = node.session();
    let soon = || Instant::now() + Duration::from_secs(60);
    let gate = Gate::new();
    close_against(&node, &session, &["kept", "stored"], &gate).await;
    let both = [("kept".to_owned(), 8, false), ("stored".to_owned(), 8, false)];
    for _ in 0..2 {
        assert!(!session.store_all(Instant::now() + Duration::from_millis(50)).await);
        assert_eq!(unstored(&session), both);
    }
    gate.open();
    assert!(session.store_all(soon()).await);
    assert_eq!(unstored(&session), []);
    assert_eq!(&node.memory.bytes("kept").unwrap()[..], b"precious");
    // Never closed.
    let fh = create(&session, "late", false).await;
    session.put(fh, 0, b"precious").unwrap();
    for _ in 0..2 {
        assert!(!session.shut_down(soon()).await);
        assert_eq!(unstored(&session), [("late".to_owned(), 8, true)]);
    }
    assert_eq!(node.engine.metrics.lost_closes.get(), 1);
}
