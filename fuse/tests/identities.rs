//! Whose credentials a mount uses, and what becomes of what others brought.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod node;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use node::{InPlace, Node, ROOT, create, read};
use rustix::io::Errno;
use weir_fuse::blocking::{Turn, in_place};
use weir_fuse::cache::Signer;
use weir_fuse::engine::Session;
use weir_fuse::engine::open::OpenRequest;
use weir_fuse::namespace::{AccessSettings, NamespaceSettings};
use weir_fuse::origin::faulty::{Fault, Faulty, Gate, Op};
use weir_fuse::origin::{Origin, OriginError};

/// Only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

fn access(identity: &str, former: &[&str]) -> AccessSettings {
    let former = former.iter().map(|name| (*name).to_owned()).collect();
    AccessSettings { identity: identity.into(), former, ..AccessSettings::default() }
}

fn denied() -> Fault {
    Fault::Fail(OriginError::Denied("AccessDenied".into()))
}

async fn open(session: &Arc<Session>, name: &str) -> Result<u64, Errno> {
    let shown = session.lookup(ROOT, name).await?;
    Ok(session.open(shown.attr.ino, &OpenRequest::default()).await?.fh)
}

/// Opens and reads a file, so that it is cached.
async fn bring(session: &Arc<Session>, name: &str) {
    let fh = open(session, name).await.unwrap();
    assert_eq!(read(session, fh, 0, 1 << 20).await.unwrap(), vec![7; 100_000]);
    session.release(fh).await;
}

async fn names(session: &Arc<Session>) -> Result<Vec<String>, Errno> {
    let (fh, _) = session.opendir(ROOT).await?;
    let mut names = Vec::new();
    let add = |_, name: &str, _, _| {
        names.push(name.to_owned());
        true
    };
    session.readdir(fh, 2, false, add)?;
    Ok(names)
}

/// Says whether the origin was asked for a permission before the file could be opened.
async fn is_asked_for(session: &Arc<Session>, origin: &Faulty, name: &str) -> bool {
    session.lookup(ROOT, name).await.unwrap();
    origin.inject_once(Op::Get, denied());
    let opened = open(session, name).await;
    origin.forget_faults();
    match opened {
        Ok(fh) => session.release(fh).await,
        Err(errno) => assert_eq!(errno, Errno::ACCESS),
    }
    opened.is_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_replace_others_are_nobody_else() {
    let node = Node::new();
    node.memory.insert("f", vec![7; 100_000]);
    let (origin, one) = node.session_as(access("one", &[]));
    bring(&one, "f").await;
    assert!(!is_asked_for(&one, &origin, "f").await);
    rotate(&one, &access("two", &["one"])).await;
    assert!(!is_asked_for(&one, &origin, "f").await);
    // Of two mounts with the same keys one has newer ones first: until the other has them, too,
    // those before are somebody's.
    let (second, two) = node.session_as(access("two", &[]));
    assert!(!is_asked_for(&two, &second, "f").await);
    rotate(&two, &access("three", &["two"])).await;
    assert!(is_asked_for(&two, &second, "f").await);
    assert!(is_asked_for(&one, &origin, "f").await);
    rotate(&one, &access("three", &["two", "one"])).await;
    assert!(!is_asked_for(&one, &origin, "f").await);
    assert!(!is_asked_for(&two, &second, "f").await);
    // A stranger is somebody else, and from now on nobody knows who brought what.
    let (strange, stranger) = node.session_as(access("stranger", &[]));
    assert!(is_asked_for(&stranger, &strange, "f").await);
    assert!(is_asked_for(&one, &origin, "f").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_a_release_before_is_nobody_else_s() {
    let node = Node::new();
    node.memory.insert("f", vec![7; 100_000]);
    let bucket = node.faulty.bucket_id().clone();
    let (of_before, other) = ("driver".to_owned(), "other".to_owned());
    for identity in [&of_before, &other] {
        let signer = Signer { identity: identity.clone(), ..Signer::default() };
        drop(node.engine.cache.enter(&bucket, signer).await);
    }
    let named = |identity: &str, formerly: &str| AccessSettings {
        formerly: Some(formerly.to_owned()),
        ..access(identity, &[])
    };
    let (_, one) = node.session_as(named("other 1", "other"));
    bring(&one, "f").await;
    let (origin, one) = node.session_as(named("other 1", "other"));
    assert!(is_asked_for(&one, &origin, "f").await, "there is the driver's, too");
    let (origin, two) = node.session_as(named("other 1", "driver"));
    assert!(!is_asked_for(&two, &origin, "f").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_earlier_keys_left_is_worked_off_with_those_that_replaced_them() {
    let node = Node::new();
    let (_, one) = node.session_as(access("one", &[]));
    let lost = create(&one, "f", false).await;
    one.put(lost, 0, b"not stored").unwrap();
    let later = node.killed();
    let (_, stranger) = later.session_as(access("stranger", &[]));
    stranger.lookup(ROOT, "f").await.map(|_| ()).unwrap_err();
    assert_eq!(later.records(), 1, "it is not his");
    let (_, _two) = later.session_as(access("two", &["one"]));
    let kept = async {
        while in_place(|may| later.engine.cache.lost(may)).len() != 1 || later.records() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, kept).await.expect("it is kept in lost/");
    assert_eq!(in_place(|may| later.engine.cache.lost(may))[0].key, "f");
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_are_taken_over_with_the_keys_that_showed_them() {
    let node = Node::new();
    node.memory.insert("f", "bytes");
    let (_, one) = node.session_as(access("one", &[]));
    names(&one).await.unwrap();
    let outage = OriginError::Unreachable("gone".into());
    let (origin, two) = node.session_as(access("two", &["one"]));
    origin.fail_all(Some(outage.clone()));
    assert_eq!(names(&two).await.unwrap(), ["f"]);
    let (origin, stranger) = node.session_as(access("stranger", &[]));
    origin.fail_all(Some(outage));
    assert!(names(&stranger).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_is_narrowed_is_noticed_within_its_lifetime() {
    let node = Node::new();
    node.memory.insert("f", vec![7; 100_000]);
    let (origin, lasting) = node.session_as(access("one", &[]));
    bring(&lasting, "f").await;
    assert!(!is_asked_for(&lasting, &origin, "f").await);
    let settings = AccessSettings { lifetime_s: 0, ..access("one", &[]) };
    let (origin, one) = node.session_as(settings);
    one.lookup(ROOT, "f").await.unwrap();
    // Nobody waits for the answer; what it says counts.
    let fh = open(&one, "f").await.unwrap();
    one.release(fh).await;
    let refused = async {
        loop {
            origin.inject_once(Op::Get, denied());
            match open(&one, "f").await {
                Ok(fh) => one.release(fh).await,
                Err(errno) => break assert_eq!(errno, Errno::ACCESS),
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("each object is asked for");
    // With those that replace them, too: what was refused may be refused still.
    drop(lasting);
    rotate(&one, &access("one'", &["one"])).await;
    assert!(is_asked_for(&one, &origin, "f").await);
    // One that is allowed is shown.
    let fh = open(&one, "f").await.unwrap();
    one.release(fh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_permission_was_narrowed_may_not_begin_without_the_origin() {
    let node = Node::new();
    node.memory.insert("f", vec![7; 100_000]);
    let settings = AccessSettings { lifetime_s: 0, ..access("one", &[]) };
    let shown = NamespaceSettings { access: settings.clone(), ..NamespaceSettings::default() };
    let becomes = async |may: bool| {
        let bucket = node.faulty.bucket_id();
        let waiting = async {
            while node.engine.can_begin_away(bucket, &shown).await != may {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never {may}"));
    };
    let (origin, one) = node.session_as(settings.clone());
    bring(&one, "f").await;
    names(&one).await.unwrap();
    becomes(true).await;
    // He is asked for it, beside, each time.
    origin.inject_once(Op::Get, denied());
    let fh = open(&one, "f").await.unwrap();
    one.release(fh).await;
    becomes(false).await;
    names(&one).await.unwrap();
    becomes(false).await;
    // Another run, to which the origin allows an object.
    let (_, again) = node.session_as(settings.clone());
    let fh = open(&again, "f").await.unwrap();
    again.release(fh).await;
    becomes(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_for_one_version_is_none_for_the_next() {
    let node = Node::new();
    node.memory.insert("f", vec![7; 100_000]);
    let (_, one) = node.session_as(access("one", &[]));
    let origin = Arc::new(Faulty::new(node.memory.clone()));
    let two = node.mount_as(origin.clone(), 0, "", 0, access("two", &[]));
    bring(&two, "f").await;
    // Somebody replaces it, and somebody else than two brings that.
    node.memory.insert("f", vec![8; 100_000]);
    let fh = open(&one, "f").await.unwrap();
    assert_eq!(read(&one, fh, 0, 1 << 20).await.unwrap(), vec![8; 100_000]);
    one.release(fh).await;
    // Two is told of it.
    two.lookup(ROOT, "f").await.unwrap();
    origin.inject_once(Op::Get, denied());
    assert_eq!(open(&two, "f").await, Err(Errno::ACCESS));
    bring_again(&two).await;
}

async fn bring_again(session: &Arc<Session>) {
    let fh = open(session, "f").await.unwrap();
    assert_eq!(read(session, fh, 0, 1 << 20).await.unwrap(), vec![8; 100_000]);
    session.release(fh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_object_says_nothing_of_who_asks() {
    let node = Node::new();
    node.memory.insert("f", vec![7; 100_000]);
    let settings = AccessSettings { lifetime_s: 0, ..access("one", &[]) };
    let shown = NamespaceSettings { access: settings.clone(), ..NamespaceSettings::default() };
    let (origin, one) = node.session_as(settings);
    bring(&one, "f").await;
    names(&one).await.unwrap();
    let archived = OriginError::Denied("InvalidObjectState".into());
    for _ in 0..20 {
        origin.inject_once(Op::Get, Fault::Fail(archived.clone()));
        // It is asked for beside, and shown all the same.
        let fh = open(&one, "f").await.unwrap();
        one.release(fh).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(node.engine.can_begin_away(node.faulty.bucket_id(), &shown).await);
    }
}

/// Gives a mount other credentials.
async fn rotate(session: &Session, access: &AccessSettings) {
    session.credentials_changed(access).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_under_change_is_shown_while_it_is_stored_and_to_nobody_who_may_not_read_it() {
    let node = Node::new();
    node.memory.insert("f", vec![7; 100_000]);
    let settings = AccessSettings { each_object: true, lifetime_s: 0, ..access("pod", &[]) };
    let origin = Arc::new(Faulty::new(node.memory.clone()));
    let pod = node.mount_as(origin.clone(), 0, "", 0, settings);
    let ino = pod.lookup(ROOT, "f").await.unwrap().attr.ino;
    let anew = OpenRequest { write: true, truncate: true, ..OpenRequest::default() };
    let writer = pod.open(ino, &anew).await.unwrap().fh;
    pod.put(writer, 0, b"new").unwrap();
    let gate = Gate::new();
    origin.inject_once(Op::Put, Fault::StallReply(gate.clone()));
    let stored = {
        let pod = pod.clone();
        tokio::spawn(async move { pod.fsync(writer, 0).await })
    };
    tokio::time::timeout(PATIENCE, gate.reached()).await.expect("it is stored");
    // The origin has it already, and it is not known here.
    let reader = open(&pod, "f").await.unwrap();
    assert_eq!(&read(&pod, reader, 0, 3).await.unwrap()[..], b"new");
    pod.release(reader).await;
    origin.inject_once(Op::Get, denied());
    assert_eq!(open(&pod, "f").await, Err(Errno::ACCESS));
    gate.open();
    stored.await.unwrap().unwrap();
    let reader = open(&pod, "f").await.unwrap();
    pod.release(reader).await;
    pod.release(writer).await;
}

/// What waits for the cache's disk while it does not answer.
fn turns(node: &Node) -> Vec<Turn> {
    let disk = node.engine.cache.record_disk();
    std::iter::from_fn(|| disk.calls().try_take()).collect()
}

/// What a mount does that waits for the disk, as far as it comes at once.
async fn begin(waits: impl Future<Output = ()>) -> Pin<Box<impl Future<Output = ()>>> {
    let mut waits = Box::pin(waits);
    assert!(
        tokio::time::timeout(Duration::ZERO, &mut waits).await.is_err(),
        "it waits for the disk"
    );
    waits
}

#[tokio::test(flavor = "multi_thread")]
async fn new_keys_begin_with_nothing_that_those_before_were_allowed_however_long_a_disk_takes() {
    let node = Node::new();
    node.memory.insert("f", vec![7; 100_000]);
    let (origin, one) = node.session_as(access("one", &[]));
    bring(&one, "f").await;
    let fh = open(&one, "f").await.unwrap();
    assert!(!is_asked_for(&one, &origin, "f").await);
    let kept = turns(&node);
    let newer = access("two", &["one"]);
    let rotates = begin(rotate(&one, &newer)).await;
    assert!(is_asked_for(&one, &origin, "f").await);
    drop(kept);
    rotates.await;
    // What is here was brought by those before alone, as the disk says now.
    let known = async {
        while is_asked_for(&one, &origin, "f").await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.expect("nobody else brought it");
    one.release(fh).await;
}
