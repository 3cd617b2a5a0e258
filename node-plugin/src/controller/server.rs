//! An API server of a test.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::Value;

/// A request that changes something.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) path: String,
    pub(super) body: Value,
}

/// Requests that would change something.
#[derive(Clone, Default)]
pub(super) struct Asked(Arc<Mutex<Vec<Change>>>);

impl Asked {
    /// Those since the last call.
    pub(super) fn take(&self) -> Vec<Change> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A server that answers by method and path, and what it was asked to change.
pub(super) fn server(
    answer: impl Fn(&Method, &str) -> (StatusCode, Value) + Clone + Send + 'static,
) -> (Client, Asked) {
    let asked = Asked::default();
    let kept = asked.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (answer, kept) = (answer.clone(), kept.clone());
        async move {
            let (head, body) = request.into_parts();
            let path = head.uri.path().to_owned();
            let (status, answer) = answer(&head.method, &path);
            if head.method != Method::GET {
                let body = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap();
                kept.0.lock().unwrap().push(Change { path, body });
            }
            let body = Body::from(answer.to_string().into_bytes());
            Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
        }
    });
    (Client::new(service, "default"), asked)
}
