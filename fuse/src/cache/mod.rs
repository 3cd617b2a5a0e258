//! The node cache: one file per version on NVMe, an index in redb.
//!
//! Layout and invariants are in `docs/cache-format.md`. Lock order within the cache, outermost
//! first: `StagingFile::claim`, `NodeCache::placing`, `DiskCache::active`, a version's `Body::state`,
//! `Space::accounts`, the committer's queue, the index, `Tenants::present`. No lock is held while bytes
//! are read or written, but a staging file's, under which other versions are evicted for it.

mod body;
mod commit;
pub mod dir;
mod disk;
pub mod error;
mod evict;
mod file;
pub mod flight;
mod folder;
pub mod health;
pub mod hot;
pub mod index;
pub mod lost;
mod mark;
mod moves;
pub mod node;
pub mod records;
mod reserve;
mod share;
mod shared;
mod space;
pub mod staging;
mod tenants;
pub mod version;

#[cfg(test)]
mod fuzz;

pub use disk::{DiskSettings, DiskStats, Held, Pressure, Room};
pub use error::CacheError;
pub use index::{FORMER_MAX, RegionEviction, Signer, former};
pub use lost::LostRow;
pub use node::{ANSWERS, CacheSettings, CacheStats, NodeCache, Preference, StagingDisk};
pub use share::Share;
pub use staging::{NoRoom, StagingFile};
pub use tenants::Tenancy;
pub use version::CachedVersion;
