//! The table: every work, by every contestant, beside its limit.

use bytes::Bytes;

use crate::contestant::{Contestant, Kind};
use crate::limits;
use crate::report::{LIMIT, Report, Work};
use crate::stage::{BIG, Stage};
use crate::works;

const MOUNT: Work = Work::new("mount until first listing", "ms");
const WALK: Work = Work::new("walk + stat, first", "files/s").beside("(disk)");
const WALK_AGAIN: Work = Work::new("walk + stat, again", "files/s").beside("(disk)");
const COLD: Work = Work::new("cold sequential read", "MiB/s").beside("(bare GETs)");
const CACHED: Work = Work::new("read again, page cache dropped", "MiB/s").beside("(disk)");
const WARM: Work = Work::new("read again, warm", "MiB/s").beside("(disk)");
const RANDOM: Work = Work::new("random 4 KiB, warm", "reads/s").beside("(disk)");
const MAP: Work = Work::new("mmap, every page, dropped", "MiB/s").beside("(disk)");
const SMALL: Work = Work::new("small files, first read", "files/s").beside("(bare GETs)");
const SMALL_AGAIN: Work = Work::new("small files again, dropped", "files/s").beside("(disk)");
const WRITE: Work = Work::new("write, until close", "MiB/s").beside("(bare PUTs)");
const WRITE_SMALL: Work = Work::new("write 64 KiB files", "files/s");
const MEMORY: Work = Work::new("peak memory, anon + kernel", "MiB");
const RSS: Work = Work::new("peak memory, RSS", "MiB");
const CPU: Work = Work::new("CPU over all of it", "s");

/// Runs rounds in which everybody takes a turn.
pub(crate) fn run(stage: &Stage, who: &[Kind], rounds: usize, only: Option<&str>) -> Report {
    let place = if stage.is_slow() { "20 ms, 1 Gbit/s" } else { "loopback" };
    let mut report = Report::new(format!("{place}, {} MiB", stage.sizes.big >> 20));
    let bytes = Bytes::from(weir_tests::random_bytes(9, stage.sizes.big as usize));
    let wanted = |work: &Work| only.is_none_or(|only| work.name.contains(only));
    for round in 0..rounds {
        eprintln!("-- {place}, round {} of {rounds}", round + 1);
        raw(stage, &bytes, &mut report, &wanted);
        for kind in who {
            contend(stage, *kind, &bytes, &mut report, &wanted);
        }
    }
    report
}

fn raw(stage: &Stage, bytes: &Bytes, report: &mut Report, wanted: &dyn Fn(&Work) -> bool) {
    let big = stage.raw.join(BIG);
    let keys = stage.small_keys();
    let files = keys.len() + 1;
    let limits: [(Work, &dyn Fn() -> f64); 10] = [
        (WALK, &|| {
            works::drop_caches(3);
            works::walk(&stage.raw, files)
        }),
        (WALK_AGAIN, &|| works::walk(&stage.raw, files)),
        (COLD, &|| limits::gets(stage)),
        (CACHED, &|| {
            works::drop_caches(1);
            works::warm_memory(stage.sizes.big);
            works::sequential(&big)
        }),
        (WARM, &|| works::sequential(&big)),
        (RANDOM, &|| works::random(&big)),
        (MAP, &|| {
            works::drop_caches(1);
            works::warm_memory(stage.sizes.big);
            works::map(&big)
        }),
        (SMALL, &|| limits::small_gets(stage)),
        (SMALL_AGAIN, &|| {
            works::drop_caches(1);
            works::small(&stage.raw, &keys)
        }),
        (WRITE, &|| limits::puts(stage, bytes)),
    ];
    for (work, measure) in limits {
        if wanted(&work) {
            works::warm_memory(stage.sizes.big);
            report.add(work, LIMIT, measure());
        }
    }
}

fn contend(
    stage: &Stage,
    kind: Kind,
    bytes: &Bytes,
    report: &mut Report,
    wanted: &dyn Fn(&Work) -> bool,
) {
    let (mount, until_listing) = Contestant::mount(stage, kind, &[]);
    let name = kind.name();
    report.add(MOUNT, name, until_listing.as_secs_f64() * 1000.0);
    let big = mount.join(BIG);
    let root = mount.join("");
    let keys = stage.small_keys();
    let files = keys.len() + 1;
    let dropped = |measure: &dyn Fn() -> f64| {
        mount.settle();
        works::drop_caches(1);
        // Again: the host has begun to take back what was dropped.
        works::warm_memory(stage.sizes.big);
        measure()
    };
    let steps: [(Work, &dyn Fn() -> f64); 9] = [
        (WALK, &|| works::walk(&root, files)),
        (WALK_AGAIN, &|| works::walk(&root, files)),
        (COLD, &|| works::sequential(&big)),
        (CACHED, &|| dropped(&|| works::sequential(&big))),
        (WARM, &|| works::sequential(&big)),
        (RANDOM, &|| works::random(&big)),
        (MAP, &|| dropped(&|| works::map(&big))),
        (SMALL, &|| works::small(&root, &keys)),
        (SMALL_AGAIN, &|| dropped(&|| works::small(&root, &keys))),
    ];
    for (work, measure) in steps {
        if wanted(&work) {
            works::warm_memory(stage.sizes.big);
            report.add(work, name, measure());
        }
    }
    if kind.is_durable() {
        write(stage, &mount, bytes, report, wanted);
    }
    let used = mount.end();
    stage.clear("written/");
    report.add(CPU, name, used.cpu_secs);
    report.add(MEMORY, name, used.anon_and_kernel as f64 / f64::from(1 << 20));
    report.add(RSS, name, used.rss as f64 / f64::from(1 << 20));
}

/// Writes, and sees that S3 holds what was closed.
fn write(
    stage: &Stage,
    mount: &Contestant,
    bytes: &Bytes,
    report: &mut Report,
    wanted: &dyn Fn(&Work) -> bool,
) {
    if wanted(&WRITE) {
        works::warm_memory(stage.sizes.big);
        let rate = works::write(&mount.join("written/big"), bytes);
        assert_eq!(stage.size_at_s3("written/big"), Some(bytes.len() as u64));
        report.add(WRITE, mount.kind.name(), rate);
    }
    if wanted(&WRITE_SMALL) {
        let rate = works::write_small(&mount.join("written/small"), stage.sizes.written);
        let last = format!("written/small/w{:04}", stage.sizes.written - 1);
        assert_eq!(stage.size_at_s3(&last), Some(64 << 10));
        report.add(WRITE_SMALL, mount.kind.name(), rate);
    }
}
