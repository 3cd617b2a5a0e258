//! The bench: Weir beside rclone and s3fs, and all of them beside what the disk and bare
//! requests give, on one MinIO in one run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench that cannot set its stage is to fail, loudly"
)]

mod compare;
mod contestant;
mod limits;
mod neighbours;
mod report;
mod scale;
mod special;
mod stage;
mod usage;
mod wan;
mod works;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use contestant::Kind;
use report::Report;
use stage::{Sizes, Stage};

/// Which parts of the bench to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// All works, on loopback.
    Loopback,
    /// All works, over a link of 20 ms and 1 Gbit/s.
    Slow,
    /// What only Weir is asked: four processes on one model, reads beside streams, restarts.
    Special,
    /// Limits: a million keys, ten thousand open files, two hundred mounts.
    Scale,
    /// Sites far from the bucket, with a regional cache each, beside nginx as one (not among the parts that
    /// are run unless they are named).
    Wan,
}

#[derive(Parser, Debug)]
#[command(about = "Weir beside its peers and its limits")]
struct Args {
    /// Parts to run.
    #[arg(long, value_delimiter = ',', default_values = ["loopback", "slow", "special", "scale"])]
    parts: Vec<Part>,
    /// Whom to compare.
    #[arg(long, value_delimiter = ',', default_values = ["weir", "weir-no-passthrough", "rclone", "s3fs"])]
    who: Vec<Kind>,
    /// Rounds on loopback; over the link it is one less, at least one.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Size of the big file in MiB.
    #[arg(long, default_value_t = 1024)]
    big: u64,
    /// Keys of the bucket in the part `scale`; a million takes ten minutes to put.
    #[arg(long, default_value_t = 100_000)]
    keys: usize,
    /// Sites of the part `wan`.
    #[arg(long, default_value_t = 3)]
    sites: usize,
    /// Nodes of each of them.
    #[arg(long, default_value_t = 4)]
    nodes: usize,
    /// Works whose name contains this; of the part `wan`, contestants.
    #[arg(long)]
    only: Option<String>,
    /// Write all figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Touch every page of a file through a mapping, and end. The bench runs itself so.
    #[arg(long, hide = true)]
    touch: Option<PathBuf>,
}

fn main() {
    weir_node::allocator::bound();
    let args = Args::parse();
    if let Some(path) = &args.touch {
        works::map(path);
        return;
    }
    let mut reports = Vec::new();
    for part in &args.parts {
        reports.push(run(*part, &args));
    }
    for report in &reports {
        println!("\n{}", report.table());
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&reports).unwrap()).unwrap();
    }
}

fn run(part: Part, args: &Args) -> Report {
    let full = Sizes { big: args.big << 20, small: 3000, written: 400 };
    let only = args.only.as_deref();
    match part {
        Part::Loopback => {
            let stage = Stage::new(full, false, 0);
            compare::run(&stage, &args.who, args.rounds, only)
        }
        Part::Slow => {
            let stage = Stage::new(Sizes { written: 100, ..full }, true, 0);
            compare::run(&stage, &args.who, args.rounds.saturating_sub(1).max(1), only)
        }
        Part::Special => special::run(&Stage::new(full, false, 0), args.rounds, only),
        Part::Scale => {
            let tiny = Sizes { big: 8 << 20, small: 60, written: 0 };
            scale::run(&Stage::new(tiny, false, args.keys), args.keys, only)
        }
        Part::Wan => wan::run(args.sites, args.nodes, only),
    }
}
