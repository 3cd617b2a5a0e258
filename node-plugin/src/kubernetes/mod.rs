//! What Weir says to people through the Kubernetes API.

pub(crate) mod api;
pub(crate) mod events;
