//! Why a cache directory cannot be used.

use std::path::PathBuf;

/// A failure to open the node cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory cannot be made or written.
    #[error("cache directory {dir}: {error}; give another one with --cache-dir")]
    Unusable {
        /// The directory.
        dir: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// Another process owns it.
    #[error(
        "cache directory {dir} is in use by process {owner}; stop that one or give another \
         directory with --cache-dir"
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Its owner's process id, as far as known.
        owner: String,
    },
    /// Too little room to begin with.
    #[error(
        "cache directory {dir} has {free} bytes free, of which {min_free} are to stay free: \
         less than the {least} bytes a cache needs; free some, lower --cache-min-free or give \
         another directory with --cache-dir"
    )]
    Full {
        /// The directory.
        dir: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes that are to stay free.
        min_free: u64,
        /// The least that a cache needs.
        least: u64,
    },
    /// Made by a later Weir.
    #[error(
        "cache directory {dir} has schema {found}, this Weir knows up to {known}; use the newer \
         Weir or give another directory with --cache-dir"
    )]
    NewerSchema {
        /// The directory.
        dir: PathBuf,
        /// Schema number found.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// The index failed in a way that starting afresh does not mend.
    #[error("index of cache directory {dir}: {error}")]
    Index {
        /// The directory.
        dir: PathBuf,
        /// What redb says.
        error: String,
    },
}
