//! Weir's CSI services. A request is turned into validated, typed values first and then handed to
//! one of two narrow traits, [`NodeBackend`] and [`ControllerBackend`]; no message of the
//! specification (v1.12) goes further than this crate, but to callers of a service.

pub mod accept;
pub mod backend;
mod caller;
mod calls;
mod controller;
pub mod error;
mod identity;
pub mod memory;
mod node;
pub mod request;
pub mod server;
pub mod socket;

pub use backend::{ControllerBackend, NodeBackend};
pub use calls::Calls;
pub use error::Error;
pub use identity::Plugin;

/// The messages, and clients of the services, as generated.
#[allow(missing_docs, clippy::all, unreachable_pub, reason = "generated")]
pub mod proto {
    tonic::include_proto!("csi.v1");
}
