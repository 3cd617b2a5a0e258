//! A twin of an AIStore cluster, one proxy and two targets, before a bucket of another server: it does
//! what the real one was seen to do, as far as readers meet it. Tests make it behave worse.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
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
    /// Bytes a second that it fetches of its origin.
    pub rate: Option<u64>,
    /// Jobs that are to fetch something fail.
    pub fails_jobs: bool,
    /// It knows of no job that was begun.
    pub forgets_jobs: bool,
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
    /// Who fetches an object is waited for by all who want it.
    flights: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Objects that it was told to fetch, and lists of keys that it was told to forget: a job each.
    fetches: AtomicU64,
    told: Mutex<Vec<Vec<String>>>,
    /// Jobs that have ended.
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
        Self::before_origin(&bucket.name, bucket.origin())
    }

    /// Before a bucket that it reaches in this way.
    pub fn before_origin(bucket: &str, origin: Arc<dyn Origin>) -> Self {
        Self::on(bucket, origin, || TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The same, on listeners of these.
    pub fn on(bucket: &str, origin: Arc<dyn Origin>, listen: impl Fn() -> TcpListener) -> Self {
        let shared = Arc::new(Shared {
            bucket: bucket.to_owned(),
            origin,
            targets: Mutex::default(),
            objects: Mutex::default(),
            registered: Mutex::default(),
            manners: Mutex::default(),
            asked: AtomicU64::new(0),
            given: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
            flights: Mutex::default(),
            fetches: AtomicU64::new(0),
            told: Mutex::default(),
            ended: Mutex::default(),
            held: AtomicU64::new(0),
            tokens: Mutex::default(),
        });
        let targets = (0..2).map(|_| serve(listen(), shared.clone(), Role::Target)).collect();
        *lock(&shared.targets) = targets;
        Self { proxy: serve(listen(), shared.clone(), Role::Proxy), shared }
    }

    /// URL of its proxy.
    pub fn url(&self) -> String {
        format!("http://{}", self.proxy)
    }

    /// Addresses of its proxy, and of one of its targets, each of which has all that it has.
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.proxy, lock(&self.shared.targets)[0])
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

    /// Jobs to fetch something that were begun.
    pub fn jobs(&self) -> u64 {
        self.shared.fetches.load(Ordering::Relaxed)
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

fn serve(listener: TcpListener, shared: Arc<Shared>, role: Role) -> SocketAddr {
    http::serve_on(listener, move |request| {
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
    async fn answer(self: &Arc<Self>, role: Role, request: Request<Incoming>) -> Response<Body> {
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
            (&Method::GET, "/v1/cluster") => self.of_job(request, &manners).await,
            (_, path) if path.starts_with("/v1/buckets/") => self.of_bucket(request).await,
            (&Method::HEAD, path) => {
                match path.strip_prefix(&format!("/v1/objects/{}/", self.bucket)) {
                    Some(key) => self.presence(role, &request, key, &manners),
                    None => status(404),
                }
            }
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

    /// How far a job is.
    async fn of_job(&self, request: Request<Incoming>, manners: &Manners) -> Response<Body> {
        assert_eq!(request.uri().query(), Some("what=status"));
        let Some(asked) = json_of(request).await else { return status(400) };
        let id = asked["id"].as_str().unwrap();
        if manners.forgets_jobs {
            return status(404);
        }
        let end_time = i64::from(lock(&self.ended).contains(id));
        let says = serde_json::json!({
            "uuid": id, "kind": "a job", "err": "", "end_time": end_time, "aborted": false,
        });
        Response::new(full(says.to_string()))
    }

    /// Whether a target has an object.
    fn presence(
        &self,
        role: Role,
        request: &Request<Incoming>,
        raw: &str,
        manners: &Manners,
    ) -> Response<Body> {
        let query = request.uri().query().unwrap_or_default();
        assert!(query.contains("provider=aws") && query.contains("presence=2"), "{query}");
        if let Some(code) = manners.fails_with {
            return status(code);
        }
        if role == Role::Proxy {
            return self.redirect("v1/objects", raw, query, manners);
        }
        match lock(&self.objects).get(&percent_decode(raw)) {
            Some(object) => Response::builder()
                .header("etag", object.tag.trim_matches('"'))
                .body(full(""))
                .unwrap(),
            None => status(404),
        }
    }

    /// Fetches objects in the background.
    fn fetch_later(self: &Arc<Self>, keys: Vec<String>) -> Response<Body> {
        let id = format!("fetch-{}", self.fetches.fetch_add(1, Ordering::Relaxed));
        let (shared, job) = (self.clone(), id.clone());
        tokio::spawn(async move {
            let manners = lock(&shared.manners).clone();
            for key in &keys {
                if !manners.fails_jobs {
                    shared.drop_old(key).await;
                    // What fails is missing afterwards.
                    let _ = shared.fetched(key, &manners).await;
                }
            }
            lock(&shared.ended).insert(job);
        });
        Response::new(full(id))
    }

    /// Drops what it has of an object where its origin has another version.
    async fn drop_old(&self, key: &str) {
        let now = self.origin.head(key).await.ok().and_then(|info| info.etag);
        let mut objects = lock(&self.objects);
        let tag = now.as_ref().map(|etag| etag.as_str());
        if objects.get(key).is_some_and(|object| Some(object.tag.as_str()) != tag) {
            objects.remove(key);
        }
    }

    async fn of_bucket(self: &Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let bucket = request.uri().path().trim_start_matches("/v1/buckets/").to_owned();
        match *request.method() {
            Method::HEAD if bucket == self.bucket => {
                lock(&self.registered).insert(bucket);
                Response::new(full(""))
            }
            Method::DELETE => {
                let Some(asked) = json_of(request).await else { return status(400) };
                assert_eq!(asked["action"], "evict-listrange", "nothing else is to be done here");
                self.clone().forget(names_in(&asked)).await
            }
            Method::POST => {
                let Some(asked) = json_of(request).await else { return status(400) };
                assert_eq!(asked["action"], "prefetch-listrange", "nothing else is begun here");
                assert_eq!(asked["value"]["latest-ver"], true);
                match lock(&self.registered).contains(&self.bucket) {
                    true => self.fetch_later(names_in(&asked)),
                    false => status(404),
                }
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
            return self.redirect("s3", raw, "", manners);
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
    /// `query` is what was asked with.
    fn redirect(&self, api: &str, raw: &str, query: &str, manners: &Manners) -> Response<Body> {
        let targets = lock(&self.targets).clone();
        let target = targets[raw.len() % targets.len()];
        let base = manners.redirects_to.clone().unwrap_or_else(|| format!("http://{target}"));
        let name = percent_decode(raw).replace(' ', "%20").replace('#', "%23");
        // What comes after a question mark it takes for parameters.
        let (name, rest) = name.split_once('?').unwrap_or((&name, ""));
        let query = [rest, query].join("&");
        let location = format!("{base}/{api}/{}/{name}?pid=p1&utm=1&vm=1&{query}", self.bucket);
        let mut answer = status(307);
        let location = hyper::header::HeaderValue::from_bytes(location.as_bytes()).unwrap();
        answer.headers_mut().insert("location", location);
        answer
    }

    /// What it has, or else all of what its origin has, which it keeps for ever.
    async fn fetched(&self, key: &str, manners: &Manners) -> Result<Object, u16> {
        let flight = lock(&self.flights).entry(key.to_owned()).or_default().clone();
        let _alone = flight.lock().await;
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
        if let Some(rate) = manners.rate {
            tokio::time::sleep(Duration::from_millis(version.size * 1000 / rate)).await;
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

/// What a request says; `None` where it is cut off.
async fn json_of(request: Request<Incoming>) -> Option<serde_json::Value> {
    let body = request.into_body().collect().await.ok()?;
    Some(serde_json::from_slice(&body.to_bytes()).unwrap())
}

fn names_in(asked: &serde_json::Value) -> Vec<String> {
    let names = asked["value"]["objnames"].as_array().unwrap().iter();
    names.map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn parse(range: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    (first < size).then_some(first..(last + 1).min(size))
}

fn percent_decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}
