//! Small pages over HTTP for whoever can reach a port: what one client does costs the others
//! nothing, however many connections it makes and whatever it leaves unsaid.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use weir_csi::accept;

/// Connections at once; for one more the oldest is ended, so that a new client is always heard.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to say what it wants.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may last.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a request's head, at most: the least that hyper allows.
const HEADER_MAX: usize = 8192;

/// What is answered to a path; `None` where there is nothing.
pub(crate) type Pages = Arc<dyn Fn(&str) -> Option<(StatusCode, String)> + Send + Sync>;

/// Answers at a listening socket for as long as it is polled.
pub(crate) async fn serve(listener: TcpListener, pages: Pages) {
    accept_each(listener, |stream| tokio::spawn(connection(stream, pages.clone()))).await;
}

/// Begins to serve each connection, a bounded number at once, for as long as this is polled.
pub(crate) async fn accept_each(
    listener: TcpListener,
    begin: impl Fn(TcpStream) -> JoinHandle<()>,
) {
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                accept::failed(&error).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS_MAX
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
            // Its descriptor is closed when this is over.
            let _ = oldest.await;
        }
        open.push_back(begin(stream));
    }
}

/// One request.
async fn connection(stream: TcpStream, pages: Pages) {
    let service = service_fn(move |request| {
        let answer = answer(&request, &pages);
        async move { Ok::<_, Infallible>(answer) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_buf_size(HEADER_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_PATIENCE, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection ended"),
        Err(_) => tracing::debug!("connection ended: it took too long"),
    }
}

fn answer(request: &Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
    let page = pages(request.uri().path());
    let (status, body) = page.unwrap_or((StatusCode::NOT_FOUND, "nothing is here\n".to_owned()));
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}
