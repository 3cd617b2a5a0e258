//! Metrics over HTTP, for Prometheus.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use weir_fuse::metrics::Metrics;

use crate::exit::{Failure, Kind};

/// Whether kubelet knows this node as it is; asked by the registrar's probe.
pub type Registration = Arc<dyn Fn() -> bool + Send + Sync>;

/// Serves `/metrics`, `/healthz` and `/registration` in the background. Returns the
/// address that was taken.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    registration: Option<Registration>,
) -> Result<SocketAddr, Failure> {
    let failed = |e: std::io::Error| {
        Failure::new(Kind::Usage, format!("--metrics-listen {address}: {e}; take another address"))
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let taken = listener.local_addr().map_err(failed)?;
    tracing::info!(address = %taken, "serving metrics");
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (metrics, registration) = (metrics.clone(), registration.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    answer(request, metrics.clone(), registration.clone())
                });
                let connection = auto::Builder::new(TokioExecutor::new());
                if let Err(error) = connection.serve_connection(TokioIo::new(stream), service).await
                {
                    tracing::debug!(%error, "metrics connection ended");
                }
            });
        }
    });
    Ok(taken)
}

async fn answer(
    request: Request<Incoming>,
    metrics: Arc<Metrics>,
    registration: Option<Registration>,
) -> Result<Response<http_body_util::Full<Bytes>>, Infallible> {
    let (status, body) = match request.uri().path() {
        "/metrics" => (StatusCode::OK, metrics.text()),
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        "/registration" => match registration.is_none_or(|is_current| is_current()) {
            true => (StatusCode::OK, "ok\n".to_owned()),
            false => {
                let text = "kubelet was told other topology segments: register again\n";
                (StatusCode::SERVICE_UNAVAILABLE, text.to_owned())
            }
        },
        _ => (StatusCode::NOT_FOUND, "see /metrics\n".to_owned()),
    };
    let mut response = Response::new(http_body_util::Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let text = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, text);
    Ok(response)
}
