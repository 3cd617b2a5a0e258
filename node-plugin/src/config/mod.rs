//! From what was written on a command line to values that can be used.

pub mod fstab;
pub mod memory;
pub mod mount;
pub mod size;
