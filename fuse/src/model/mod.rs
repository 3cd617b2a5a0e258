//! Typed names, versions and ranges. No I/O happens here, so nothing here can fail for an
//! outside reason.

pub mod attr;
pub mod blocks;
pub mod crc;
pub mod key;
pub mod ttl;
pub mod version;

#[cfg(test)]
mod fuzz;
