//! What only Weir is asked: many processes on one model, small reads beside streams and beside hostile
//! tenants, restarts.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use weir_fuse::blocking::MayBlock;
use weir_fuse::cache::dir::CacheDir;
use weir_fuse::cache::index::{Batch, Index};
use weir_fuse::cache::records::ObjectRow;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::cached::is_cached;
use weir_tests::csi_node::{CsiNode, TestVolume};
use weir_tests::eventually;
use weir_tests::mount::cache_dir;

use crate::contestant::{Contestant, Kind};
use crate::neighbours;
use crate::report::{LIMIT, Report, Work};
use crate::stage::{BIG, Stage};
use crate::works;

const ONE: Work = Work::new("mmap of a cold model, one process", "ms");
const FOUR: Work = Work::new("mmap of a cold model, four processes at once", "ms");
const FOUR_RATIO: Work = Work::new("four processes' time to one's", "times");
const FETCHED: Work = Work::new("bytes fetched for the four, to the model's", "times");
const LAST: &str = "beside/4";
const BESIDE_MEDIAN: Work = Work {
    name: "64 KiB cold read beside four streams, median",
    unit: "ms",
    limit: "(bare GETs beside them)",
};
const BESIDE_P99: Work =
    Work { name: "64 KiB cold read beside four streams, P99", ..BESIDE_MEDIAN };
const BESIDE_RATIO: Work = Work::new("its P99 to its median", "times");
const MILLION: Work =
    Work::new("mount until listing after kill -9, 1 M versions in the index", "ms");
const PUBLISH_MEDIAN: Work = Work::new("NodePublish to the first byte read, median", "ms");
const PUBLISH_P99: Work = Work::new("NodePublish to the first byte read, P99", "ms");
const FILES: Work = Work::new("memory with 64 readers of cold files, RSS", "MiB");
const FILES_TIME: Work = Work::new("64 readers of cold files, 16 MiB each", "MiB/s");

/// Runs all of it.
pub(crate) fn run(stage: &Stage, rounds: usize, only: Option<&str>) -> Report {
    let mut report = Report::new("Weir alone, loopback".into());
    let wanted = |work: &Work| only.is_none_or(|only| work.name.contains(only));
    for _ in 0..rounds {
        if wanted(&FOUR) {
            four_processes(stage, &mut report);
        }
    }
    if wanted(&BESIDE_P99) {
        beside_streams(stage, &mut report);
    }
    if wanted(&FILES) {
        many_readers(stage, &mut report);
    }
    if wanted(&PUBLISH_P99) {
        publish(&mut report);
    }
    if only.is_none_or(|only| neighbours::NAME.contains(only)) {
        neighbours::run(rounds, &mut report);
    }
    if wanted(&MILLION) {
        million_versions(stage, &mut report);
    }
    report
}

fn four_processes(stage: &Stage, report: &mut Report) {
    let mut times = Vec::new();
    for processes in [1, 4] {
        let (mount, _) = Contestant::mount(stage, Kind::Weir, &[]);
        works::warm_memory(stage.sizes.big);
        let start = Instant::now();
        let mut children: Vec<Child> = (0..processes)
            .map(|_| {
                let program = std::env::current_exe().unwrap();
                Command::new(program).arg("--touch").arg(mount.join(BIG)).spawn().unwrap()
            })
            .collect();
        assert!(children.iter_mut().all(|child| child.wait().unwrap().success()));
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        let fetched = mount.status().unwrap().counters.fetched_bytes;
        if processes == 4 {
            report.add(FETCHED, "Weir", fetched as f64 / stage.sizes.big as f64);
        }
        mount.end();
    }
    report.add(ONE, "Weir", times[0]);
    report.add(FOUR, "Weir", times[1]);
    report.add(FOUR_RATIO, "Weir", times[1] / times[0]);
}

fn beside_streams(stage: &Stage, report: &mut Report) {
    const STREAM: u64 = 512 << 20;
    for n in 0..5 {
        stage.put_big(&format!("beside/{n}"), STREAM);
    }
    for bare in [true, false] {
        let (mount, _) = Contestant::mount(stage, Kind::Weir, &[]);
        let streams = AtomicUsize::new(4);
        let mut times = std::thread::scope(|scope| {
            for n in 0..4 {
                let path = mount.join(&format!("beside/{n}"));
                let streams = &streams;
                scope.spawn(move || {
                    works::sequential(&path);
                    streams.fetch_sub(1, Ordering::Relaxed);
                });
            }
            let busy = || streams.load(Ordering::Relaxed) == 4;
            match bare {
                true => cold_reads(STREAM, busy, |at| stage.get(LAST, at, 64 << 10)),
                false => {
                    let file = File::open(mount.join(LAST)).unwrap();
                    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
                    let mut buffer = vec![0; 64 << 10];
                    cold_reads(STREAM, busy, |at| file.read_exact_at(&mut buffer, at).unwrap())
                }
            }
        });
        mount.end();
        times.sort();
        let at = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1000.0;
        let who = if bare { LIMIT } else { "Weir" };
        report.add(BESIDE_MEDIAN, who, at(50));
        report.add(BESIDE_P99, who, at(99));
        report.add(BESIDE_RATIO, who, at(99) / at(50));
    }
    stage.clear("beside/");
}

/// Reads 64 KiB at places that nobody read before, while the streams last.
fn cold_reads(size: u64, busy: impl Fn() -> bool, mut read: impl FnMut(u64)) -> Vec<Duration> {
    let mut places: Vec<u64> = (0..size / (512 << 10)).map(|n| n * (512 << 10)).collect();
    places.shuffle(&mut rand::rng());
    let timed = |at: u64| {
        let start = Instant::now();
        read(at);
        start.elapsed()
    };
    places.into_iter().take_while(|_| busy()).map(timed).collect()
}

fn many_readers(stage: &Stage, report: &mut Report) {
    const SIZE: u64 = 16 << 20;
    for n in 0..64 {
        stage.put_big(&format!("readers/{n:02}"), SIZE);
    }
    let (mount, _) = Contestant::mount(stage, Kind::Weir, &[]);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..64 {
            let path = mount.join(&format!("readers/{n:02}"));
            scope.spawn(move || works::sequential(&path));
        }
    });
    let rate = 64.0 * 16.0 / start.elapsed().as_secs_f64();
    let used = mount.end();
    stage.clear("readers/");
    report.add(FILES_TIME, "Weir", rate);
    report.add(FILES, "Weir", used.rss as f64 / f64::from(1 << 20));
}

/// A pod more on a node that serves the volume already: kubelet's call over a connection of its
/// own, the mount, and a read of a cached file, each time.
fn publish(report: &mut Report) {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("model", vec![7; 1 << 20]);
    let node = CsiNode::new(&bucket);
    let volume = TestVolume::new(&bucket, "first");
    let first = node.publish(&volume).unwrap();
    std::fs::read(first.join("model")).unwrap();
    eventually("it is cached", || is_cached(&first.join("model")));
    let mut times: Vec<f64> = (0..300)
        .map(|n| {
            let pod = volume.pod(&format!("pod-{n}"));
            let start = Instant::now();
            let target = node.publish(&pod).unwrap();
            let mut byte = [0];
            File::open(target.join("model")).unwrap().read_exact_at(&mut byte, 0).unwrap();
            let took = start.elapsed().as_secs_f64() * 1000.0;
            node.unpublish(&pod).unwrap();
            took
        })
        .collect();
    times.sort_by(f64::total_cmp);
    report.add(PUBLISH_MEDIAN, "Weir", times[times.len() / 2]);
    report.add(PUBLISH_P99, "Weir", times[times.len() * 99 / 100]);
    node.unpublish(&volume).unwrap();
}

/// An index of a million versions, mounted after a kill.
fn million_versions(stage: &Stage, report: &mut Report) {
    let cache = cache_dir();
    let dir = CacheDir::own(&MayBlock::own_thread(), cache.path(), 0).unwrap();
    let index = Index::open(&MayBlock::own_thread(), &dir).unwrap();
    for part in 0..100_u64 {
        let objects = (0..10_000).map(|n| {
            let id = part * 10_000 + n + 1;
            let row = ObjectRow {
                bucket: format!("{}\u{1f}{}", stage.url, stage.bucket),
                key: format!("million/{id:07}"),
                etag: format!("\"{id:032x}\""),
                size: 16 << 10,
                held: 16 << 10,
                last_used: id,
                verified_epoch: index.epoch,
            };
            (id, format!("identity of {id:07} in a bucket").into_bytes(), row)
        });
        let batch = Batch { objects: objects.collect(), ..Batch::default() };
        index.apply(&MayBlock::own_thread(), &batch).unwrap();
    }
    drop((index, dir));
    let (mount, _) = Contestant::mount_with(stage, Kind::Weir, &[], cache);
    std::thread::sleep(Duration::from_secs(1));
    let cache = mount.kill();
    let (mount, took) = Contestant::mount_with(stage, Kind::Weir, &[], cache);
    mount.end();
    report.add(MILLION, "Weir", took.as_secs_f64() * 1000.0);
}
