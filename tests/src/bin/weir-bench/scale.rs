//! How far it goes, and what that takes.

use std::fs::{self, File};
use std::sync::Arc;
use std::time::Instant;

use weir_fuse::origin::memory::MemoryOrigin;
use weir_tests::mount::cache_dir;
use weir_tests::node::{Node, NodeSettings};

use crate::contestant::{Contestant, Kind};
use crate::report::{Report, Work};
use crate::stage::Stage;

const LIST: Work = Work::new("one directory of 100,000 keys: list + stat", "s");
const LIST_AGAIN: Work = Work::new("the same again", "s");
const LIST_MEMORY: Work = Work::new("the same: memory, RSS", "MiB");
const OPEN: Work = Work::new("10,000 files open at once: time", "s");
const OPEN_MEMORY: Work = Work::new("10,000 files open at once: memory, RSS", "MiB");
const TREE: Work = Work::new("walk of all keys of a bucket", "files/s");
const MOUNTS: Work = Work::new("200 mounts in one process: time", "s");
const MOUNTS_MEMORY: Work = Work::new("200 mounts in one process: memory, RSS grown by", "MiB");

/// Runs all of it. `keys` is how many keys the bucket gets, a tenth of them, at most 100,000, in
/// one directory.
pub(crate) fn run(stage: &Stage, keys: usize, only: Option<&str>) -> Report {
    let mut report = Report::new(format!("Limits, loopback, a bucket of {keys} keys"));
    let wanted = |name: &str| only.is_none_or(|only| name.contains(only));
    if wanted("keys") || wanted("open") {
        many_keys(stage, keys, &mut report);
    }
    if wanted("mounts") {
        many_mounts(stage, &mut report);
    }
    report
}

fn many_keys(stage: &Stage, keys: usize, report: &mut Report) {
    let flat = keys.min(100_000);
    eprintln!("putting {keys} keys");
    stage.put_many((0..flat).map(|n| format!("flat/f{n:06}")));
    stage.put_many((flat..keys).map(|n| format!("tree/d{:04}/f{n:07}", n / 1000)));
    let (mount, _) = Contestant::mount(stage, Kind::Weir, &[]);
    let walk = |folder: &str, count: usize| {
        let start = Instant::now();
        crate::works::walk(&mount.join(folder), count);
        start.elapsed().as_secs_f64()
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    report.add(LIST, "Weir", walk("flat", flat));
    report.add(LIST_AGAIN, "Weir", walk("flat", flat));
    report.add(LIST_MEMORY, "Weir", mib(mount.usage().rss));
    let start = Instant::now();
    let count = flat.min(10_000);
    let open: Vec<File> =
        (0..count).map(|n| File::open(mount.join(&format!("flat/f{n:06}"))).unwrap()).collect();
    report.add(OPEN, "Weir", start.elapsed().as_secs_f64());
    report.add(OPEN_MEMORY, "Weir", mib(mount.usage().rss));
    drop(open);
    if keys > flat {
        let took = walk("tree", keys - flat);
        report.add(TREE, "Weir", (keys - flat) as f64 / took);
    }
    mount.end();
}

/// Real mounts of one engine in this process, over an origin in memory.
fn many_mounts(stage: &Stage, report: &mut Report) {
    let cache = cache_dir();
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    memory.insert("file", vec![1; 100_000]);
    let node = Node::new(cache.path(), memory, NodeSettings::default());
    let before = rss();
    let start = Instant::now();
    let mounts: Vec<_> = (0..200).map(|n| node.mount(&stage.path(&format!("many/{n}")))).collect();
    for n in 0..200 {
        let path = stage.path(&format!("many/{n}/file"));
        assert_eq!(fs::read(path).unwrap().len(), 100_000);
    }
    report.add(MOUNTS, "Weir", start.elapsed().as_secs_f64());
    let grown = rss().saturating_sub(before);
    report.add(MOUNTS_MEMORY, "Weir", grown as f64 / f64::from(1 << 20));
    drop(mounts);
    node.close();
}

fn rss() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
