//! The cache of a node, and memory.

use std::path::PathBuf;

use super::mount::Environment;
use super::size::{Amount, Size};
use super::{memory, usage};
use crate::cli::CacheArgs;
use crate::exit::Failure;

/// Settings of a cache.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Its directories, one a disk; at least one.
    pub dirs: Vec<PathBuf>,
    /// Most that all of them hold, in bytes.
    pub max: u64,
    /// What it leaves free.
    pub min_free: Amount,
    /// Inodes that it leaves free, in place of bytes.
    pub min_free_inodes: Amount,
    /// Most bytes that it keeps which could not be stored; `None`: as the cache chooses.
    pub lost_max: Option<u64>,
    /// A directory on a file system in memory, for what must be in files where none of the others can
    /// be used.
    pub spare: Option<PathBuf>,
    /// A folder on whose file system none of its directories must be.
    pub apart_from: Option<PathBuf>,
    /// Memory for bytes on their way.
    pub memory: u64,
    /// Most bytes in one GET.
    pub read_part: u64,
}

impl CacheConfig {
    /// Checks the options.
    ///
    /// # Errors
    /// A usage failure that names the option.
    pub fn new(args: &CacheArgs, env: &Environment) -> Result<Self, Failure> {
        let max = cache_max(args)?;
        let read_part = args.read_part_size.unwrap_or(Size(8 << 20)).0;
        if read_part < 128 << 10 {
            return Err(usage("--read-part-size must be at least 128KiB"));
        }
        Ok(Self {
            dirs: dirs(&args.cache_dir, env)?,
            max,
            min_free: args.cache_min_free.unwrap_or(Amount::Percent(10)),
            min_free_inodes: args.cache_min_free_inodes.unwrap_or(Amount::Percent(10)),
            lost_max: args.lost_max.map(|Size(bytes)| bytes),
            spare: None,
            apart_from: None,
            memory: args.memory_target.map_or_else(memory::default_target, |s| s.0),
            read_part,
        })
    }
}

fn cache_max(args: &CacheArgs) -> Result<u64, Failure> {
    match (args.cache_max_size, args.max_cache_size) {
        (Some(_), Some(_)) => Err(usage("--cache-max-size and --max-cache-size: give one")),
        (Some(Size(bytes)), None) => Ok(bytes),
        (None, Some(mib)) => Ok(mib.saturating_mul(1 << 20)),
        (None, None) => Ok(u64::MAX),
    }
}

/// The directories of a cache: those given, or the usual one.
///
/// # Errors
/// A usage failure that names the option.
pub fn dirs(given: &[PathBuf], env: &Environment) -> Result<Vec<PathBuf>, Failure> {
    /// Disks that a version's number has room for.
    const DISKS_MAX: usize = 64;
    let mut dirs = given.to_vec();
    if dirs.is_empty() {
        dirs.push(default_cache_dir(env)?);
    }
    if dirs.len() > DISKS_MAX {
        return Err(usage(format!("--cache-dir: at most {DISKS_MAX} disks")));
    }
    for (at, dir) in dirs.iter().enumerate() {
        if dirs[..at].contains(dir) {
            return Err(usage(format!("--cache-dir {}: given twice", dir.display())));
        }
    }
    Ok(dirs)
}

fn default_cache_dir(env: &Environment) -> Result<PathBuf, Failure> {
    match (env.uid, &env.home) {
        (0, _) => Ok(PathBuf::from("/var/cache/weir")),
        (_, Some(home)) => Ok(home.join(".cache/weir")),
        (_, None) => Err(usage("no home directory for the cache: give --cache-dir")),
    }
}
