//! Orders of threads in the parts that share locks, tried by shuttle:
//! `cargo test -p weir-fuse --features shuttle --test interleavings`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use shuttle::sync::Mutex;
use shuttle::thread;
use weir_fuse::blocking::MayBlock;
use weir_fuse::buffers::{Block, Buffers};
use weir_fuse::cache::flight::{AskerId, Flights};
use weir_fuse::cache::{CacheSettings, CachedVersion, NodeCache};
use weir_fuse::metrics::Metrics;
use weir_fuse::model::blocks::BLOCK;
use weir_fuse::model::key::DirPrefix;
use weir_fuse::model::version::{BucketId, ETag, ObjectInfo, Version, VersionKey};
use weir_fuse::namespace::dir::Dir;
use weir_fuse::namespace::file::FileNode;
use weir_fuse::namespace::inode::{InodeTable, Node};
use weir_fuse::namespace::memory::NameMemory;
use weir_fuse::origin::Origin;
use weir_fuse::origin::memory::MemoryOrigin;

/// Tests wait.
fn may() -> MayBlock {
    MayBlock::own_thread()
}

/// Schedules tried of each.
const SCHEDULES: usize = 2000;

fn blocks(count: usize) -> Vec<Block> {
    let buffers = Buffers::new(1 << 24);
    let len = count << 17;
    let mut buffer = buffers.try_share(len).unwrap().buffer(len);
    buffer.bytes_mut().fill(7);
    buffer.freeze()
}

/// Readers who miss the same blocks: each block has one flight, whoever begins it, and everybody
/// finds it there or landed.
#[test]
fn each_block_is_fetched_once() {
    let data = blocks(6);
    let origin: Arc<dyn Origin> = Arc::new(MemoryOrigin::new("bucket"));
    let asker = AskerId::of(&origin);
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
                        for flight in flights.begin(asker, wanted.clone(), wanted.end, 3, 9, have) {
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
            let memory = NameMemory::new(0);
            let root = Dir::root(DirPrefix::root(), memory.clone());
            let table = InodeTable::new(Node::Dir(root.clone()), 0, memory);
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

fn version(name: &str, blocks: u64) -> VersionKey {
    VersionKey {
        bucket: BucketId::new("memory", "bucket"),
        key: name.into(),
        version: Version { etag: ETag::new("e").unwrap(), size: blocks * BLOCK },
    }
}

fn cache(dir: &Path, max_size: u64) -> Arc<NodeCache> {
    let settings = CacheSettings::one(dir, max_size, 0);
    NodeCache::open(&may(), &settings, Arc::new(Metrics::new().unwrap())).unwrap()
}

fn store(cache: &NodeCache, version: &Arc<CachedVersion>, first: u32, data: &[Block]) {
    let room = cache.make_room(&may(), version, data.len() as u64 * BLOCK).unwrap();
    version.store(&may(), first, data, &room).unwrap();
}

/// Runs schedules, each on a cache directory of its own. Each of them opens a real index, hence
/// fewer than of others.
fn with_cache_dirs(test: impl Fn(&Path) + Send + Sync + 'static) {
    shuttle::check_random(move || test(tempfile::tempdir().unwrap().path()), SCHEDULES / 10);
}

/// Threads that store, read and lose blocks of one version at once: what it says that it holds is
/// what can be read, and what is counted is what it holds.
#[test]
fn a_range_map_tells_what_can_be_read() {
    with_cache_dirs(|dir| {
        let cache = cache(dir, u64::MAX);
        let key = version("f", 3);
        let held = cache.acquire(&may(), &key, &[]);
        let threads: Vec<_> = [0..2_u32, 1..3, 0..3]
            .into_iter()
            .map(|range| {
                let (cache, key) = (cache.clone(), key.clone());
                thread::spawn(move || {
                    let version = cache.acquire(&may(), &key, &[]);
                    let data = blocks(range.len());
                    store(&cache, &version, range.start, &data);
                    assert!(range.clone().all(|block| version.has(block)));
                    let mut share = Buffers::new(1 << 20).try_share(data.len() << 17).unwrap();
                    let read = version.read_run(&may(), range, &mut share).unwrap();
                    assert!(
                        read.iter().zip(&data).all(|(read, data)| read.bytes() == data.bytes())
                    );
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(held.is_trusted() && held.percent() == 100);
        assert_eq!((held.held_bytes(), cache.stats(&may()).used_bytes), (3 * BLOCK, 3 * BLOCK));
        drop(held);
        cache.close(&may());
    });
}

/// Versions that are opened, filled and left by several threads in a cache with room for two of
/// the three: whoever has one open reads what he stored, and in the end the limit is kept and
/// what is counted is on the disk.
#[test]
fn what_is_open_is_not_evicted() {
    with_cache_dirs(|dir| {
        let cache = cache(dir, 2 * BLOCK);
        let threads: Vec<_> = ["a", "b", "c"]
            .into_iter()
            .map(|name| {
                let cache = cache.clone();
                thread::spawn(move || {
                    for _ in 0..2 {
                        let version = cache.acquire(&may(), &version(name, 1), &[]);
                        if !version.has(0) {
                            let Some(room) = cache.make_room(&may(), &version, BLOCK) else {
                                continue;
                            };
                            version.store(&may(), 0, &blocks(1), &room).unwrap();
                            cache.used(&version);
                        }
                        thread::yield_now();
                        let mut share = Buffers::new(1 << 20).try_share(1 << 17).unwrap();
                        assert!(
                            version.read_run(&may(), 0..1, &mut share).is_ok(),
                            "{name} was evicted"
                        );
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        cache.flush(&may());
        let used = cache.stats(&may()).used_bytes;
        let folders = std::fs::read_dir(dir.join("objects")).unwrap();
        let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
        assert_eq!((used, files.count() as u64), (used.min(2 * BLOCK), used / BLOCK));
        cache.close(&may());
    });
}

/// The last close of a writer, whose file becomes the cached version, against a reader of the same
/// version who is the first to store a block: whoever is first, the version is whole, and what it
/// says that it holds is there.
#[test]
fn a_file_that_is_adopted_is_never_emptied() {
    with_cache_dirs(|dir| {
        let cache = cache(dir, u64::MAX);
        let key = version("f", 2);
        let data = blocks(2);
        let staging = cache.staging_disk(&[]).create(&may(), None).unwrap();
        staging.reserve(&may(), 2 * BLOCK).unwrap();
        for (block, at) in data.iter().zip(0..) {
            staging.file().write_all_at(block.bytes(), at * BLOCK).unwrap();
        }
        let sums: Vec<u32> = data.iter().map(|block| crc32c::crc32c(block.bytes())).collect();
        let reader = {
            let (cache, key) = (cache.clone(), key.clone());
            thread::spawn(move || {
                let version = cache.acquire(&may(), &key, &[]);
                store(&cache, &version, 0, &blocks(1));
                let mut share = Buffers::new(1 << 20).try_share(1 << 17).unwrap();
                assert!(version.read_run(&may(), 0..1, &mut share).is_ok());
                version
            })
        };
        cache.adopt(&may(), &key, &staging, &sums);
        let version = reader.join().unwrap();
        assert!(version.is_trusted());
        let mut share = Buffers::new(1 << 20).try_share(2 << 17).unwrap();
        let read = version.read_run(&may(), 0..2, &mut share).unwrap();
        assert!(read.iter().zip(&data).all(|(read, data)| read.bytes() == data.bytes()));
        drop(staging);
        assert_eq!(cache.stats(&may()).used_bytes, 2 * BLOCK);
        drop(version);
        cache.close(&may());
    });
}
