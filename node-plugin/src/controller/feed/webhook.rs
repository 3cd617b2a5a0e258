//! Events that a store posts: over TLS, by who shows the token alone.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use weir_fuse::token_file::TokenFile;

use super::relay::Relay;
use super::tls::Certificate;
use crate::config::feed_from::WebhookSettings;
use crate::exit::{Failure, Kind};
use crate::http;

/// Longest message in bytes: records of one event, or of some.
const BODY_MAX: usize = 1 << 20;
/// Bytes of a request's head, at most.
const HEADER_MAX: usize = 16 << 10;
/// How long a client may take for its handshake, and for a body.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request.
const IDLE: Duration = Duration::from_secs(60);

/// A port to which a store posts.
struct Webhook {
    certificate: Certificate,
    token: TokenFile,
    relay: Arc<Relay>,
}

/// Takes what is posted, for ever; says where.
///
/// # Errors
/// What is wrong with the files, or that the port cannot be had.
pub(super) async fn start(
    settings: &WebhookSettings,
    relay: Arc<Relay>,
) -> Result<SocketAddr, Failure> {
    let WebhookSettings { address, token_file, cert, key } = settings;
    let usage = |text: String| Failure::new(Kind::Usage, text);
    let certificate = Certificate::new(cert.clone(), key.clone())
        .await
        .map_err(|why| usage(format!("--feed-webhook-cert, --feed-webhook-key: {why}")))?;
    let token = TokenFile::new(token_file.clone(), "the webhook's");
    token.bearer().await.map_err(|error| usage(error.to_string()))?;
    let taken = |error: io::Error| {
        Failure::new(Kind::Other, format!("--feed-from webhook://{address}: {error}"))
    };
    let listener = TcpListener::bind(address).await.map_err(taken)?;
    let bound = listener.local_addr().map_err(taken)?;
    let webhook = Arc::new(Webhook { certificate, token, relay });
    tokio::spawn(http::accept_each(listener, move |stream| {
        tokio::spawn(webhook.clone().connection(stream))
    }));
    Ok(bound)
}

impl Webhook {
    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let acceptor = TlsAcceptor::from(self.certificate.config().await);
        let stream = match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "no TLS with who connects"),
            Err(_) => return tracing::debug!("no TLS with who connects: it took too long"),
        };
        let service = service_fn(move |request| {
            let webhook = self.clone();
            async move { Ok::<_, Infallible>(webhook.answer(request).await) }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(HEADER_MAX)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = serving.await {
            tracing::debug!(%error, "connection ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, text) = match self.take(request).await {
            Ok(()) => (StatusCode::OK, String::new()),
            Err(refused) => refused,
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        if status != StatusCode::OK {
            // A body may be left unread.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn take(&self, request: Request<Incoming>) -> Result<(), (StatusCode, String)> {
        let refused = |status, text: &str| (status, format!("{text}\n"));
        if !self.is_known(&request).await {
            tracing::warn!("who posts to the webhook shows no token, or a wrong one");
            return Err(refused(StatusCode::UNAUTHORIZED, "the bearer token is not the webhook's"));
        }
        // A store may look first whether somebody is there.
        if matches!(*request.method(), Method::HEAD | Method::GET) {
            return Ok(());
        }
        if request.method() != Method::POST {
            return Err(refused(StatusCode::METHOD_NOT_ALLOWED, "events are posted"));
        }
        let body = Limited::new(request.into_body(), BODY_MAX).collect();
        let body = match tokio::time::timeout(PATIENCE, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                return Err(refused(StatusCode::PAYLOAD_TOO_LARGE, "it is longer than an event"));
            }
            Ok(Err(_)) => return Err(refused(StatusCode::BAD_REQUEST, "the body broke off")),
            Err(_) => return Err(refused(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
        };
        if body.is_empty() {
            return Ok(());
        }
        match self.relay.take(&[&body]).await {
            Ok(read) => read.into_iter().collect::<Result<(), _>>().map_err(|error| {
                tracing::warn!(%error, "what was posted to the webhook is not understood");
                refused(StatusCode::BAD_REQUEST, &error.to_string())
            }),
            Err(error) => {
                tracing::warn!(%error, "what was posted to the webhook is not published");
                Err(refused(StatusCode::SERVICE_UNAVAILABLE, "not published; post it again"))
            }
        }
    }

    /// Whether who sends this shows the token.
    async fn is_known(&self, request: &Request<Incoming>) -> bool {
        let Ok(bearer) = self.token.bearer().await else { return false };
        let shown = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
        shown.is_some_and(|shown| is_same(shown, bearer.as_bytes()))
    }
}

/// Whether two texts are the same, in a time that says nothing of where they differ: of their hashes
/// that would be of no use.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let (one, other) = (Sha256::digest(one), Sha256::digest(other));
    one.iter().zip(other.iter()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_the_same_where_every_byte_is() {
        for (one, other, same) in [
            ("", "", true),
            ("a", "a", true),
            ("a", "b", false),
            ("a", "", false),
            ("ab", "a", false),
        ] {
            assert_eq!(is_same(one.as_bytes(), other.as_bytes()), same, "{one} {other}");
        }
    }
}
