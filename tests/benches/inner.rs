//! The hot inner parts: index look-up, range map, checksum, inode table.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a bench that cannot set its stage is to fail, loudly; criterion makes its own main"
)]

use std::hint::black_box;
use std::time::SystemTime;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_fuse::blocking::MayBlock;
use weir_fuse::cache::dir::CacheDir;
use weir_fuse::cache::index::{Batch, Index};
use weir_fuse::cache::records::{ObjectRow, decode_segment, encode_segment};
use weir_fuse::model::blocks::BlockMap;
use weir_fuse::model::key::DirPrefix;
use weir_fuse::model::version::{ETag, ObjectInfo};
use weir_fuse::namespace::dir::Dir;
use weir_fuse::namespace::file::FileNode;
use weir_fuse::namespace::inode::{InodeTable, Node};
use weir_fuse::namespace::memory::NameMemory;
use weir_node::topology::nvml::Library;
use weir_node::topology::sysfs::Sysfs;
use weir_node::topology::{NVML_DEADLINE, read};

fn index_look_up(c: &mut Criterion) {
    const ROWS: u64 = 100_000;
    let temp = tempfile::tempdir().unwrap();
    let dir = CacheDir::own(&MayBlock::own_thread(), temp.path(), 0).unwrap();
    let index = Index::open(&MayBlock::own_thread(), &dir).unwrap();
    let identity = |id: u64| format!("identity of {id:08} in a bucket").into_bytes();
    let row = |id: u64| ObjectRow {
        bucket: "http://s3\u{1f}bucket".into(),
        key: format!("assets/textures/{id:08}.bin"),
        etag: format!("\"{id:032x}\""),
        size: 16 << 10,
        held: 16 << 10,
        last_used: id,
        verified_epoch: 0,
    };
    let objects = (0..ROWS).map(|id| (id, identity(id), row(id))).collect();
    index.apply(&MayBlock::own_thread(), &Batch { objects, ..Batch::default() }).unwrap();
    let mut at = 0;
    c.bench_function("index: find among 100,000", |b| {
        b.iter(|| {
            at = (at + 7919) % ROWS;
            assert!(index.find(&MayBlock::own_thread(), &identity(at)).is_some());
        });
    });
}

fn range_map(c: &mut Criterion) {
    // 4 GiB with every third block missing.
    let mut map = BlockMap::empty(32_768);
    (0..32_768).filter(|block| block % 3 != 0).for_each(|block| map.insert(block, block));
    c.bench_function("range map: runs of missing blocks in 64 MiB", |b| {
        b.iter(|| map.missing(black_box(8000..8512)));
    });
    c.bench_function("range map: encode and decode 64 MiB", |b| {
        b.iter(|| {
            let row = encode_segment(&map, 7);
            assert!(decode_segment(&mut BlockMap::empty(32_768), 7, &row));
        });
    });
}

fn checksum(c: &mut Criterion) {
    let block = weir_tests::random_bytes(1, 128 << 10);
    let mut group = c.benchmark_group("crc32c");
    group.throughput(Throughput::Bytes(block.len() as u64));
    group.bench_function("a block of 128 KiB", |b| b.iter(|| crc32c::crc32c(black_box(&block))));
    group.finish();
}

fn inode_table(c: &mut Criterion) {
    let memory = NameMemory::new(1 << 30);
    let root = Dir::root(DirPrefix::root(), memory.clone());
    let table = InodeTable::new(Node::Dir(root.clone()), 0, memory);
    let info = ObjectInfo {
        size: 1,
        etag: ETag::new("e"),
        mtime: SystemTime::UNIX_EPOCH,
        version_id: None,
        writer: None,
    };
    let node = |ino| Node::File(FileNode::new(ino, root.clone(), "f", &info));
    (2..1_000_000).for_each(|ino| table.referenced(ino, node(ino)));
    let mut at = 2;
    c.bench_function("inode table of 1 M: look up", |b| {
        b.iter(|| {
            at = (at + 7919) % 999_000 + 2;
            assert!(table.get(at).is_some());
        });
    });
    let extra = node(2_000_000);
    c.bench_function("inode table of 1 M: reference and forget", |b| {
        b.iter(|| {
            table.referenced(2_000_000, extra.clone());
            table.forget(2_000_000, 1);
        });
    });
}

/// What a node does every minute, in a thread of its own: the real nvml-wrapper over a library
/// that answers as a machine with eight GPUs does.
fn topology(c: &mut Criterion) {
    if std::env::var_os("WEIR_FAKE_NVML").is_none() {
        eprintln!("topology: set WEIR_FAKE_NVML to tests/fake-nvml/machines/dgx-h100.json");
        return;
    }
    let gpus = Library::new(Some(weir_tests::nvml::library()), NVML_DEADLINE);
    c.bench_function("topology: eight GPUs behind NVSwitches", |b| {
        b.iter(|| assert_eq!(read(&gpus, &Sysfs::default()).gpu.gpus.len(), 8));
    });
}

criterion_group!(inner, index_look_up, range_map, checksum, inode_table, topology);
criterion_main!(inner);
