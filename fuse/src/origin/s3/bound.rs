//! Bounds on requests and on their answers. The SDK collects the answers of all requests but GetObject,
//! however long they are; a server decides about that, and other tenants' memory is taken. So they are
//! collected here, each up to what it may be long, all of them together up to what a node has for them,
//! and counted until nobody needs them any more.

use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex};

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body_util::BodyExt;

use super::fair::{Held, Party, Pool};
use crate::sync::unpoisoned;

/// Longest answer that is no listing, in bytes: names, tags, a code and its message.
const SHORT_MAX: usize = 64 * 1024;
/// Longest answer in bytes, by each name that was asked for: names have 1,024 bytes, may be escaped
/// threefold, and each has a tag and an owner beside it.
const NAME_MAX: usize = 16 * 1024;
/// Most names in an answer that does not say how many were asked for.
const NAMES_MAX: usize = 1000;
/// Most tags of XML, of an element's beginning or end, by each name: what is made of an element takes
/// more memory than the element.
const NAME_TAGS: usize = 100;

/// What all endpoints of a node share.
struct Pools {
    /// Bytes of answers that are collected.
    answers: Arc<Pool>,
    /// Questions under way. Bodies of ranges are not among them: they have lanes of their own.
    questions: Arc<Pool>,
    /// Requests under way that change something, but for those that send a file: how many of those
    /// there are is for whoever writes to say, and they may take long.
    changes: Arc<Pool>,
}

static NODE: LazyLock<Pools> = LazyLock::new(|| Pools::new(ANSWERS_MAX));

/// The most of what [`limit_answers`] was told, in bytes.
static ANSWERS: Mutex<usize> = Mutex::new(0);
/// Most memory for answers, also where nothing is said, in bytes.
const ANSWERS_MAX: usize = 64 << 20;
/// The least where memory allows it, and where it does not: a page of the longest names that there can
/// be, and one of ordinary names.
const ANSWERS_MIN: (usize, usize) = (4 << 20, 1 << 20);

/// Sets aside memory for answers that are no files, over all endpoints of this process: an eighth of
/// `memory` bytes, at most 64 MiB. Returns how much. What is most of what was set counts.
pub fn limit_answers(memory: u64) -> u64 {
    let memory = usize::try_from(memory).unwrap_or(usize::MAX);
    let share = (memory / 8).clamp(ANSWERS_MIN.0, ANSWERS_MAX).min(memory / 4).max(ANSWERS_MIN.1);
    let mut most = unpoisoned(ANSWERS.lock());
    *most = share.max(*most);
    NODE.answers.set_total(*most);
    share as u64
}

/// Bytes of answers that are held at this moment.
pub fn answers_held() -> u64 {
    NODE.answers.used() as u64
}

impl Pools {
    fn new(answers: usize) -> Self {
        let requests = 1024;
        Self {
            answers: Pool::new(answers),
            questions: Pool::new(requests),
            changes: Pool::new(requests),
        }
    }
}

/// An answer that is longer than any may be.
#[derive(Debug, thiserror::Error)]
#[error("an answer of more than {0}")]
pub(super) struct TooLong(String);

/// There is no room for an answer beside others; later there may be.
#[derive(Debug, thiserror::Error)]
#[error("too many answers at once")]
pub(super) struct TooMany;

/// Why an answer was not collected.
enum Failure {
    TooLong(TooLong),
    TooMany,
    Broken(aws_smithy_types::body::Error),
}

impl From<Failure> for ConnectorError {
    fn from(failure: Failure) -> Self {
        match failure {
            // It would be as long again.
            Failure::TooLong(error) => Self::other(error.into(), None),
            Failure::TooMany => Self::io(TooMany.into()),
            Failure::Broken(error) => Self::io(error),
        }
    }
}

/// A client whose answers are bounded. What is asked for by a range is not: whoever reads it knows
/// how much it is.
#[derive(Clone, Debug)]
pub(super) struct Bounded(pub(super) SharedHttpClient);

impl HttpClient for Bounded {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(BoundedConnector(self.0.http_connector(settings, components)))
    }
}

#[derive(Debug)]
struct BoundedConnector(SharedHttpConnector);

impl HttpConnector for BoundedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        self.call_within(&NODE, request)
    }
}

impl BoundedConnector {
    fn call_within(&self, pools: &Pools, request: HttpRequest) -> HttpConnectorFuture {
        let (connector, bound) = (self.0.clone(), Bound::of(&request));
        let is_range = request.headers().get("range").is_some();
        let is_question = matches!(request.method(), "GET" | "HEAD");
        let endpoint = authority(request.uri());
        let slots = match request.body().bytes() {
            Some(_) if is_question => Some(pools.questions.party(endpoint)),
            Some(_) => Some(pools.changes.party(endpoint)),
            // A file.
            None => None,
        };
        let memory = pools.answers.party(endpoint);
        HttpConnectorFuture::new(async move {
            let _slot = match &slots {
                Some(slots) => Some(slots.take_one().await),
                None => None,
            };
            let mut answer = connector.call(request).await?;
            let is_success = answer.status().is_success();
            if is_range && is_success {
                return Ok(answer);
            }
            let bound = if is_success { bound } else { Bound::SHORT };
            let body = std::mem::replace(answer.body_mut(), SdkBody::taken());
            let collected = match collect(body, bound, &memory).await {
                Ok(bytes) => bytes,
                // Its status tells enough.
                Err(Failure::TooLong(_) | Failure::Broken(_)) if !is_success => Bytes::new(),
                Err(failure) => return Err(failure.into()),
            };
            *answer.body_mut() = SdkBody::from(collected);
            Ok(answer)
        })
    }
}

/// Host and port of a URL.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or_default()
}

/// How long an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    bytes: usize,
    tags: usize,
}

impl Bound {
    const SHORT: Self = Self { bytes: SHORT_MAX, tags: SHORT_MAX };

    /// That of the answer to a request.
    fn of(request: &HttpRequest) -> Self {
        let query = request.uri().split_once('?').map_or("", |(_, query)| query);
        let values = || query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let is_listing = values().any(|(name, _)| matches!(name, "list-type" | "uploads"));
        if request.method() != "GET" || !is_listing {
            return Self::SHORT;
        }
        let asked = values().find(|(name, _)| *name == "max-keys");
        let names = asked.and_then(|(_, value)| value.parse().ok()).unwrap_or(NAMES_MAX);
        let names = names.min(NAMES_MAX);
        Self { bytes: SHORT_MAX + names * NAME_MAX, tags: NAME_TAGS * (names + 1) }
    }
}

/// Bytes of an answer, and what is counted for them.
struct Collected {
    bytes: Vec<u8>,
    held: Held,
}

impl AsRef<[u8]> for Collected {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

async fn collect(body: SdkBody, bound: Bound, memory: &Arc<Party>) -> Result<Bytes, Failure> {
    let mut body = pin!(body);
    let mut all = Collected { bytes: Vec::new(), held: memory.nothing() };
    let mut tags = 0;
    while let Some(frame) = body.frame().await {
        // What comes after the body is of no use here.
        let Ok(piece) = frame.map_err(Failure::Broken)?.into_data() else { continue };
        tags += piece.iter().filter(|byte| **byte == b'<').count();
        if all.bytes.len() + piece.len() > bound.bytes {
            return Err(Failure::TooLong(TooLong(format!("{} bytes", bound.bytes))));
        }
        if tags > bound.tags {
            return Err(Failure::TooLong(TooLong(format!("{} tags", bound.tags))));
        }
        // Short ones are bounded by the number of requests.
        if bound != Bound::SHORT && !all.held.add(piece.len()).await {
            return Err(Failure::TooMany);
        }
        all.bytes.extend_from_slice(&piece);
    }
    Ok(Bytes::from_owner(all))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
    use futures_util::FutureExt;

    use super::*;

    fn memory() -> Arc<Party> {
        Pool::new(1 << 20).party("server")
    }

    async fn collected(bytes: Vec<u8>, bound: Bound, memory: &Arc<Party>) -> Result<usize, String> {
        let bytes = collect(SdkBody::from(bytes), bound, memory).await;
        bytes
            .map(|all| all.len())
            .map_err(|failure| crate::origin::error::chain(&ConnectorError::from(failure)))
    }

    /// Answers for one host at once, for others never.
    #[derive(Debug)]
    struct Lit(Arc<AtomicUsize>);

    impl HttpConnector for Lit {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            self.0.fetch_add(1, Ordering::Relaxed);
            match authority(request.uri()) {
                "lit" => {
                    let status = 200.try_into().unwrap();
                    HttpConnectorFuture::ready(Ok(HttpResponse::new(status, SdkBody::from("x"))))
                }
                _ => HttpConnectorFuture::new(std::future::pending()),
            }
        }
    }

    // Not a task of a runtime's: that would be made to give way after so many answers.
    #[test]
    fn endpoints_that_never_answer_leave_requests_to_others() {
        let begun = Arc::new(AtomicUsize::new(0));
        let connector = BoundedConnector(SharedHttpConnector::new(Lit(begun.clone())));
        let pools = Pools::new(1 << 20);
        let call = |host: &str, method: &str| {
            let mut request = HttpRequest::empty();
            request.set_method(method).unwrap();
            request.set_uri(format!("http://{host}/b/k")).unwrap();
            Box::pin(connector.call_within(&pools, request))
        };
        for method in ["HEAD", "PUT"] {
            begun.store(0, Ordering::Relaxed);
            let hosts = || (0..9000).map(|n| format!("dark{}", n % 9));
            let mut dark: Vec<_> = hosts().map(|host| call(&host, method)).collect();
            dark.iter_mut().for_each(|call| assert!(call.now_or_never().is_none()));
            let under_way = begun.load(Ordering::Relaxed);
            assert!(under_way > 512 && under_way < 896, "{under_way}");
            let mut lit = call("lit", method);
            let answer = (&mut lit).now_or_never().unwrap().unwrap();
            assert_eq!(answer.body().bytes(), Some(&b"x"[..]));
            drop(dark);
            // Alone, it leaves an eighth.
            begun.store(0, Ordering::Relaxed);
            let mut alone: Vec<_> = (0..1000).map(|_| call("alone", method)).collect();
            drop(lit);
            alone.iter_mut().for_each(|call| assert!(call.now_or_never().is_none()));
            assert_eq!(begun.load(Ordering::Relaxed), 896);
        }
    }

    #[tokio::test]
    async fn an_answer_ends_at_its_bound_and_says_so() {
        let bound = Bound::SHORT;
        assert_eq!(collected(vec![0; SHORT_MAX], bound, &memory()).await, Ok(SHORT_MAX));
        let error = collected(vec![0; SHORT_MAX + 1], bound, &memory()).await.unwrap_err();
        assert!(error.contains("more than 65536 bytes"), "{error}");
        let error = collected(b"<x/>".repeat(11), Bound { tags: 10, ..bound }, &memory()).await;
        assert!(error.unwrap_err().contains("more than 10 tags"));
    }

    #[tokio::test]
    async fn answers_are_counted_until_they_are_dropped_and_are_too_many_together() {
        let pool = Pool::new(80_000);
        let bound = Bound { bytes: 80_000, tags: 0 };
        let (one, _two) = (pool.party("one"), pool.party("two"));
        let kept = collect(SdkBody::from(vec![0; 15_000]), bound, &one).await.ok();
        assert_eq!(collected(vec![0; 5_000], bound, &one).await, Ok(5_000));
        let error = collected(vec![0; 5_001], bound, &one).await.unwrap_err();
        assert!(error.contains("too many answers"), "{error}");
        drop(kept);
        assert_eq!(collected(vec![0; 20_000], bound, &one).await, Ok(20_000));
    }

    #[test]
    fn an_answer_may_be_as_long_as_what_was_asked_for() {
        let bound = |method: &str, uri: &str| {
            let mut request = HttpRequest::empty();
            request.set_method(method).unwrap();
            request.set_uri(uri).unwrap();
            Bound::of(&request)
        };
        let page = "http://s3/b?list-type=2&prefix=a&max-keys=";
        let two = bound("GET", &format!("{page}2"));
        let all = bound("GET", &format!("{page}1000"));
        assert!(two.bytes < 100_000 && two.tags == 300, "{two:?}");
        assert!(all.bytes > 16_000_000 && all.bytes < 17_000_000, "{all:?}");
        assert_eq!(bound("GET", &format!("{page}99999999999999999999")), all);
        assert_eq!(bound("GET", "http://s3/b?uploads&prefix=a"), all);
        for (method, uri) in
            [("PUT", "http://s3/b/k"), ("POST", "http://s3/b/k?uploads"), ("GET", "http://s3/b/k")]
        {
            assert_eq!(bound(method, uri), Bound::SHORT, "{method} {uri}");
        }
    }

    #[test]
    fn endpoints_are_told_apart_by_host_and_port() {
        for url in ["http://s3:9000/b/k?x", "https://s3:9000?a=/", "http://s3:9000"] {
            assert_eq!(authority(url), "s3:9000");
        }
    }
}
