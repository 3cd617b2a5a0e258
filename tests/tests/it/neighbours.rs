//! Two tenants of one node: what the origin of one does keeps the other from nothing.

use std::sync::Arc;
use std::time::Duration;

use weir_fuse::namespace::AccessSettings;
use weir_fuse::origin::faulty::{Fault, Faulty, Gate, Op};
use weir_fuse::origin::memory::MemoryOrigin;
use weir_tests::mount::cache_dir;
use weir_tests::node::{Node, NodeSettings, read};
use weir_tests::{PATIENCE, eventually, random_bytes, runtime};

const MIB: usize = 1 << 20;
/// More than take all memory and all requests that there are.
const READERS: usize = 100;

#[test]
fn several_origins_that_never_answer_keep_no_other_tenant_waiting() {
    let cache = cache_dir();
    let lit = Arc::new(MemoryOrigin::new("bucket"));
    lit.insert("a", random_bytes(1, 3 * MIB));
    let node = Node::new(cache.path(), lit, NodeSettings::default());
    let gate = Gate::new();
    let readers: Vec<_> = (0..3)
        .flat_map(|tenant| {
            let dark = Arc::new(MemoryOrigin::at(&format!("http://dark{tenant}"), "bucket"));
            let silent = Arc::new(Faulty::new(dark.clone()));
            for n in 0..READERS {
                dark.insert(&format!("f{n}"), random_bytes(n as u64, MIB));
                // Those, too, that are sent again.
                (0..20).for_each(|_| silent.inject_once(Op::Get, Fault::Stall(gate.clone())));
            }
            let session = node.session_of(silent, AccessSettings::default());
            (0..READERS).map(move |n| {
                let session = session.clone();
                std::thread::spawn(move || assert_eq!(read(&session, &format!("f{n}")).len(), MIB))
            })
        })
        .collect();
    let buffers = node.engine.buffers.clone();
    eventually("they hold all memory", || buffers.used() + MIB as u64 > buffers.total());
    let mine = node.session();
    let (told, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send(read(&mine, "a") == random_bytes(1, 3 * MIB)));
    assert_eq!(answer.recv_timeout(PATIENCE), Ok(true));
    gate.open();
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    node.close();
}

#[test]
fn an_origin_that_never_answers_keeps_no_other_tenant_waiting() {
    let cache = cache_dir();
    let lit = Arc::new(MemoryOrigin::new("bucket"));
    lit.insert("a", random_bytes(1, 3 * MIB));
    let node = Node::new(cache.path(), lit, NodeSettings::default());
    let dark = Arc::new(MemoryOrigin::at("http://dark", "bucket"));
    let gate = Gate::new();
    let silent = Arc::new(Faulty::new(dark.clone()));
    for n in 0..READERS {
        dark.insert(&format!("f{n}"), random_bytes(n as u64, MIB));
        silent.inject_once(Op::Get, Fault::Stall(gate.clone()));
    }
    let (mine, others) = (node.session(), node.session_of(silent, AccessSettings::default()));
    let readers: Vec<_> = (0..READERS)
        .map(|n| {
            let others = others.clone();
            std::thread::spawn(move || read(&others, &format!("f{n}")))
        })
        .collect();
    let arrived = runtime()
        .block_on(async { tokio::time::timeout(PATIENCE, gate.reached_by(4)).await.is_ok() });
    assert!(arrived, "nobody asks");
    // All who can have begun.
    std::thread::sleep(Duration::from_millis(300));
    let buffers = &node.engine.buffers;
    assert!(buffers.used() <= buffers.total() / 2, "{} of {}", buffers.used(), buffers.total());
    let (told, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send(read(&mine, "a") == random_bytes(1, 3 * MIB)));
    assert_eq!(answer.recv_timeout(PATIENCE), Ok(true));
    gate.open();
    for (n, reader) in readers.into_iter().enumerate() {
        assert!(reader.join().unwrap() == random_bytes(n as u64, MIB), "f{n}");
    }
    drop(others);
    // Blocks that were read stay in memory, with the runs that they are part of.
    eventually("all memory is given back but for what is kept", || {
        buffers.used() <= buffers.total() / 4 * 3
    });
    node.close();
}
