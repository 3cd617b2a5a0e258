//! The node cache: one file per version on NVMe, an index in redb.
//!
//! Layout and invariants are in `docs/cache-format.md`. Lock order within the cache, outermost
//! first: `NodeCache::placing`, `DiskCache::active`, `CachedVersion::state`, `DiskCache::recency`, the committer's
//! queue. No lock is held while bytes are read or written.

pub mod commit;
pub mod dir;
mod disk;
pub mod error;
pub mod evict;
pub mod file;
pub mod flight;
pub mod health;
pub mod hot;
pub mod index;
mod moves;
pub mod node;
pub mod records;
pub mod space;
pub mod version;

pub use disk::{DiskSettings, DiskStats, Held, Pressure, Room};
pub use error::CacheError;
pub use node::{CacheSettings, CacheStats, NodeCache, Preference};
pub use version::CachedVersion;
