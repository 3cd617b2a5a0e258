//! What other clusters, and the stores themselves, say of objects that were changed.
//!
//! Such messages are hints: they come late, twice, in any order, or not at all. One marks names
//! ([`marks`]), so that the origin is asked about them at their next use; it says nothing of what the object
//! is now. That none are missing is known only while a relay's messages, which it counts, come without a
//! gap ([`pulse`]); for so long names are taken as true for longer ([`lifetime`]).
//!
//! From pure to I/O: `records`, `announcement`, `lifetime`, `marks` <- `pulse` <- `hearing` <- `publisher`,
//! `nats`.

pub mod announcement;
pub mod hearing;
pub mod lifetime;
pub mod marks;
pub mod nats;
pub mod publisher;
pub mod pulse;
pub mod records;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

/// An object of which something was said.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Change {
    /// Name of its bucket.
    pub bucket: Box<str>,
    /// Its key.
    pub key: Box<str>,
    /// Whether it may be gone, and directories with it that only it was in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}
