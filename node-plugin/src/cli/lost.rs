//! The command line of `weir lost`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{LogFormat, S3Args};

/// Options of `weir lost`.
#[derive(Args, Debug)]
pub struct LostArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: LostCommand,
}

/// What can be done with files that could not be stored.
#[derive(Subcommand, Debug)]
pub enum LostCommand {
    /// Show them.
    List(LostListArgs),
    /// Store them: each under its own key or, with --to, one under another. What is there is never
    /// overwritten.
    Restore(Box<LostRestoreArgs>),
    /// Remove them for good.
    Rm(LostRmArgs),
}

/// Where they are.
#[derive(Args, Debug, Clone)]
pub struct LostPlaceArgs {
    /// Directory of the cache; may be given several times [default: /var/cache/weir for root, else
    /// ~/.cache/weir].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Vec<PathBuf>,
}

/// Options of `weir lost list`.
#[derive(Args, Debug)]
pub struct LostListArgs {
    /// Where they are.
    #[command(flatten)]
    pub place: LostPlaceArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `weir lost restore`.
#[derive(Args, Debug)]
pub struct LostRestoreArgs {
    /// Which, as `weir lost list` names them.
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
    /// Where to: s3://BUCKET/KEY, for one file [default: its own bucket and key].
    #[arg(long, value_name = "S3-URL")]
    pub to: Option<String>,
    /// Where they are.
    #[command(flatten)]
    pub place: LostPlaceArgs,
    /// Options of the bucket.
    #[command(flatten)]
    pub s3: S3Args,
    /// error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "error")]
    pub log_level: tracing::Level,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Options of `weir lost rm`.
#[derive(Args, Debug)]
pub struct LostRmArgs {
    /// Which, as `weir lost list` names them.
    #[arg(value_name = "ID", required_unless_present = "all")]
    pub ids: Vec<String>,
    /// All of them.
    #[arg(long, conflicts_with = "ids")]
    pub all: bool,
    /// Where they are.
    #[command(flatten)]
    pub place: LostPlaceArgs,
}
