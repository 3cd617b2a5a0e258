//! The node cache: one file per version on NVMe, an index in redb.
//!
//! Layout and invariants are in `docs/cache-format.md`. Lock order within the cache, outermost
//! first: `NodeCache::active`, `CachedVersion::state`, `NodeCache::recency`, the committer's
//! queue. No lock is held while bytes are read or written.

pub mod commit;
pub mod dir;
pub mod error;
pub mod evict;
pub mod file;
pub mod flight;
pub mod hot;
pub mod index;
pub mod node;
pub mod records;
pub mod space;
pub mod version;

pub use error::CacheError;
pub use node::{CacheSettings, CacheStats, NodeCache};
pub use version::CachedVersion;
