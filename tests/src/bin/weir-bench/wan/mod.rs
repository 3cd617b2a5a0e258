//! Sites far from the bucket: each has nodes, and what is between them and the WAN is compared.
//!
//! WAN and LAN are delaying, pacing proxies; the regional cache is a twin of AIStore in this process, which
//! stands in for the server. Everything else is real.

mod nginx;
mod site;
mod works;

use std::collections::HashSet;
use std::time::Duration;

use weir_tests::mount::cache_dir;

use crate::contestant::{Contestant, Kind, Place};
use crate::report::{LIMIT, Report, Work};
use site::{Origin, Site};
use works::{Bare, Files, Mounted};

/// Round trip and bits a second of the links.
#[derive(Clone, Copy)]
pub(crate) struct LinkSettings {
    round_trip: Duration,
    bits_per_sec: f64,
}

/// To the origin.
const WAN: LinkSettings = LinkSettings { round_trip: Duration::from_millis(80), bits_per_sec: 1e9 };
/// To the regional cache, or nginx.
const LAN: LinkSettings = LinkSettings { round_trip: Duration::from_millis(2), bits_per_sec: 10e9 };

const DOWNLOAD: Work =
    Work::new("download of a model, first node of a site", "MiB/s").beside("(bare GETs)");
const DOWNLOAD_AGAIN: Work = Work::new("the same, further nodes", "MiB/s").beside("(bare GETs)");
const UPLOAD: Work = Work::new("upload, until close", "MiB/s").beside("(bare PUTs)");
const SESSION: Work =
    Work::new("game session of 2,000 files, first node of a site", "s").beside("(bare GETs)");
const SESSION_AGAIN: Work = Work::new("the same, further nodes", "s").beside("(bare GETs)");
const SMALL_READS: [Work; 3] = [
    Work::new("64 KiB of a model, further nodes: P50", "ms").beside("(bare GETs)"),
    Work::new("64 KiB of a model: P90", "ms").beside("(bare GETs)"),
    Work::new("64 KiB of a model: P99", "ms").beside("(bare GETs)"),
];
const LARGE_READS: [Work; 3] = [
    Work::new("8 MiB of a model, further nodes: P50", "ms").beside("(bare GETs)"),
    Work::new("8 MiB of a model: P90", "ms").beside("(bare GETs)"),
    Work::new("8 MiB of a model: P99", "ms").beside("(bare GETs)"),
];
const EGRESS: Work = Work::new("bytes over the WAN, of those of the objects read at a site", "");
const LARGE_EGRESS: Work = Work::new("the same, of models alone", "");

/// Who is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Bare,
    Nginx,
    Rclone,
    WeirAlone,
    Weir,
}

impl Who {
    const ALL: [Self; 5] = [Self::Bare, Self::Nginx, Self::Rclone, Self::WeirAlone, Self::Weir];

    fn name(self) -> &'static str {
        match self {
            Self::Bare => LIMIT,
            Self::Nginx => "nginx as cache",
            Self::Rclone => "rclone",
            Self::WeirAlone => "Weir without a region",
            Self::Weir => "Weir",
        }
    }

    /// Whether nodes of a site have something in common: else one node is as good as another.
    fn is_shared(self) -> bool {
        matches!(self, Self::Nginx | Self::Weir)
    }
}

/// Runs it on `sites` sites with `nodes` nodes each.
pub(crate) fn run(sites: usize, nodes: usize, only: Option<&str>) -> Report {
    let title = format!(
        "Over a WAN of {} ms and {} Gbit/s, {sites} sites with {nodes} nodes each",
        WAN.round_trip.as_millis(),
        WAN.bits_per_sec / 1e9
    );
    let mut report = Report::new(title);
    let origin = Origin::new();
    for who in Who::ALL {
        if only.is_some_and(|only| !who.name().contains(only)) {
            continue;
        }
        let (sites, nodes) = if who.is_shared() { (sites, nodes) } else { (1, nodes.min(2)) };
        for number in 0..sites {
            run_site(&origin, who, number, nodes, &mut report);
        }
    }
    report
}

fn run_site(origin: &Origin, who: Who, number: usize, nodes: usize, report: &mut Report) {
    let site = Site::new(origin);
    let mut read = HashSet::new();
    let before = site.wan_bytes();
    let mut of_models = 0;
    for node in 0..nodes {
        let session = origin.session((number * nodes + node) as u64);
        let mut mounted = None;
        let bare;
        let files: &dyn Files = match who {
            Who::Bare => {
                bare = Bare::signed(&site, origin);
                &bare
            }
            Who::Nginx => {
                bare = Bare::unsigned(&site, origin);
                &bare
            }
            Who::Rclone => mounted.insert(mount(&site, origin, Kind::Rclone, &[])),
            Who::WeirAlone => mounted.insert(mount(&site, origin, Kind::Weir, &[])),
            Who::Weir => {
                let flags = site.region_flags();
                let flags: Vec<_> = flags.iter().map(String::as_str).collect();
                mounted.insert(mount(&site, origin, Kind::Weir, &flags))
            }
        };
        let is_first = node == 0;
        let before_models = site.wan_bytes();
        if is_first {
            report.add(DOWNLOAD, who.name(), works::download(files, origin, site::MODEL));
            // So that the region has it, too.
            works::download(files, origin, site::RANDOM);
            site.settle();
        } else {
            for (works, size) in [(SMALL_READS, 64 << 10), (LARGE_READS, 8 << 20)] {
                let times = works::random_reads(files, size, node as u64);
                for (work, time) in works.into_iter().zip(times) {
                    report.add(work, who.name(), time);
                }
            }
            report.add(DOWNLOAD_AGAIN, who.name(), works::download(files, origin, site::MODEL));
        }
        of_models += site.wan_bytes() - before_models;
        let work = if is_first { SESSION } else { SESSION_AGAIN };
        report.add(work, who.name(), works::session(files, origin, &session));
        read.extend(session);
        if is_first && let Some(rate) = works::upload(files, origin) {
            report.add(UPLOAD, who.name(), rate);
        }
        if let Some(mounted) = mounted {
            mounted.end();
        }
    }
    let models = 2 * site::MODEL_BYTES;
    let bytes = read.iter().map(|n| site::asset_bytes(*n)).sum::<u64>() + models;
    report.add(EGRESS, who.name(), (site.wan_bytes() - before) as f64 / bytes as f64);
    report.add(LARGE_EGRESS, who.name(), of_models as f64 / models as f64);
}

fn mount(site: &Site, origin: &Origin, kind: Kind, flags: &[&str]) -> Mounted {
    let place = Place {
        url: site.wan_url(),
        bucket: origin.bucket.clone(),
        mountpoint: origin.path("mnt"),
    };
    Mounted::new(Contestant::mount_at(&place, kind, flags, cache_dir()).0)
}
