//! The works: the same calls on a mount and on the raw files.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rand::{Rng, SeedableRng};
use weir_tests::shell::close;

/// Threads that read or write small files.
pub(crate) const THREADS: usize = 8;
const MIB: f64 = 1048576.0;

/// Makes the next reads come from the disk. 1 drops pages; 3 names and attributes, too.
pub(crate) fn drop_caches(what: u8) {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", what.to_string()).unwrap();
}

/// Touches as much memory as a work on a file of `bytes` takes, and gives it back. On a virtual
/// machine whose host takes free memory away, whoever allocates first would pay for its return.
pub(crate) fn warm_memory(bytes: u64) {
    let bytes = bytes as usize * 2 + (256 << 20);
    let mut map = memmap2::MmapMut::map_anon(bytes).unwrap();
    for page in map.chunks_mut(rustix::param::page_size()) {
        page[0] = 1;
    }
}

/// Reads a file from start to end by 1 MiB; MiB a second.
pub(crate) fn sequential(path: &Path) -> f64 {
    let start = Instant::now();
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let read = file.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        total += read;
    }
    assert_eq!(total as u64, file.metadata().unwrap().len());
    total as f64 / MIB / start.elapsed().as_secs_f64()
}

/// 4 KiB reads at random places; reads a second.
pub(crate) fn random(path: &Path) -> f64 {
    const COUNT: usize = 200_000;
    let file = File::open(path).unwrap();
    let blocks = file.metadata().unwrap().len() / 4096;
    let mut random = rand::rngs::StdRng::seed_from_u64(3);
    let mut buffer = [0; 4096];
    let start = Instant::now();
    for _ in 0..COUNT {
        let offset = random.random_range(0..blocks) * 4096;
        file.read_exact_at(&mut buffer, offset).unwrap();
    }
    COUNT as f64 / start.elapsed().as_secs_f64()
}

/// Touches every page of a mapping; MiB a second.
pub(crate) fn map(path: &Path) -> f64 {
    let start = Instant::now();
    let file = File::open(path).unwrap();
    let map = weir_tests::cached::map(&file);
    let step = rustix::param::page_size();
    let sum: u64 = map.iter().step_by(step).map(|b| u64::from(*b)).sum();
    std::hint::black_box(sum);
    map.len() as f64 / MIB / start.elapsed().as_secs_f64()
}

/// Lists every folder and stats every file below `root`; files a second.
pub(crate) fn walk(root: &Path, expected: usize) -> f64 {
    let start = Instant::now();
    let mut open: Vec<PathBuf> = vec![root.to_owned()];
    let mut files = 0;
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.metadata().unwrap().is_dir() {
                open.push(entry.path());
            } else {
                files += 1;
            }
        }
    }
    assert_eq!(files, expected);
    files as f64 / start.elapsed().as_secs_f64()
}

/// Reads all files with [`THREADS`] threads that share one list; files a second.
pub(crate) fn small(root: &Path, keys: &[String]) -> f64 {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut buffer = Vec::new();
                while let Some(key) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
                    buffer.clear();
                    File::open(root.join(key)).unwrap().read_to_end(&mut buffer).unwrap();
                    assert_eq!(buffer.len(), crate::stage::SMALL, "{key}");
                }
            });
        }
    });
    keys.len() as f64 / start.elapsed().as_secs_f64()
}

/// Writes a file by 1 MiB until close has returned; MiB a second.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> f64 {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let start = Instant::now();
    let mut file = File::create(path).unwrap();
    for piece in bytes.chunks(1 << 20) {
        file.write_all(piece).unwrap();
    }
    close(file).unwrap();
    bytes.len() as f64 / MIB / start.elapsed().as_secs_f64()
}

/// Writes files of 64 KiB with [`THREADS`] threads, each closed before the next; files a second.
pub(crate) fn write_small(folder: &Path, count: usize) -> f64 {
    fs::create_dir_all(folder).unwrap();
    let bytes = weir_tests::random_bytes(5, 64 << 10);
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        return;
                    }
                    let mut file = File::create(folder.join(format!("w{n:04}"))).unwrap();
                    file.write_all(&bytes).unwrap();
                    close(file).unwrap();
                }
            });
        }
    });
    count as f64 / start.elapsed().as_secs_f64()
}
