//! Weir's file system as a library.
//!
//! From pure to I/O: [`model`] is used by [`feed`] (NATS), [`origin`] (S3) and [`cache`] (NVMe and redb), these
//! by [`namespace`], [`read`] and [`write`], these by [`engine`], and that by [`adapter`], the
//! only place that names fuser's types. Nothing here knows of Kubernetes.

pub mod adapter;
pub mod blocking;
pub mod buffers;
pub mod cache;
pub mod chosen_file;
pub mod engine;
pub mod feed;
pub mod logged;
pub mod metrics;
pub mod model;
pub mod namespace;
pub mod origin;
mod page_cache;
pub mod read;
mod sync;
pub mod token_file;
pub mod write;
