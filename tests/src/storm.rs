//! A proxy in front of an S3 server that misbehaves on command.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::http::{self, Body};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is answered with this status, and never reaches the server.
    Status(u16),
    /// Its connection breaks before it reaches the server.
    Reset,
    /// It reaches the server; the connection breaks instead of an answer.
    LoseReply,
    /// It is never answered, until the storm is over.
    Stall,
    /// The body of its answer ends after so many bytes, and so does the connection.
    Truncate(usize),
    /// The body of its answer stalls after so many bytes.
    StallBody(usize),
    /// Its answer has another ETag.
    WrongETag,
    /// Its body reaches the server with other bytes, whose CRC32C is the same.
    Forge,
}

/// Added to any bytes it leaves their CRC32C as it is: the polynomial (RFC 3720, 12.1), first bit lowest.
const POLYNOMIAL: [u8; 5] = [0xf1, 0x76, 0xec, 0x05, 0x01];

/// A request, as far as a plan looks at it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// How many requests there were before it.
    pub number: u64,
}

type Plan = Box<dyn FnMut(&Asked) -> Option<Fault> + Send>;

/// The proxy.
pub struct Storm {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    plan: Mutex<Option<Plan>>,
    /// Grows when a storm ends, so that what is stalled breaks off.
    calm: watch::Sender<u64>,
    asked: AtomicU64,
    met: AtomicU64,
}

impl Storm {
    /// A calm proxy to the server at `url`.
    pub fn new(url: &str) -> Self {
        let server = url.trim_start_matches("http://").parse().unwrap();
        let shared = Arc::new(Shared {
            server,
            plan: Mutex::default(),
            calm: watch::Sender::new(0),
            asked: AtomicU64::new(0),
            met: AtomicU64::new(0),
        });
        let answered = shared.clone();
        let address = http::serve(move |request| answer(answered.clone(), request));
        Self { address, shared }
    }

    /// What to connect to.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on requests meet what `plan` says.
    pub fn rage(&self, plan: impl FnMut(&Asked) -> Option<Fault> + Send + 'static) {
        *self.shared.plan() = Some(Box::new(plan));
    }

    /// Ends it, and breaks what is stalled off.
    pub fn calm(&self) {
        *self.shared.plan() = None;
        self.shared.calm.send_modify(|calms| *calms += 1);
    }

    /// How many requests met a fault.
    pub fn met(&self) -> u64 {
        self.shared.met.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn plan(&self) -> std::sync::MutexGuard<'_, Option<Plan>> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn until_calm(&self) {
        let _ = self.calm.subscribe().changed().await;
    }
}

/// Breaks the connection off.
fn broken<T>() -> Result<T, std::io::Error> {
    Err(std::io::ErrorKind::ConnectionReset.into())
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let asked = Asked {
        method: request.method().clone(),
        path: request.uri().to_string(),
        headers: request.headers().clone(),
        number: shared.asked.fetch_add(1, Ordering::Relaxed),
    };
    let fault = shared.plan().as_mut().and_then(|plan| plan(&asked));
    shared.met.fetch_add(u64::from(fault.is_some()), Ordering::Relaxed);
    match fault {
        Some(Fault::Status(status)) => {
            // As S3 does: the body is taken in first.
            let _ = request.into_body().collect().await;
            return Ok(refused(status));
        }
        Some(Fault::Reset) => return broken(),
        Some(Fault::Stall) => {
            shared.until_calm().await;
            return broken();
        }
        _ => {}
    }
    let request = match fault {
        Some(Fault::Forge) => forged(request).await?,
        _ => request.map(|body| body.map_err(std::io::Error::other).boxed()),
    };
    let reply = forward(shared.server, request).await?;
    Ok(match fault {
        Some(Fault::LoseReply) => return broken(),
        Some(Fault::Truncate(at)) => cut(reply, at, None),
        Some(Fault::StallBody(at)) => cut(reply, at, Some(shared)),
        Some(Fault::WrongETag) => {
            let (mut parts, body) = reply.into_parts();
            let other = hyper::header::HeaderValue::from_static("\"another-version\"");
            parts.headers.insert("etag", other);
            Response::from_parts(parts, body)
        }
        _ => reply,
    })
}

fn refused(status: u16) -> Response<Body> {
    let code = match status {
        403 => "AccessDenied",
        503 => "SlowDown",
        _ => "InternalError",
    };
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
    let body = Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

async fn forged(request: Request<Incoming>) -> Result<Request<Body>, std::io::Error> {
    let (head, body) = request.into_parts();
    let mut bytes = body.collect().await.map_err(std::io::Error::other)?.to_bytes().to_vec();
    forge(&mut bytes);
    let body = Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed();
    Ok(Request::from_parts(head, body))
}

fn forge(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    for (byte, added) in bytes[middle..].iter_mut().zip(POLYNOMIAL) {
        *byte ^= added;
    }
}

async fn forward(
    server: SocketAddr,
    request: Request<Body>,
) -> Result<Response<Body>, std::io::Error> {
    let stream = TcpStream::connect(server).await?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    let reply = sender.send_request(request).await.map_err(std::io::Error::other)?;
    Ok(reply.map(|body| body.map_err(std::io::Error::other).boxed()))
}

/// Lets `at` bytes of the body pass, then breaks off, when the storm is over if that is given.
fn cut(reply: Response<Body>, at: usize, stall: Option<Arc<Shared>>) -> Response<Body> {
    reply.map(|body| {
        let mut left = at;
        let passed = BodyStream::new(body).map(move |frame| {
            let frame = frame?;
            let Ok(mut data) = frame.into_data() else { return Ok(Frame::data(Bytes::new())) };
            data.truncate(left);
            left -= data.len();
            Ok(Frame::data(data))
        });
        let mut passing = at;
        let until = passed.take_while(move |frame: &Result<Frame<Bytes>, std::io::Error>| {
            let more = passing > 0;
            let len = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
            passing -= len.min(passing);
            std::future::ready(more)
        });
        let end = stream::once(async move {
            if let Some(shared) = stall {
                shared.until_calm().await;
            }
            broken()
        });
        BodyExt::boxed(StreamBody::new(until.chain(end)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_have_the_same_checksum() {
        let bytes = crate::random_bytes(1, 1000);
        let mut forged = bytes.clone();
        forge(&mut forged);
        assert!(forged != bytes);
        assert_eq!(crc32c::crc32c(&forged), crc32c::crc32c(&bytes));
    }
}
