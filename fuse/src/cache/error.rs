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
    /// Its owner is neither root nor who runs this process.
    #[error(
        "cache directory {dir} belongs to user {owner}, who could change what is cached; this \
         process runs as user {us}: make that one the owner or give another directory with \
         --cache-dir"
    )]
    Foreign {
        /// The directory, or a folder in it.
        dir: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// User id of this process.
        us: u32,
    },
    /// Somebody else may put another directory in its place.
    #[error(
        "cache directory {dir} is below {parent}, which belongs to user {owner}, who could put another \
         directory in its place; give one below folders of root's or of this process's user with \
         --cache-dir"
    )]
    Exposed {
        /// The directory.
        dir: PathBuf,
        /// The folder above it.
        parent: PathBuf,
        /// User id of that one's owner.
        owner: u32,
    },
    /// It is on a file system that is another's, as where its own disk is not mounted.
    #[error(
        "cache directory {dir} is not on a disk of its own: it is on the file system of {other}; mount \
         its disk there, or allow it to be on that one"
    )]
    NotApart {
        /// The directory.
        dir: PathBuf,
        /// A folder on the same file system.
        other: PathBuf,
    },
    /// It holds something else than a cache.
    #[error(
        "{dir} is no cache directory of Weir's and not empty (it holds {found:?}): nothing in it was \
         touched; give an empty directory, or one that is not there yet, with --cache-dir"
    )]
    NotACache {
        /// The directory.
        dir: PathBuf,
        /// A name in it.
        found: String,
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

impl CacheError {
    /// Whether the disk is at fault, and not who has named it: then another may take its place.
    pub fn is_about_disk(&self) -> bool {
        match self {
            Self::Unusable { .. }
            | Self::Full { .. }
            | Self::NotApart { .. }
            | Self::Index { .. } => true,
            Self::InUse { .. }
            | Self::Foreign { .. }
            | Self::Exposed { .. }
            | Self::NotACache { .. } => false,
        }
    }
}
