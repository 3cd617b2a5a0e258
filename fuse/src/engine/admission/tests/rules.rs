//! What goes on between opens: retries, reservations, and names that were given up.

use futures_util::future::poll_immediate;
use rustix::io::Errno;

use super::bench::{Bench, Lab, NAME, PATIENCE, ROOT, flags_of};
use super::{Attempt, Inode, Name, Request, Size};
use crate::blocking::MAY;
use crate::engine::modes::Mode;
use crate::engine::open::OpenNow;

/// A file that the kernel reads by itself; a writer was told, and his new inode.
async fn reserved(lab: &Lab) -> (Bench, u64) {
    let bench = Bench::new(lab, (Name::Own, Inode::Cached)).await;
    let refused = bench.session.open(bench.node.ino, &flags_of(Request::Truncate, 1)).await;
    assert_eq!(refused.err(), Some(Errno::STALE));
    let ino = bench.session.lookup(ROOT, NAME).await.unwrap().attr.ino;
    assert_ne!(ino, bench.node.ino);
    (bench, ino)
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_wait_for_the_writer_for_whom_a_name_is_reserved() {
    let lab = Lab::new();
    let (bench, ino) = reserved(&lab).await;
    let reader = flags_of(Request::Read, 2);
    assert!(matches!(bench.session.open_now(MAY, ino, &reader), OpenNow::Ask));
    let reading = bench.session.open(ino, &reader);
    tokio::pin!(reading);
    assert!(poll_immediate(&mut reading).await.is_none());
    bench.session.open(ino, &flags_of(Request::Truncate, 1)).await.unwrap();
    assert!(!bench.session.reservations.is_reserved(|| (ROOT, NAME.into())));
    reading.await.unwrap();
    let mode = bench.session.modes.lock().present(ino);
    assert!(matches!(mode, Some(Mode::Draft(_))), "the writer was first");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_who_does_not_come_is_not_waited_for_for_ever() {
    let lab = Lab::new();
    let (bench, ino) = reserved(&lab).await;
    bench.session.open(ino, &flags_of(Request::Read, 2)).await.unwrap();
    // Another writer needs no leave, nor does he wait.
    let (bench, ino) = reserved(&lab).await;
    bench.session.reservations.prolong(60 * PATIENCE);
    let another = flags_of(Request::Truncate, 3);
    let open = bench.session.open_as(ino, &another, 0);
    tokio::time::timeout(PATIENCE, open).await.expect("he waits").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_ends_with_its_writers_answer_whatever_that_is() {
    let lab = Lab::new();
    let (bench, ino) = reserved(&lab).await;
    // He comes back, and the name leads to what somebody else has stored.
    bench.memory.insert(NAME, "of somebody else");
    let refused = bench.session.open(ino, &flags_of(Request::Truncate, 1)).await;
    assert_eq!(refused.err(), Some(Errno::STALE));
    assert!(!bench.session.reservations.is_reserved(|| (ROOT, NAME.into())));
    // Or the name is gone, and he makes it anew.
    let (bench, _) = reserved(&lab).await;
    bench.memory.remove(NAME);
    bench.session.create(ROOT, NAME, &flags_of(Request::Truncate, 1)).await.unwrap();
    assert!(!bench.session.reservations.is_reserved(|| (ROOT, NAME.into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inode_that_gave_its_name_up_does_not_get_it_back() {
    let lab = Lab::new();
    let (bench, ino) = reserved(&lab).await;
    // The kernel forgets the new one, so that nothing has the name.
    bench.session.forget(ino, 1);
    for request in [Request::Update, Request::Truncate] {
        let refused = bench.session.open(bench.node.ino, &flags_of(request, 2)).await;
        assert_eq!(refused.err(), Some(Errno::STALE), "{request:?}");
    }
    assert_ne!(bench.session.lookup(ROOT, NAME).await.unwrap().attr.ino, bench.node.ino);
    // Another one that is only forgotten does.
    let bench = Bench::new(&lab, (Name::Own, Inode::Closed(Size::Small))).await;
    let known = bench.node.clone();
    bench.session.forget(known.ino, 1);
    let (dir, name) = known.place();
    assert!(dir.shows(&name, &known));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_ends_with_its_answer() {
    let lab = Lab::new();
    let bench = Bench::new(&lab, (Name::Other, Inode::Closed(Size::Small))).await;
    let (ino, session) = (bench.node.ino, &bench.session);
    let open = async |request, thread| session.open(ino, &flags_of(request, thread)).await.err();
    // By a descriptor, past the name: told, served, told again.
    for errno in [Some(Errno::STALE), None, Some(Errno::STALE), None] {
        assert_eq!(open(Request::Read, 1).await, errno);
    }
    // A process that was told twice is told again at its next open.
    assert_eq!(open(Request::Update, 1).await, Some(Errno::STALE));
    assert_eq!(open(Request::Update, 1).await, Some(Errno::STALE));
    assert_eq!(session.retries.attempt(1, &bench.node), Attempt::First);
    // Threads that are not seen: once, until a lookup names the inode.
    for errno in [Some(Errno::STALE), None, None] {
        assert_eq!(open(Request::Read, 0).await, errno);
    }
    let bench = Bench::new(&lab, (Name::Own, Inode::Passable)).await;
    let open = async || bench.session.open(bench.node.ino, &flags_of(Request::Read, 0)).await;
    assert_eq!(open().await.err(), Some(Errno::STALE));
    let ino = bench.session.lookup(ROOT, NAME).await.unwrap().attr.ino;
    let node = bench.session.file(ino).unwrap();
    node.expect_retry();
    bench.session.lookup(ROOT, NAME).await.unwrap();
    assert_eq!(bench.session.retries.attempt(0, &node), Attempt::First);
    assert!(open().await.is_ok(), "the old inode is still held");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_is_emptied_through_a_handle() {
    let lab = Lab::new();
    let bench = Bench::new(&lab, (Name::Own, Inode::Sealed(Size::Small))).await;
    let (ino, session) = (bench.node.ino, &bench.session);
    let writer = session.open(ino, &flags_of(Request::Update, 1)).await.unwrap();
    let change = crate::engine::names::AttrChange {
        size: Some(0),
        handle: Some(writer.fh),
        ..Default::default()
    };
    session.setattr(ino, &change).await.unwrap();
    session.write(MAY, writer.fh, 0, b"anew").unwrap();
    session.release(writer.fh).await;
    assert_eq!(&bench.memory.bytes(NAME).unwrap()[..], b"anew");
}
