//! Orders of threads in the parts that share locks, tried by shuttle:
//! `cargo test -p weir-fuse --features shuttle --test interleavings`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use std::sync::Arc;
use std::time::SystemTime;

use shuttle::sync::Mutex;
use shuttle::thread;
use weir_fuse::buffers::{Block, Buffers};
use weir_fuse::cache::flight::Flights;
use weir_fuse::model::key::DirPrefix;
use weir_fuse::model::version::{ETag, ObjectInfo};
use weir_fuse::namespace::dir::Dir;
use weir_fuse::namespace::file::FileNode;
use weir_fuse::namespace::inode::{InodeTable, Node};

/// Schedules tried of each.
const SCHEDULES: usize = 2000;

fn blocks(count: usize) -> Vec<Block> {
    let buffers = Buffers::new(1 << 24);
    let len = count << 17;
    buffers.try_share(len).unwrap().buffer(len).freeze()
}

/// Readers who miss the same blocks: each block has one flight, whoever begins it, and everybody
/// finds it there or landed.
#[test]
fn each_block_is_fetched_once() {
    let data = blocks(6);
    shuttle::check_random(
        move || {
            let flights = Arc::new(Flights::default());
            let held = Arc::new(Mutex::new([0_u32; 6]));
            let readers: Vec<_> = [0..4, 2..6, 1..3]
                .into_iter()
                .map(|wanted| {
                    let (flights, held, data) = (flights.clone(), held.clone(), data.clone());
                    thread::spawn(move || {
                        let have = |block: u32| held.lock().unwrap()[block as usize] > 0;
                        for flight in flights.begin(wanted.clone(), wanted.end, 3, 9, have) {
                            let range = flight.range();
                            for block in range.clone() {
                                let at = block as usize;
                                flights.landed(&flight, block, &data[at..=at]);
                                thread::yield_now();
                            }
                            // Held before the flight ends, so that nobody fetches it again.
                            range.for_each(|block| held.lock().unwrap()[block as usize] += 1);
                            flights.end(&flight, Ok(()));
                        }
                        for block in wanted {
                            let coming = flights.find(block).is_some();
                            assert!(coming || have(block), "nobody fetches {block}");
                        }
                    })
                })
                .collect();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
            assert!(flights.is_idle());
            assert_eq!(*held.lock().unwrap(), [1; 6], "a block was fetched twice");
        },
        SCHEDULES,
    );
}

fn file(ino: u64, dir: &Arc<Dir>) -> Arc<FileNode> {
    let info = ObjectInfo {
        size: 1,
        etag: ETag::new("e"),
        mtime: SystemTime::UNIX_EPOCH,
        version_id: None,
        writer: None,
    };
    FileNode::new(ino, dir.clone(), "f", &info)
}

/// Lookups and forgets of one inode at once: it is known as long as a reference is out, and gone
/// with the last.
#[test]
fn an_inode_lives_exactly_as_long_as_its_references() {
    shuttle::check_random(
        || {
            let root = Dir::root(DirPrefix::root());
            let table = Arc::new(InodeTable::new(Node::Dir(root.clone()), 0));
            let ino = table.next_ino();
            let node = file(ino, &root);
            // The kernel holds one reference throughout.
            table.referenced(ino, Node::File(node.clone()));
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let (table, node) = (table.clone(), node.clone());
                    thread::spawn(move || {
                        table.referenced(ino, Node::File(node.clone()));
                        table.referenced(ino, Node::File(node));
                        assert!(table.get(ino).is_some());
                        table.forget(ino, 2);
                        assert!(table.get(ino).is_some());
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            table.forget(ino, 1);
            assert!(table.get(ino).is_none());
            assert_eq!(table.len(), 1);
        },
        SCHEDULES,
    );
}
