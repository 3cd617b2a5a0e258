//! Requests as typed values: what is built here is valid.

mod capability;
mod controller;
mod node;
mod values;

#[cfg(test)]
mod fuzz;

pub use capability::{Access, AccessMode, Capability};
pub use controller::{Create, Topologies, Validate};
pub use node::{Publish, StatsOf, Unpublish};
pub use values::{Context, Secrets, TargetPath, VolumeId, VolumeName};
