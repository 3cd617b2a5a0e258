//! A server of HTTP, as those that tests bring.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::runtime;

/// The body of an answer; an error breaks the connection.
pub type Body = BoxBody<Bytes, io::Error>;

/// Answers at a port of loopback for as long as the process lives; an error breaks the connection.
pub fn serve<F>(
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = io::Result<Response<Body>>> + Send + 'static,
{
    serve_on(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), answer)
}

/// The same, where somebody listens already.
pub fn serve_on<F>(
    listener: std::net::TcpListener,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = io::Result<Response<Body>>> + Send + 'static,
{
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    runtime().spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        while let Ok((client, _)) = listener.accept().await {
            let answer = service_fn(answer.clone());
            tokio::spawn(async move {
                // A client that goes away is no failure of ours, and tests break connections.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(client), answer)
                    .await;
            });
        }
    });
    address
}
