//! The cache on its disk: what is counted, what is kept, and what an earlier process left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

#[path = "../../tests/src/tmpfs.rs"]
#[allow(dead_code, unreachable_pub, reason = "not all of it is used here")]
mod tmpfs;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::TableDefinition;
use tempfile::TempDir;
use tmpfs::Tmpfs;
use weir_fuse::blocking::MayBlock;
use weir_fuse::buffers::{Block, Buffers};
use weir_fuse::cache::records::{FileEntry, ListingEntry, ListingRow};
use weir_fuse::cache::{
    CacheSettings, CachedVersion, DiskSettings, LostRow, NoRoom, NodeCache, Share, StagingFile,
};
use weir_fuse::metrics::Metrics;
use weir_fuse::model::blocks::BLOCK;
use weir_fuse::model::version::{BucketId, ETag, Version, VersionKey};

/// Tests wait.
fn may() -> MayBlock {
    MayBlock::own_thread()
}

/// What tasks wait for.
fn done<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task)
}

const MIB: u64 = 1 << 20;

fn key(name: &str, size: u64) -> VersionKey {
    VersionKey {
        bucket: BucketId::new("http://s3", "b"),
        key: name.into(),
        version: Version { etag: ETag::new("e").unwrap(), size },
    }
}

fn open(settings: &CacheSettings) -> Arc<NodeCache> {
    NodeCache::open(&may(), settings, Arc::new(Metrics::new().unwrap())).unwrap()
}

fn cache(dir: &Path, max_size: u64, min_free: u64) -> Arc<NodeCache> {
    open(&CacheSettings::one(dir, max_size, min_free))
}

/// The bytes of every version here: those of a block tell its number.
fn content(first: u32, blocks: usize) -> Vec<Block> {
    let len = blocks * BLOCK as usize;
    let mut buffer = Buffers::new(len as u64 * 2).try_share(len).unwrap().buffer(len);
    for (at, block) in buffer.bytes_mut().chunks_mut(BLOCK as usize).enumerate() {
        block.fill(first as u8 + at as u8 + 1);
    }
    buffer.freeze()
}

fn read(version: &Arc<CachedVersion>, blocks: std::ops::Range<u32>) -> Option<Vec<u8>> {
    let mut share = Buffers::new(64 * MIB).try_share(blocks.len() << 17).unwrap();
    let read = version.read_run(&may(), blocks, &mut share).ok()?;
    Some(read.iter().flat_map(|block| block.bytes().to_vec()).collect())
}

/// A staging file with the content of a version of so many blocks, and its checksums.
fn staged(cache: &NodeCache, blocks: usize) -> (StagingFile, Vec<u32>) {
    let staging = cache.staging_disk(&[]).create(&may(), None).unwrap();
    let data = content(0, blocks);
    for (block, at) in data.iter().zip(0_u64..) {
        staging.reserve(&may(), (at + 1) * BLOCK).unwrap();
        staging.file().write_all_at(block.bytes(), at * BLOCK).unwrap();
    }
    let sums = data.iter().map(|block| crc32c::crc32c(block.bytes())).collect();
    (staging, sums)
}

fn adopt(cache: &NodeCache, name: &str, blocks: usize) {
    let (staging, sums) = staged(cache, blocks);
    cache.adopt(&may(), &key(name, blocks as u64 * BLOCK), &staging, &sums);
}

fn store(cache: &NodeCache, version: &Arc<CachedVersion>, first: u32) {
    let room = cache.make_room(&may(), version, BLOCK).unwrap();
    version.store(&may(), first, &content(first, 1), &room).unwrap();
}

fn objects(dir: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(dir.join("objects")).unwrap();
    let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < until, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is planted in a cache that is open: folders of somebody else's, by symlinks, and a file of theirs.
#[test]
fn a_symlink_in_the_place_of_a_folder_or_file_leads_nowhere() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cache = cache(dir.path(), u64::MAX, 0);
    let staged = cache.staging_disk(&[]).create(&may(), None).unwrap();
    let held = cache.acquire(&may(), &key("held", BLOCK), &[]);
    store(&cache, &held, 0);
    for folder in ["staging", "objects", "lost"] {
        let theirs = elsewhere.path().join(folder);
        std::fs::create_dir(&theirs).unwrap();
        std::fs::rename(dir.path().join(folder), dir.path().join(format!("{folder}-away")))
            .unwrap();
        std::os::unix::fs::symlink(&theirs, dir.path().join(folder)).unwrap();
    }
    let is_loop = |error: std::io::Error| error.raw_os_error() == Some(40);
    assert!(is_loop(cache.staging_disk(&[]).create(&may(), None).map(drop).unwrap_err()));
    let row = LostRow::new("b", "k", "c", 1);
    assert!(is_loop(cache.keep_lost(&may(), staged.path(), &row).unwrap_err()));
    let theirs = elsewhere.path().join("staging").join(staged.path().file_name().unwrap());
    std::fs::write(&theirs, "theirs").unwrap();
    staged.remove(&may());
    let new = cache.acquire(&may(), &key("new", BLOCK), &[]);
    let room = cache.make_room(&may(), &new, BLOCK).unwrap();
    assert!(is_loop(new.store(&may(), 0, &content(0, 1), &room).unwrap_err()));
    assert_eq!(std::fs::read(&theirs).unwrap(), b"theirs");
    let left = |folder: &str| std::fs::read_dir(elsewhere.path().join(folder)).unwrap().count();
    assert_eq!(["staging", "objects", "lost"].map(left), [1, 0, 0]);
    drop((held, new, room));
    cache.close(&may());
    drop(cache);
    // Nor is it opened with them.
    let settings = CacheSettings::one(dir.path(), u64::MAX, 0);
    let opened = NodeCache::open(&may(), &settings, Arc::new(Metrics::new().unwrap()));
    assert!(opened.map(drop).unwrap_err().to_string().contains("objects"));
}

#[test]
fn a_written_file_takes_the_place_of_what_was_fetched_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), u64::MAX, 0);
    let version = cache.acquire(&may(), &key("f", 3 * BLOCK), &[]);
    store(&cache, &version, 1);
    adopt(&cache, "f", 3);
    assert!(version.is_trusted() && cache.stats(&may()).used_bytes == 3 * BLOCK);
    // Who still has the file open that is gone changes nothing.
    store(&cache, &version, 0);
    let whole: Vec<u8> = content(0, 3).iter().flat_map(|block| block.bytes().to_vec()).collect();
    assert!(read(&version, 0..3).unwrap() == whole);
    let mut passed = version.open_for_passthrough(&may()).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut passed, &mut bytes).unwrap();
    assert!(bytes == whole);
    cache.close(&may());
}

#[test]
fn a_file_with_two_names_is_never_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), u64::MAX, 0);
    adopt(&cache, "a", 2);
    cache.link(&may(), &key("a", 2 * BLOCK), &key("b", 2 * BLOCK));
    let (a, b) = (
        cache.peek(&may(), &key("a", 2 * BLOCK)).unwrap(),
        cache.peek(&may(), &key("b", 2 * BLOCK)),
    );
    assert!(b.unwrap().is_trusted() && objects(dir.path()).len() == 2);
    let open = File::open(&objects(dir.path())[0]).unwrap();
    // Somebody adds to it: neither version is held any more, and one is fetched again.
    OpenOptions::new()
        .append(true)
        .open(&objects(dir.path())[0])
        .unwrap()
        .write_at(&[1], 0)
        .unwrap();
    assert_eq!(open.metadata().unwrap().len(), 2 * BLOCK + 1);
    assert!(read(&a, 0..1).is_none() || a.open_for_passthrough(&may()).is_err());
    store(&cache, &a, 0);
    let mut block = vec![0; BLOCK as usize];
    open.read_exact_at(&mut block, BLOCK).unwrap();
    assert!(block == content(1, 1)[0].bytes(), "the other name's bytes were emptied");
    assert_eq!(a.held_bytes(), BLOCK);
    cache.close(&may());
}

/// One life of a random cache. Versions have one to three blocks; there is room for eight.
struct Life {
    dir: TempDir,
    /// `None` between two lives.
    open: Option<Arc<NodeCache>>,
    rng: StdRng,
    held: Vec<Arc<CachedVersion>>,
    staging: Vec<StagingFile>,
}

const NAMES: [(&str, u64); 6] = [("a", 1), ("b", 2), ("c", 3), ("d", 3), ("e", 2), ("f", 2)];

impl Life {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), 8 * BLOCK, 0);
        Self {
            dir,
            open: Some(cache),
            rng: StdRng::seed_from_u64(seed),
            held: vec![],
            staging: vec![],
        }
    }

    fn cache(&self) -> &NodeCache {
        self.open.as_ref().unwrap()
    }

    fn pick(&mut self, below: usize) -> usize {
        self.rng.random_range(0..below)
    }

    fn step(&mut self) {
        let (name, blocks) = NAMES[self.pick(NAMES.len())];
        let version = key(name, blocks * BLOCK);
        match self.pick(13) {
            0..3 => {
                let block = self.pick(blocks as usize) as u32;
                let version = self.cache().acquire(&may(), &version, &[]);
                if let Some(room) = self.cache().make_room(&may(), &version, BLOCK) {
                    version.store(&may(), block, &content(block, 1), &room).unwrap();
                    self.cache().used(&version);
                }
                if self.pick(4) == 0 {
                    self.held.push(version);
                }
            }
            3 => drop(self.held.pop()),
            4..6 => adopt(self.cache(), name, blocks as usize),
            6 => {
                let same = |other: &&(&str, u64)| other.1 == blocks && other.0 != name;
                if let Some((other, _)) = NAMES.iter().find(same) {
                    self.cache().link(&may(), &version, &key(other, blocks * BLOCK));
                }
            }
            7 => done(self.cache().discard(&version)),
            8 => self.harm(&version),
            9 => {
                let staging = self.cache().staging_disk(&[]).create(&may(), None).unwrap();
                let end = self.pick(3 << 17) as u64;
                staging.reserve(&may(), end).unwrap();
                staging.file().write_all_at(&vec![1; end as usize / 2], 0).unwrap();
                self.staging.push(staging);
            }
            10 => {
                let Some(staging) = self.staging.pop() else { return };
                match self.pick(3) {
                    0 => staging.shrink(self.pick(1 << 17) as u64),
                    1 => staging.remove(&may()),
                    _ => {
                        let row = LostRow::new("b", name, "cause", 1);
                        self.cache().keep_lost(&may(), staging.path(), &row).unwrap();
                    }
                }
            }
            11 => self.cache().flush(&may()),
            _ => self.restart(),
        }
    }

    /// Damages, cuts or removes a file, and reads it.
    fn harm(&mut self, version: &VersionKey) {
        let files = objects(self.dir.path());
        if files.is_empty() {
            return;
        }
        let path = &files[self.pick(files.len())];
        let file = OpenOptions::new().write(true).open(path).unwrap();
        match self.pick(3) {
            0 => file.write_all_at(&[99], 5).unwrap(),
            1 => file.set_len(7).unwrap(),
            _ => fs::remove_file(path).unwrap(),
        }
        let version = self.cache().acquire(&may(), version, &[]);
        for block in (0..3).filter(|block| version.has(*block)) {
            read(&version, block..block + 1);
        }
    }

    fn restart(&mut self) {
        self.held.clear();
        self.staging.clear();
        self.cache().close(&may());
        self.open = None;
        // What is lost would soon take all the room.
        for entry in fs::read_dir(self.dir.path().join("lost")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let settings = CacheSettings::one(self.dir.path(), 8 * BLOCK, 0);
        eventually("the directory is free", || {
            self.open = NodeCache::open(&may(), &settings, Arc::new(Metrics::new().unwrap())).ok();
            self.open.is_some()
        });
    }

    /// What versions say that they hold.
    fn held(&self) -> u64 {
        let version =
            |(name, blocks): &(&str, u64)| self.cache().peek(&may(), &key(name, blocks * BLOCK));
        NAMES.iter().filter_map(version).map(|version| version.held_bytes()).sum()
    }
}

#[test]
fn what_is_counted_is_what_is_held_after_any_sequence() {
    for seed in 0..40 {
        let mut life = Life::new(seed);
        for step in 0..60 {
            life.step();
            let what = format!("the account is right, seed {seed}, step {step}");
            // After a start it is loaded behind.
            eventually(&what, || {
                let disk = &life.cache().stats(&may()).disks[0];
                disk.used_bytes == life.held() + disk.staging_bytes + disk.lost_bytes
            });
        }
        life.cache().close(&may());
    }
}

#[test]
fn what_is_written_makes_place_and_ends_before_the_disk_is_full() {
    let disk = Tmpfs::new(64);
    let cache = cache(disk.path(), u64::MAX, 16 * MIB);
    for name in ["a", "b", "c"] {
        adopt(&cache, name, 48);
    }
    cache.flush(&may());
    assert_eq!(cache.stats(&may()).disks[0].versions, 3);
    let staging = cache.staging_disk(&[]).create(&may(), None).unwrap();
    let mut end = 0;
    let refused = loop {
        if let Err(refused) = staging.reserve(&may(), end + MIB) {
            break refused;
        }
        staging.file().write_all_at(&vec![3; MIB as usize], end).unwrap();
        end += MIB;
    };
    let said = refused.to_string();
    assert!(said.contains("--cache-min-free") && said.contains(disk.path().to_str().unwrap()));
    assert!(matches!(refused, NoRoom::Disk { .. }), "{refused}");
    // All that was cached gave way; what is to stay free stayed, but for the index's growth.
    assert_eq!(cache.stats(&may()).disks[0].versions, 0);
    assert!(disk.free() + 4 * MIB >= 16 * MIB, "{}", disk.free());
    assert!(end >= 36 * MIB, "{end}");
    assert!(cache.stats(&may()).disks[0].staging_bytes >= end);
    // A file that was cut has room again, and one that is gone leaves all of it.
    staging.file().set_len(0).unwrap();
    staging.shrink(0);
    assert_eq!(cache.stats(&may()).used_bytes, 0);
    let other = cache.staging_disk(&[]).create(&may(), None).unwrap();
    other.reserve(&may(), 36 * MIB).unwrap();
    assert!(staging.reserve(&may(), 36 * MIB).is_err());
    other.remove(&may());
    drop(other);
    staging.reserve(&may(), 36 * MIB).unwrap();
    cache.close(&may());
}

#[test]
fn versions_give_way_before_too_few_inodes_are_free() {
    const FLOOR: u64 = 60;
    let disk = Tmpfs::with_inodes(64, 600);
    let dir = disk.path().join("cache");
    let limits =
        DiskSettings { min_free_inodes: FLOOR, ..DiskSettings::new(dir.clone(), u64::MAX, 0) };
    let cache = open(&CacheSettings { disks: vec![limits] });
    for n in 0..400 {
        let name = n.to_string();
        match n % 2 {
            0 => store(&cache, &cache.acquire(&may(), &key(&name, BLOCK), &[]), 0),
            _ => adopt(&cache, &name, 1),
        }
    }
    cache.flush(&may());
    // A first file of a folder brings that, too.
    assert!(disk.free_inodes() + 1 >= FLOOR, "{}", disk.free_inodes());
    let held = cache.stats(&may()).disks[0].versions;
    assert!((200..400).contains(&held) && objects(&dir).len() as u64 == held, "{held}");
    assert!(
        cache.peek(&may(), &key("0", BLOCK)).is_none()
            && cache.peek(&may(), &key("399", BLOCK)).is_some()
    );
    cache.close(&may());
}

#[test]
fn nothing_gives_way_for_inodes_that_others_have() {
    let disk = Tmpfs::with_inodes(64, 200);
    let dir = disk.path().join("cache");
    let limits = DiskSettings { min_free_inodes: 60, ..DiskSettings::new(dir, u64::MAX, 0) };
    let cache = open(&CacheSettings { disks: vec![limits] });
    (0..10).for_each(|n| adopt(&cache, &n.to_string(), 1));
    let others: Vec<PathBuf> = (0..200)
        .map(|n| disk.path().join(n.to_string()))
        .take_while(|path| fs::write(path, "").is_ok())
        .collect();
    let version = cache.acquire(&may(), &key("new", BLOCK), &[]);
    eventually("it is noticed", || cache.make_room(&may(), &version, BLOCK).is_none());
    assert_eq!(cache.stats(&may()).disks[0].versions, 10);
    others.iter().for_each(|path| fs::remove_file(path).unwrap());
    eventually("there is room again", || cache.make_room(&may(), &version, BLOCK).is_some());
    cache.close(&may());
}

#[test]
fn what_is_lost_is_kept_counted_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let disk =
        DiskSettings { lost_max: 64 << 10, ..DiskSettings::new(dir.path().into(), 1 << 30, 0) };
    let settings = CacheSettings { disks: vec![disk] };
    let cache = open(&settings);
    let (own, other) = (BucketId::new("http://s3", "b"), BucketId::new("http://s3", "other"));
    let only = cache.share("");
    let is_full =
        |cache: &NodeCache, share: &Share, bucket| done(cache.lost_is_full(share, bucket));
    assert!(cache.lost(&may()).is_empty() && !is_full(&cache, &only, &own));
    let (staging, _) = staged(&cache, 1);
    let row = LostRow::new("http://s3\u{1f}b", "k", "AccessDenied", BLOCK);
    let path = cache.keep_lost(&may(), staging.path(), &row).unwrap();
    drop(staging);
    assert_eq!(cache.lost(&may()), [LostRow { path: path.clone(), ..row }]);
    assert!(is_full(&cache, &only, &own) && cache.stats(&may()).used_bytes == BLOCK);
    assert!(is_full(&cache, &only, &other));
    drop(only);
    // What another process was writing when it ended is handed out, for those who know whose it is.
    let staged = dir.path().join("staging/00000000000000aa");
    fs::write(&staged, "half").unwrap();
    cache.close(&may());
    drop(cache);
    let cache = open(&settings);
    assert_eq!(cache.take_staged(), [staged]);
    assert!(cache.take_staged().is_empty());
    let lost = cache.lost(&may());
    // Somebody takes them away.
    for row in lost {
        fs::remove_file(&row.path).unwrap();
        fs::remove_file(row.path.with_extension("json")).unwrap();
    }
    assert!(
        !is_full(&cache, &cache.share(""), &own)
            && cache.stats(&may()).used_bytes == 0
            && cache.lost(&may()).is_empty()
    );
    cache.close(&may());
}

#[test]
fn what_one_tenant_has_lost_keeps_no_other_from_writing() {
    let dir = tempfile::tempdir().unwrap();
    let disk =
        DiskSettings { lost_max: 8 * BLOCK, ..DiskSettings::new(dir.path().into(), 1 << 30, 0) };
    let cache = open(&CacheSettings { disks: vec![disk] });
    let buckets = ["a", "b", "c"].map(|name| BucketId::new("http://s3", name));
    let [one, other, third] = ["one", "other", "third"].map(|tenant| cache.share(tenant));
    let is_full = |share: &Share| {
        let each = buckets.each_ref().map(|bucket| done(cache.lost_is_full(share, bucket)));
        assert!(each.iter().all(|full| *full == each[0]), "{each:?}");
        each[0]
    };
    let lose = |share: &Share, bucket: &BucketId, blocks: u64| {
        for _ in 0..blocks {
            let (staging, _) = staged(&cache, 1);
            let tenant = share.tenant().to_owned();
            let row = LostRow { tenant, ..LostRow::new(bucket.as_str(), "k", "c", BLOCK) };
            cache.keep_lost(&may(), staging.path(), &row).unwrap();
        }
    };
    // Half of it in each of his buckets.
    buckets.iter().for_each(|bucket| lose(&one, bucket, 4));
    assert!(is_full(&one) && !is_full(&other) && !is_full(&third));
    // The last quarter is for those who have lost nothing.
    lose(&other, &buckets[0], 2);
    assert!(is_full(&other) && !is_full(&third));
    lose(&third, &buckets[0], 2);
    assert!([&one, &other, &third, &cache.share("fourth")].into_iter().all(|share| is_full(share)));
    cache.close(&may());
}

fn listing(names: usize) -> ListingRow {
    let entry = |n: usize| ListingEntry {
        name: format!("{n:0100}"),
        file: Some(FileEntry { size: 1, etag: None, mtime_ms: 0 }),
    };
    ListingRow { fetched_ms: 0, pages: 1, marker: false, entries: (0..names).map(entry).collect() }
}

#[test]
fn an_index_that_found_the_disk_full_works_again_when_there_is_room() {
    let disk = Tmpfs::new(48);
    let dir = disk.path().join("cache");
    let cache = cache(&dir, u64::MAX, 0);
    assert!(dir.join("index.reserve").exists());
    adopt(&cache, "before", 2);
    cache.flush(&may());
    assert_eq!(cache.problem(), None);
    let filler = disk.path().join("filler");
    let _ = fs::write(&filler, vec![1; 48 << 20]);
    assert!(disk.free() < MIB);
    // More than what is kept for the index takes.
    let names: Vec<Vec<u8>> = (0..10).map(|n: u8| vec![n]).collect();
    for name in &names {
        cache.put_listing(name.clone(), Some(listing(10_000)));
    }
    let bucket = BucketId::new("http://s3", "b");
    cache.put_verdicts(&bucket, b"some".to_vec());
    eventually("the trouble shows", || {
        cache.flush(&may());
        cache.problem().is_some_and(|said| said.contains("index") && said.contains("cache"))
    });
    assert!(cache.stats(&may()).disks[0].problem.is_some());
    // What was known before is known again, though nothing can be written.
    let known = cache.peek(&may(), &key("before", 2 * BLOCK)).unwrap();
    assert!(known.is_complete());
    drop(known);
    fs::remove_file(&filler).unwrap();
    eventually("the index is written again", || {
        cache.flush(&may());
        cache.problem().is_none()
    });
    assert!(dir.join("index.reserve").exists());
    cache.close(&may());
    drop(cache);
    let cache = self::cache(&dir, u64::MAX, 0);
    for name in &names {
        assert_eq!(cache.listing(&may(), name).map(|row| row.entries.len()), Some(10_000));
    }
    assert_eq!(cache.verdicts(&may(), &bucket), Some(b"some".to_vec()));
    assert!(cache.peek(&may(), &key("before", 2 * BLOCK)).unwrap().is_complete());
    cache.close(&may());
}

/// A directory as version 0.1.0 leaves it, written by hand: schema 1, rows as they are there.
fn of_the_first_release(dir: &Path) {
    let file = dir.join("objects/05/0000000000000005");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, vec![1; 5]).unwrap();
    let db = redb::Database::create(dir.join("index.redb")).unwrap();
    let txn = db.begin_write().unwrap();
    let mut meta = txn.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap();
    for (name, value) in [("schema", 1), ("epoch", 0), ("clean", 1), ("next_id", 1 << 32)] {
        meta.insert(name, value).unwrap();
    }
    drop(meta);
    let boot = TableDefinition::<&str, &str>::new("boot");
    txn.open_table(boot).unwrap().insert("boot_id", "another").unwrap();
    // Endpoint and bucket, key, tag, each after its length; size.
    let identity = b"\0\0\0\x0bhttp://s3\x1fb\0\0\0\x05model\0\0\0\x03\"e\"\0\0\0\0\0\0\0\x05";
    let versions = TableDefinition::<&[u8], u64>::new("versions");
    txn.open_table(versions).unwrap().insert(&identity[..], 5).unwrap();
    // The same, then size, held, last use, epoch, as variable-length numbers.
    let row = b"\x0bhttp://s3\x1fb\x05model\x03\"e\"\x05\x05\x07\0";
    let objects = TableDefinition::<u64, &[u8]>::new("objects");
    txn.open_table(objects).unwrap().insert(5, &row[..]).unwrap();
    let mut segment = vec![0; 64];
    segment[0] = 1;
    segment.extend(crc32c::crc32c(&[1; 5]).to_le_bytes());
    let segments = TableDefinition::<(u64, u32), &[u8]>::new("segments");
    txn.open_table(segments).unwrap().insert((5, 0), &segment[..]).unwrap();
    let listings = TableDefinition::<&[u8], &[u8]>::new("listings");
    txn.open_table(listings)
        .unwrap()
        .insert(&b"l"[..], &b"\x05\x01\0\x01\x01f\x01\x02\0\x03"[..])
        .unwrap();
    let uploads = TableDefinition::<&str, &[u8]>::new("uploads");
    txn.open_table(uploads).unwrap().insert("id", &b"\x0bhttp://s3\x1fb\x01k"[..]).unwrap();
    let identities = TableDefinition::<(&str, &str), ()>::new("identities");
    txn.open_table(identities).unwrap().insert(("http://s3\u{1f}b", "me"), ()).unwrap();
    txn.commit().unwrap();
}

#[test]
fn what_the_first_release_cached_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    of_the_first_release(dir.path());
    let cache = cache(dir.path(), u64::MAX, 0);
    let version = cache.peek(&may(), &key("model", 5)).unwrap();
    assert!(version.is_trusted());
    assert_eq!(read(&version, 0..1).unwrap(), [1; 5]);
    eventually("it is counted", || cache.stats(&may()).used_bytes == 5);
    assert_eq!(cache.listing(&may(), b"l").unwrap().entries[0].name, "f");
    let bucket = BucketId::new("http://s3", "b");
    let uploads = cache.take_journaled_uploads(&bucket);
    assert_eq!((uploads.len(), uploads[0].0.as_str(), uploads[0].1.key.as_str()), (1, "id", "k"));
    // A table that it did not have.
    assert_eq!(cache.verdicts(&may(), &bucket), None);
    cache.put_verdicts(&bucket, b"some".to_vec());
    cache.flush(&may());
    assert_eq!(cache.verdicts(&may(), &bucket), Some(b"some".to_vec()));
    for other in [BucketId::new("http://s3", "c"), BucketId::new("https://s3", "b")] {
        assert_eq!(cache.verdicts(&may(), &other), None);
    }
    assert!(!dir.path().join("index.redb.damaged").exists());
    cache.close(&may());
}

#[test]
fn the_index_of_a_newer_release_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    of_the_first_release(dir.path());
    let db = redb::Database::create(dir.path().join("index.redb")).unwrap();
    let txn = db.begin_write().unwrap();
    let meta = TableDefinition::<&str, u64>::new("meta");
    txn.open_table(meta).unwrap().insert("schema", 99).unwrap();
    txn.commit().unwrap();
    drop(db);
    fs::create_dir_all(dir.path().join("lost")).unwrap();
    fs::write(dir.path().join("lost/0000000000000007"), "precious").unwrap();
    let cache = cache(dir.path(), u64::MAX, 0);
    assert!(dir.path().join("index.redb.newer").exists());
    assert!(cache.peek(&may(), &key("model", 5)).is_none());
    // No id is used a second time, and the files that nobody names go.
    let (staging, _) = staged(&cache, 1);
    let number = u64::from_str_radix(staging.path().file_name().unwrap().to_str().unwrap(), 16);
    assert!(number.unwrap() > 7);
    eventually("the old files are removed", || objects(dir.path()).is_empty());
    assert_eq!(fs::read(&cache.lost(&may())[0].path).unwrap(), b"precious");
    cache.close(&may());
}

#[test]
fn the_index_is_closed_before_the_directory_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), u64::MAX, 0);
    adopt(&cache, "a", 1);
    let version = cache.peek(&may(), &key("a", BLOCK)).unwrap();
    cache.close(&may());
    // Somebody still uses it: the directory is in use, its index closed.
    redb::Database::open(dir.path().join("index.redb")).unwrap();
    drop(cache);
    let again = NodeCache::open(
        &may(),
        &CacheSettings::one(dir.path(), u64::MAX, 0),
        Arc::new(Metrics::new().unwrap()),
    );
    assert!(matches!(again, Err(weir_fuse::cache::CacheError::InUse { .. })));
    drop(version);
    self::cache(dir.path(), u64::MAX, 0).close(&may());
}

fn modes(path: &Path, out: &mut Vec<(PathBuf, u32)>) {
    out.push((path.to_owned(), path.symlink_metadata().unwrap().mode() & 0o777));
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            modes(&entry.unwrap().path(), out);
        }
    }
}

#[test]
fn nobody_else_reads_the_cache_whatever_the_umask() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("cache");
    // As an earlier release, and a hostPath that kubelet made, leave them.
    of_the_first_release(&dir);
    let before = rustix::process::umask(rustix::fs::Mode::empty());
    let cache = cache(&dir, u64::MAX, 0);
    adopt(&cache, "a", 1);
    store(&cache, &cache.acquire(&may(), &key("b", BLOCK), &[]), 0);
    let (staging, _) = staged(&cache, 1);
    let (lost, _) = staged(&cache, 1);
    cache.keep_lost(&may(), lost.path(), &LostRow::new("b", "k", "c", BLOCK)).unwrap();
    rustix::process::umask(before);
    let mut found = Vec::new();
    modes(&dir, &mut found);
    assert!(found.len() > 12, "{found:?}");
    // Folders and files that this run made or opens.
    let old = [dir.join("objects/05"), dir.join("objects/05/0000000000000005")];
    for (path, mode) in found.into_iter().filter(|(path, _)| !old.contains(path)) {
        assert_eq!(mode & 0o077, 0, "{} has {mode:o}", path.display());
    }
    drop(staging);
    cache.close(&may());
}

#[test]
fn of_several_tenants_each_has_half_of_a_disk_for_what_it_writes() {
    let disk = Tmpfs::new(64);
    let cache = cache(&disk.path().join("cache"), u64::MAX, 0);
    let free = || cache.stats(&may()).disks[0].free_bytes;
    let staging =
        |share: &Arc<Share>| cache.staging_disk(&[]).create(&may(), Some(share.clone())).unwrap();
    let one = cache.share("one");
    let alone = staging(&one);
    alone.reserve(&may(), free() * 3 / 4).unwrap();
    alone.shrink(0);
    let two = cache.share("two");
    // Of another mount of the same tenant.
    let (first, second) = (staging(&one), staging(&cache.share("one")));
    first.reserve(&may(), free() / 4).unwrap();
    let refused = second.reserve(&may(), free() / 2).unwrap_err();
    assert!(matches!(refused, NoRoom::Share { .. }), "{refused:?}");
    // It is there for the other mount, and again for this one when the file is gone.
    staging(&two).reserve(&may(), free() * 2 / 5).unwrap();
    first.remove(&may());
    drop(first);
    second.reserve(&may(), free() * 2 / 5).unwrap();
    drop(two);
    second.reserve(&may(), free() * 3 / 4).unwrap();
    cache.close(&may());
}

#[test]
fn what_comes_while_a_version_is_checked_is_not_trusted_for_that() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), u64::MAX, 0);
    let version = cache.acquire(&may(), &key("k", 2 * BLOCK), &[]);
    version.note_borrowed();
    store(&cache, &version, 0);
    assert!(!version.note_checked(version.doubts()), "it is not whole");
    store(&cache, &version, 1);
    let looked_at = version.doubts();
    version.note_borrowed();
    assert!(!version.note_checked(looked_at) && version.is_borrowed() && !version.is_trusted());
    assert!(version.note_checked(version.doubts()) && version.is_trusted());
    drop(version);
    cache.close(&may());
}

/// Of what is fetched some is kept in memory alone for a while, and stored by whoever has the version then.
#[test]
fn a_version_that_the_index_trusts_is_not_trusted_with_what_may_come_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = CacheSettings::one(dir.path(), u64::MAX, 0);
    let first = open(&settings);
    let version = first.acquire(&may(), &key("k", 2 * BLOCK), &[]);
    store(&first, &version, 0);
    first.flush(&may());
    version.note_borrowed();
    drop(version);
    first.close(&may());
    drop(first);
    let later = open(&settings);
    let version = later.acquire(&may(), &key("k", 2 * BLOCK), &[]);
    assert!(version.has(0) && version.is_borrowed());
    store(&later, &version, 1);
    assert!(!version.is_trusted());
    version.give_up(&may());
    assert!(version.was_given_up() && !version.is_borrowed() && !version.has(0));
    drop(version);
    later.close(&may());
}
