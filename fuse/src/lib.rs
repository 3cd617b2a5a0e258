//! Weir's file system as a library.
//!
//! From pure to I/O: [`model`] is used by [`origin`] (S3) and [`cache`] (NVMe and redb), these
//! by [`namespace`], [`read`] and [`write`], these by [`engine`], and that by [`adapter`], the
//! only place that names fuser's types. Nothing here knows of Kubernetes.

pub mod model;
pub mod origin;
pub mod buffers;
pub mod cache;
pub mod metrics;
pub mod namespace;
pub mod read;
pub mod write;
pub mod engine;
pub mod adapter;
