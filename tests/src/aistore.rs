//! A twin of an AIStore cluster, one proxy and two targets, before a bucket of another server: it does
//! what the real one was seen to do, as far as readers meet it. Tests make it behave worse.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use weir_fuse::origin::{Origin, OriginError};

use crate::bucket::Bucket;
use crate::http::{self, Body};

/// How it misbehaves.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// Objects have other bytes than the origin's, under its tag.
    pub corrupts: bool,
    /// Bodies end after so many bytes.
    pub cuts_at: Option<usize>,
    /// Bodies go on beyond what was announced.
    pub goes_on: bool,
    /// A range is answered with all bytes.
    pub ignores_ranges: bool,
    /// Content-Range says another size.
    pub missizes: bool,
    /// It has no room for what it does not have yet.
    pub is_full: bool,
    /// Every request about an object is answered with this.
    pub fails_with: Option<u16>,
    /// Requests about objects are never answered.
    pub hangs: bool,
    /// Redirects lead here instead of to a target.
    pub redirects_to: Option<String>,
    /// The token that it wants.
    pub token: Option<String>,
    /// It forgets nothing that it is told to.
    pub keeps_all: bool,
    /// What tells it to forget something is not answered while this is so.
    pub hangs_when_told: bool,
    /// What tells it to forget something is answered with this.
    pub refuses_when_told: Option<u16>,
}

/// An object as it was when it was fetched.
#[derive(Clone)]
struct Object {
    bytes: Bytes,
    tag: String,
}

/// The cluster.
pub struct AiStore {
    proxy: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    bucket: String,
    origin: Arc<dyn Origin>,
    targets: Mutex<Vec<SocketAddr>>,
    objects: Mutex<HashMap<String, Object>>,
    registered: Mutex<HashSet<String>>,
    manners: Mutex<Manners>,
    /// Requests about objects that a target answered.
    asked: AtomicU64,
    /// Bytes that it gave out, and that it fetched.
    given: AtomicU64,
    fetched: AtomicU64,
    /// Lists of keys that it was told to forget: a job each.
    told: Mutex<Vec<Vec<String>>>,
    /// How many of these jobs have ended.
    ended: Mutex<HashSet<String>>,
    /// Lists that came while it hangs.
    held: AtomicU64,
    /// Values of `authorization` that it was sent.
    tokens: Mutex<HashSet<String>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Proxy,
    Target,
}

impl AiStore {
    /// Before this bucket, of which it knows nothing yet.
    pub fn before(bucket: &Bucket) -> Self {
        let shared = Arc::new(Shared {
            bucket: bucket.name.clone(),
            origin: bucket.origin(),
            targets: Mutex::default(),
            objects: Mutex::default(),
            registered: Mutex::default(),
            manners: Mutex::default(),
            asked: AtomicU64::new(0),
            given: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
            told: Mutex::default(),
            ended: Mutex::default(),
            held: AtomicU64::new(0),
            tokens: Mutex::default(),
        });
        let targets = (0..2).map(|_| listen(shared.clone(), Role::Target)).collect();
        *lock(&shared.targets) = targets;
        Self { proxy: listen(shared.clone(), Role::Proxy), shared }
    }

    /// URL of its proxy.
    pub fn url(&self) -> String {
        format!("http://{}", self.proxy)
    }

    /// From now on it behaves so.
    pub fn behave(&self, manners: Manners) {
        *lock(&self.shared.manners) = manners;
    }

    /// Requests about objects' bytes that it answered.
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// Bytes of objects that it gave out.
    pub fn given_bytes(&self) -> u64 {
        self.shared.given.load(Ordering::Relaxed)
    }

    /// Bytes of objects that it fetched from its origin.
    pub fn fetched_bytes(&self) -> u64 {
        self.shared.fetched.load(Ordering::Relaxed)
    }

    /// Whether it has an object.
    pub fn has(&self, key: &str) -> bool {
        lock(&self.shared.objects).contains_key(key)
    }

    /// Keys that it was told to forget, in order.
    pub fn told(&self) -> Vec<String> {
        self.lists().concat()
    }

    /// The lists in which it was told so.
    pub fn lists(&self) -> Vec<Vec<String>> {
        lock(&self.shared.told).clone()
    }

    /// Lists that came while it hangs.
    pub fn held(&self) -> u64 {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// What it was sent as `authorization`.
    pub fn tokens(&self) -> HashSet<String> {
        lock(&self.shared.tokens).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(shared: Arc<Shared>, role: Role) -> SocketAddr {
    http::serve(move |request| {
        let shared = shared.clone();
        async move { Ok(shared.answer(role, request).await) }
    })
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed()
}

fn status(code: u16) -> Response<Body> {
    let mut answer = Response::new(full("<Error></Error>"));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap();
    answer.headers_mut().insert("server", "AIStore".parse().unwrap());
    answer
}

impl Shared {
    async fn answer(self: Arc<Self>, role: Role, request: Request<Incoming>) -> Response<Body> {
        let manners = lock(&self.manners).clone();
        let said = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        if let Some(said) = said {
            lock(&self.tokens).insert(said.to_owned());
        }
        let path = request.uri().path().to_owned();
        if let Some(token) = &manners.token
            && said != Some(format!("Bearer {token}").as_str())
            && path != "/v1/daemon"
        {
            return status(401);
        }
        match (request.method(), path.as_str()) {
            (&Method::GET, "/v1/daemon") => Response::new(full(self.map())),
            (&Method::GET, "/v1/cluster") => self.of_job(request).await,
            (_, path) if path.starts_with("/v1/buckets/") => self.of_bucket(request).await,
            (&Method::GET, "/s3" | "/") => status(200),
            (&Method::GET, path) => match path.strip_prefix(&format!("/s3/{}/", self.bucket)) {
                Some(key) => self.object(role, &request, key, &manners).await,
                None => status(404),
            },
            _ => status(405),
        }
    }

    /// The cluster's map, as far as clients read it.
    fn map(&self) -> String {
        let node = |(n, address): (usize, &SocketAddr)| {
            let net = serde_json::json!({
                "node_hostname": address.ip().to_string(),
                "daemon_port": address.port().to_string(),
                "direct_url": format!("http://{address}"),
            });
            (format!("t{n}"), serde_json::json!({"public_net": net}))
        };
        let nodes: BTreeMap<_, _> = lock(&self.targets).iter().enumerate().map(node).collect();
        serde_json::json!({"tmap": nodes, "pmap": {}, "version": "3"}).to_string()
    }

    async fn of_bucket(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let bucket = request.uri().path().trim_start_matches("/v1/buckets/").to_owned();
        match *request.method() {
            Method::HEAD if bucket == self.bucket => {
                lock(&self.registered).insert(bucket);
                Response::new(full(""))
            }
            Method::DELETE => {
                let Ok(body) = request.into_body().collect().await else { return status(400) };
                let asked: serde_json::Value = serde_json::from_slice(&body.to_bytes()).unwrap();
                assert_eq!(asked["action"], "evict-listrange", "nothing else is to be done here");
                let names = asked["value"]["objnames"].as_array().unwrap();
                let names = names.iter().map(|name| name.as_str().unwrap().to_owned()).collect();
                self.forget(names).await
            }
            _ => status(404),
        }
    }

    /// It says that it will, and does so later.
    async fn forget(self: Arc<Self>, names: Vec<String>) -> Response<Body> {
        if lock(&self.manners).hangs_when_told {
            self.held.fetch_add(1, Ordering::Relaxed);
        }
        while lock(&self.manners).hangs_when_told {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if let Some(code) = lock(&self.manners).refuses_when_told {
            return status(code);
        }
        let job = {
            let mut told = lock(&self.told);
            told.push(names.clone());
            format!("job-{}", told.len())
        };
        let id = job.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if !lock(&self.manners).keeps_all {
                lock(&self.objects).retain(|name, _| !names.contains(name));
            }
            lock(&self.ended).insert(id);
        });
        Response::new(full(job))
    }

    async fn of_job(&self, request: Request<Incoming>) -> Response<Body> {
        let Ok(body) = request.into_body().collect().await else { return status(400) };
        let asked: serde_json::Value = serde_json::from_slice(&body.to_bytes()).unwrap();
        let id = asked["id"].as_str().unwrap();
        let end_time = i64::from(lock(&self.ended).contains(id));
        let says = serde_json::json!({
            "uuid": id, "kind": "evict-listrange", "err": "", "end_time": end_time, "aborted": false,
        });
        Response::new(full(says.to_string()))
    }

    async fn object(
        &self,
        role: Role,
        request: &Request<Incoming>,
        raw: &str,
        manners: &Manners,
    ) -> Response<Body> {
        if manners.hangs {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        if let Some(code) = manners.fails_with {
            return status(code);
        }
        if !lock(&self.registered).contains(&self.bucket) {
            return status(404);
        }
        if role == Role::Proxy {
            return self.redirect(raw, manners);
        }
        if !request.uri().query().unwrap_or_default().contains("pid=") {
            return status(400);
        }
        let key = percent_decode(raw);
        let object = match self.fetched(&key, manners).await {
            Ok(object) => object,
            Err(code) => return status(code),
        };
        self.asked.fetch_add(1, Ordering::Relaxed);
        let range = request.headers().get("range").map(|range| range.to_str().unwrap());
        self.bytes_of(object, range, manners)
    }

    /// To the target that has it, by a name as it may stand in a header, with what the target wants.
    fn redirect(&self, raw: &str, manners: &Manners) -> Response<Body> {
        let targets = lock(&self.targets).clone();
        let target = targets[raw.len() % targets.len()];
        let base = manners.redirects_to.clone().unwrap_or_else(|| format!("http://{target}"));
        let name = percent_decode(raw).replace(' ', "%20").replace('?', "%3F").replace('#', "%23");
        let location = format!("{base}/s3/{}/{name}?pid=p1&utm=1&vm=1", self.bucket);
        let mut answer = status(307);
        let location = hyper::header::HeaderValue::from_bytes(location.as_bytes()).unwrap();
        answer.headers_mut().insert("location", location);
        answer
    }

    /// What it has, or else all of what its origin has, which it keeps for ever.
    async fn fetched(&self, key: &str, manners: &Manners) -> Result<Object, u16> {
        if let Some(object) = lock(&self.objects).get(key) {
            return Ok(object.clone());
        }
        if manners.is_full {
            return Err(507);
        }
        let info = match self.origin.head(key).await {
            Ok(info) => info,
            Err(OriginError::NotFound) => return Err(404),
            Err(_) => return Err(500),
        };
        let version = info.version().ok_or(500_u16)?;
        let mut bytes = Vec::new();
        if version.size > 0 {
            let body = self.origin.get(key, &version, 0..version.size).await;
            let mut body = body.map_err(|_| 500_u16)?;
            while let Some(piece) = body.pieces.next().await {
                bytes.extend_from_slice(&piece.map_err(|_| 500_u16)?);
            }
        }
        self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let object = Object { bytes: bytes.into(), tag: version.etag.as_str().to_owned() };
        lock(&self.objects).insert(key.to_owned(), object.clone());
        Ok(object)
    }

    fn bytes_of(&self, object: Object, range: Option<&str>, manners: &Manners) -> Response<Body> {
        let size = object.bytes.len() as u64;
        let asked = range.and_then(|range| parse(range, size)).filter(|_| !manners.ignores_ranges);
        let part = asked.clone().unwrap_or(0..size);
        let mut bytes = object.bytes.slice(part.start as usize..part.end as usize);
        let announced = bytes.len();
        if manners.corrupts {
            bytes = bytes.iter().map(|byte| !byte).collect::<Vec<_>>().into();
        }
        if let Some(at) = manners.cuts_at {
            bytes.truncate(at);
        }
        if manners.goes_on {
            bytes = [&bytes[..], &[0; 1000]].concat().into();
        }
        self.given.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut answer = Response::builder()
            .header("server", "AIStore")
            .header("etag", &object.tag)
            .header("content-type", "application/octet-stream");
        if let Some(part) = asked {
            let total = if manners.missizes { size + 1 } else { size };
            let text = format!("bytes {}-{}/{total}", part.start, part.end - 1);
            answer = answer.status(206).header("content-range", text);
        }
        if manners.cuts_at.is_none() && !manners.goes_on {
            return answer.header("content-length", announced).body(full(bytes)).unwrap();
        }
        // In pieces, without a length.
        let piece = futures_util::stream::iter([Ok(Frame::data(bytes))]);
        answer.body(BodyExt::boxed(StreamBody::new(piece))).unwrap()
    }
}

fn parse(range: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    (first < size).then_some(first..(last + 1).min(size))
}

fn percent_decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}
