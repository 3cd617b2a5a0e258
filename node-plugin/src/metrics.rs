//! Metrics over HTTP, for Prometheus.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::StatusCode;
use tokio::net::TcpListener;
use weir_fuse::metrics::Metrics;

use crate::exit::{Failure, Kind};
use crate::http;

/// Serves `/metrics` in the background. Returns the address that was taken.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) -> Result<SocketAddr, Failure> {
    let failed = |e: std::io::Error| {
        Failure::new(Kind::Usage, format!("--metrics-listen {address}: {e}; take another address"))
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let taken = listener.local_addr().map_err(failed)?;
    tracing::info!(address = %taken, "serving metrics");
    let pages = move |path: &str| (path == "/metrics").then(|| (StatusCode::OK, metrics.text()));
    tokio::spawn(http::serve(listener, Arc::new(pages)));
    Ok(taken)
}
