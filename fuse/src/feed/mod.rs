//! What other clusters, and the stores themselves, say of objects that were changed.
//!
//! Such messages are hints: they come late, twice, in any order, or not at all. One marks a name, so that
//! the origin is asked about it at its next use; it says nothing of what the object is now. That none are
//! missing is known only while a publisher's messages, which it counts, come without a gap ([`pulse`]).

pub mod announcement;
pub mod pulse;
pub mod records;

use serde::{Deserialize, Serialize};

/// An object of which something was said.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Change {
    /// Name of its bucket.
    pub bucket: Box<str>,
    /// Its key.
    pub key: Box<str>,
}
