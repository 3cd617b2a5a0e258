//! What outlives the process of a rename under way: a record of it, beside files under change, and
//! what a later process makes of that.

mod leftover;
mod record;
mod recovery;

pub(super) use leftover::{RenameLeftover, is_record};
pub(super) use record::RenameRecord;
pub use recovery::NamesHeld;
pub(super) use recovery::Renames;
