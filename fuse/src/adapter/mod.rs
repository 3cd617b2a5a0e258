//! The only place that names fuser's types: FUSE requests in, session calls out.

mod door;
mod expired;
pub mod filesystem;
mod handshake;
pub mod mount;
pub mod passthrough;
mod prune;
mod reply;
mod resent;
pub mod serve;
mod service;

pub use door::Door;
pub use expired::ExpiredNames;
pub use handshake::Handshake;
pub use mount::{MountError, MountOptions};
pub use resent::Witness;
pub use serve::{Mounted, Serving, mount, serve};
