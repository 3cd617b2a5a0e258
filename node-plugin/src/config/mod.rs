//! From what was written on a command line, or in a volume, to values that can be used.

pub mod cache;
pub mod feed;
pub mod feed_from;
pub mod fstab;
pub mod identity;
pub mod memory;
pub mod mount;
pub mod region;
pub mod role;
pub mod s3;
pub mod size;
pub mod view;

#[cfg(test)]
mod fuzz;

use crate::exit::{Failure, Kind};

fn usage(text: impl Into<String>) -> Failure {
    Failure::new(Kind::Usage, text)
}
