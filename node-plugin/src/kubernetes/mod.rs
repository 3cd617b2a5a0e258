//! What Weir says to people, and asks, through the Kubernetes API.

pub(crate) mod accounts;
pub(crate) mod api;
pub(crate) mod events;
pub(crate) mod names;
pub(crate) mod nodes;
mod rate;
pub(crate) mod weirnode;

use kube::Client;

/// A client for the cluster that this process is in; `None` outside of one.
pub(crate) fn client() -> Option<Client> {
    std::env::var_os("KUBERNETES_SERVICE_HOST")?;
    let made = kube::Config::incluster().map_err(|e| e.to_string());
    let made = made.and_then(|config| Client::try_from(config).map_err(|e| e.to_string()));
    made.inspect_err(|error| tracing::warn!(%error, "the API server will not be asked")).ok()
}
