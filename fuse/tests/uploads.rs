//! Uploads and readers of one node: what the one has under way is none of the other's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod node;

use std::sync::Arc;
use std::time::Duration;

use node::{InPlace, MIB, Node, ROOT, create, open, read};
use weir_fuse::engine::Session;
use weir_fuse::origin::faulty::{Fault, Gate, Op};

/// Only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// A file of some parts, the last of them short.
const FILE: usize = 22 * MIB;

fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 13 + seed) as u8).collect()
}

async fn write(session: &Arc<Session>, name: &str, data: &[u8]) -> u64 {
    let fh = create(session, name, false).await;
    for (at, piece) in data.chunks(MIB).enumerate() {
        session.put(fh, (at * MIB) as u64, piece).unwrap();
    }
    fh
}

async fn sync(session: &Arc<Session>, fh: u64) {
    let stored = tokio::time::timeout(PATIENCE, session.fsync(fh, 0)).await;
    assert_eq!(stored, Ok(Ok(())));
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_stall_keep_no_memory_and_no_reader_waiting() {
    let node = Node::new();
    node.memory.insert("cold", bytes(7, 8 * MIB));
    let (gate, mut writers) = (Gate::new(), Vec::new());
    for n in 0..4 {
        // A mount for each pod: together they have more under way than there is memory.
        let (faulty, session) = node.faulty(60);
        for _ in 0..8 {
            faulty.inject_once(Op::UploadPart, Fault::Stall(gate.clone()));
        }
        let fh = write(&session, &format!("f{n}"), &bytes(n, FILE)).await;
        let closing = tokio::spawn({
            let session = session.clone();
            async move { sync(&session, fh).await }
        });
        writers.push(closing);
    }
    let under_way = tokio::time::timeout(PATIENCE, gate.reached_by(16)).await;
    assert_eq!(under_way, Ok(()), "four parts of each mount are under way");
    assert_eq!(node.engine.buffers.used(), 0);
    let reader = node.session();
    let cold = async {
        let fh = open(&reader, ROOT, "cold").await;
        read(&reader, fh, 0, 8 << 20).await
    };
    let cold = tokio::time::timeout(PATIENCE, cold).await.expect("a reader waits for uploads");
    assert!(cold.unwrap() == bytes(7, 8 * MIB));
    assert!(writers.iter().all(|writer| !writer.is_finished()));
    gate.open();
    for (n, writer) in writers.into_iter().enumerate() {
        writer.await.unwrap();
        assert!(node.memory.bytes(&format!("f{n}")).unwrap() == bytes(n, FILE));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_stored_although_readers_have_all_of_the_memory() {
    let node = Node::new();
    let session = node.session();
    let buffers = &node.engine.buffers;
    let _all = buffers.try_share(buffers.total() as usize).unwrap();
    // By one PUT, from memory and from the file; and in parts.
    for (name, size) in [("small", 1000), ("single", 4 * MIB), ("parts", FILE)] {
        let fh = write(&session, name, &bytes(size, size)).await;
        sync(&session, fh).await;
        session.release(fh).await;
        assert!(node.memory.bytes(name).unwrap() == bytes(size, size), "{name}");
    }
    // And what changed of one that is stored.
    let fh = write(&session, "log", &bytes(1, FILE)).await;
    sync(&session, fh).await;
    session.put(fh, FILE as u64, b"more").unwrap();
    sync(&session, fh).await;
    assert_eq!(node.memory.bytes("log").unwrap().len(), FILE + 4);
}
