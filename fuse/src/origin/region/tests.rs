//! A region before an origin, both in memory.

mod cold;
mod faults;
mod forgetting;
mod several;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::body::all_of;
use super::doubts::Standing;
use super::*;
use crate::metrics::Metrics;
use crate::model::key::DirPrefix;
use crate::origin::Compared;
use crate::origin::conditional::{Conditional, MemoryVerdicts};
use crate::origin::faulty::{Fault, Faulty, Op};
use crate::origin::measured::Measured;
use crate::origin::memory::MemoryOrigin;
use crate::origin::uploads::MemoryUploads;
use crate::origin::{Condition, Origin};
use crate::sync::unpoisoned;

const SIZE: usize = 300_000;

/// How a region's bodies come.
#[derive(Clone, Copy, Default)]
enum Manner {
    #[default]
    AsTheyShould,
    /// A byte now and then.
    InTrickles,
    /// With an error after the last byte.
    WithAnErrorBehind,
}

impl Manner {
    async fn of(self, mut body: Body) -> Result<Body, OriginError> {
        body.pieces = match self {
            Self::AsTheyShould => body.pieces,
            Self::InTrickles => {
                let piece = body.pieces.next().await.unwrap()?;
                let bytes = (0..piece.len()).map(move |at| piece.slice(at..=at));
                let late = async |byte| {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Ok(byte)
                };
                stream::iter(bytes).then(late).boxed()
            }
            Self::WithAnErrorBehind => {
                let error = Err(OriginError::BadBody("no end".into()));
                body.pieces.chain(stream::iter([error])).boxed()
            }
        };
        Ok(body)
    }
}

/// A store as a region's: it knows no version but the one it has.
struct Store {
    origin: Arc<Faulty>,
    memory: Arc<MemoryOrigin>,
    manner: Arc<Mutex<Manner>>,
    asked: Arc<AtomicU64>,
    told: Told,
    jobs: Option<Arc<Jobs>>,
}

/// Jobs of a store's that fetch objects.
#[derive(Default)]
struct Jobs {
    has: AtomicBool,
    ended: AtomicBool,
    is_sick: AtomicBool,
    begun: AtomicU64,
}

#[async_trait]
impl FetchJobs for Jobs {
    async fn has(&self, _: &str, _: &ETag) -> Result<bool, OriginError> {
        match self.is_sick.load(Ordering::Relaxed) {
            true => Err(OriginError::TimedOut),
            false => Ok(self.has.load(Ordering::Relaxed)),
        }
    }

    async fn fetch(&self, key: &str) -> Result<String, OriginError> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Ok(key.to_owned())
    }

    async fn has_ended(&self, _: &str) -> Result<Option<bool>, OriginError> {
        Ok(Some(self.ended.load(Ordering::Relaxed)))
    }
}

/// The lists that it was told to forget.
type Told = Arc<Mutex<Vec<Vec<String>>>>;

#[async_trait]
impl Replica for Store {
    fn can_have(&self, key: &str) -> bool {
        !key.contains("//")
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.memory.bytes(key).is_none() {
            return Err(OriginError::NotFound);
        }
        let manner = *unpoisoned(self.manner.lock());
        manner.of(self.origin.get(key, version, range).await?).await
    }

    fn can_forget(&self, key: &str) -> bool {
        self.can_have(key)
    }

    async fn forget(&self, keys: &[&str]) -> Result<(), OriginError> {
        for key in keys {
            self.origin.delete(key, &Condition::Always).await?;
        }
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        unpoisoned(self.told.lock()).push(keys);
        Ok(())
    }

    fn jobs(&self) -> Option<&dyn FetchJobs> {
        self.jobs.as_ref().map(|jobs| &**jobs as &dyn FetchJobs)
    }
}

struct World {
    origin: Arc<MemoryOrigin>,
    /// What happens to requests that reach the origin.
    wan: Arc<Faulty>,
    /// Counts what comes from the origin.
    last: Arc<crate::origin::measured::LastAnswer>,
    /// What the region has.
    cached: Arc<MemoryOrigin>,
    edge: Arc<Faulty>,
    manner: Arc<Mutex<Manner>>,
    asked: Arc<AtomicU64>,
    told: Told,
    log: Log,
    region: Arc<Region>,
    regional: Arc<Regional>,
}

fn bytes(seed: u8) -> Vec<u8> {
    (0..SIZE).map(|n| (n % 251) as u8 ^ seed).collect()
}

fn world() -> World {
    world_of(ProofScope::Version)
}

fn world_of(scope: ProofScope) -> World {
    world_at(scope, Arc::default())
}

/// A bucket at a region's server.
fn world_at(scope: ProofScope, server: Arc<Breaker>) -> World {
    world_with(scope, server, None)
}

/// A region, and what it has.
struct Edge {
    cached: Arc<MemoryOrigin>,
    faulty: Arc<Faulty>,
    manner: Arc<Mutex<Manner>>,
    asked: Arc<AtomicU64>,
    told: Told,
    region: Arc<Region>,
}

fn edge_of(
    server: Arc<Breaker>,
    metrics: &Arc<Metrics>,
    log: &Log,
    jobs: Option<Arc<Jobs>>,
) -> Edge {
    let cached = Arc::new(MemoryOrigin::new("b"));
    let faulty = Arc::new(Faulty::new(cached.clone()));
    let (asked, told, manner) = <(Arc<AtomicU64>, Told, Arc<Mutex<Manner>>)>::default();
    let store = Store {
        origin: faulty.clone(),
        memory: cached.clone(),
        manner: manner.clone(),
        asked: asked.clone(),
        told: told.clone(),
        jobs,
    };
    let region = Region::new(("b", "b"), Box::new(store), server, metrics.clone(), log.clone());
    // Lists are sent as tests say.
    assert!(region.evictions.follow());
    Edge { cached, faulty, manner, asked, told, region }
}

fn world_with(scope: ProofScope, server: Arc<Breaker>, jobs: Option<Arc<Jobs>>) -> World {
    let (metrics, log) = (Arc::new(Metrics::new().unwrap()), Log::default());
    let origin = Arc::new(MemoryOrigin::new("b"));
    let wan = Arc::new(Faulty::new(origin.clone()));
    let Edge { cached, faulty: edge, manner, asked, told, region } =
        edge_of(server, &metrics, &log, jobs);
    let measured = Arc::new(Measured::new(wan.clone(), metrics));
    let last = measured.last_answer();
    let lifetime = Duration::from_secs(600);
    let regional = Arc::new(Regional::new(measured, vec![region.clone()], (scope, lifetime)));
    World { origin, wan, last, cached, edge, manner, asked, told, log, region, regional }
}

impl World {
    /// The same version at both.
    fn both(&self, key: &str, seed: u8) -> Version {
        self.cached.insert(key, bytes(seed));
        Version { etag: self.origin.insert(key, bytes(seed)), size: SIZE as u64 }
    }

    async fn read(&self, key: &str, version: &Version) -> Result<Vec<u8>, OriginError> {
        all_of(self.regional.get(key, version, 0..version.size).await?).await
    }

    /// The region fails so often with this error, and what is read is right all the same.
    async fn fails(&self, times: usize, error: &OriginError) {
        let version = self.both("k", 1);
        for _ in 0..times {
            self.edge.inject_once(Op::Get, Fault::Fail(error.clone()));
            assert!(self.read("k", &version).await.unwrap() == bytes(1));
        }
    }

    /// Whether it is asked for bytes of something else, and gives them.
    async fn gives(&self) -> bool {
        let (version, before) = (self.both("other", 2), self.outcome("given"));
        assert!(self.read("other", &version).await.unwrap() == bytes(2));
        self.outcome("given") > before
    }

    fn shut(&self) -> i64 {
        self.region.metrics.regions_shut.get()
    }

    /// The lists that the region was told to forget, with what is due now.
    async fn told(&self) -> Vec<Vec<String>> {
        self.region.send_list().await;
        unpoisoned(self.told.lock()).clone()
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    fn outcome(&self, label: &str) -> u64 {
        self.region.metrics.region_requests.with_label_values(&[label]).get()
    }
}

#[tokio::test]
async fn bytes_come_from_the_region_once_the_origin_let_one_be_read() {
    let world = world();
    let version = world.both("k", 1);
    for _ in 0..3 {
        assert!(world.read("k", &version).await.unwrap() == bytes(1));
        // It is asked once.
        world.wan.fail_all(Some(OriginError::TimedOut));
    }
    assert_eq!((world.outcome("given"), world.last.fetched_bytes()), (3, 1));
}

#[tokio::test]
async fn another_version_of_the_region_is_never_read_and_forgotten_there_once() {
    let world = world();
    world.both("k", 1);
    let version = Version { etag: world.origin.insert("k", bytes(2)), size: SIZE as u64 };
    for _ in 0..3 {
        assert!(world.read("k", &version).await.unwrap() == bytes(2));
    }
    assert_eq!((world.outcome("stale"), world.told().await), (3, vec![vec!["k".to_owned()]]));
    // More may be said of it soon, and it is told once.
    world.both("k", 1);
    assert!(world.read("k", &version).await.is_err());
    assert_eq!(world.told().await.len(), 1);
    assert!(!world.region.breaker.is_shut(), "to be behind is no fault");
}

#[tokio::test]
async fn what_the_region_lacks_or_takes_for_something_else_comes_from_the_origin() {
    let world = world();
    let other = world.both("a//b", 3);
    let version = Version { etag: world.origin.insert("k", bytes(2)), size: SIZE as u64 };
    assert!(world.read("k", &version).await.unwrap() == bytes(2));
    assert!(world.read("a//b", &other).await.unwrap() == bytes(3));
    assert_eq!((world.outcome("absent"), world.outcome("given")), (1, 0));
}

#[tokio::test]
async fn the_origin_goes_on_where_the_regions_body_ends() {
    let world = world();
    let version = world.both("k", 1);
    world.regional.allows("k", &version).await.unwrap();
    for at in [0, 1, 100_000, SIZE - 1] {
        world.edge.inject_once(Op::Get, Fault::Truncate(at));
        let before = world.last.fetched_bytes();
        assert!(world.read("k", &version).await.unwrap() == bytes(1), "{at}");
        assert_eq!(world.last.fetched_bytes() - before, (SIZE - at) as u64, "{at}");
    }
    // And where it fails, too, it is told.
    world.edge.inject_once(Op::Get, Fault::Truncate(1));
    world.origin.insert("k", bytes(2));
    assert!(matches!(world.read("k", &version).await, Err(OriginError::Changed)));
}

#[tokio::test]
async fn a_region_that_fails_is_left_alone() {
    let world = world();
    let version = world.both("k", 1);
    let failing = || OriginError::Unavailable("HTTP 500".into());
    for _ in 0..5 {
        world.edge.inject_once(Op::Get, Fault::Fail(failing()));
        assert!(world.read("k", &version).await.unwrap() == bytes(1));
    }
    assert!(world.region.breaker.is_shut());
    assert!(world.read("k", &version).await.unwrap() == bytes(1));
    assert_eq!(world.asked.load(Ordering::Relaxed), 5);
}

/// The region gives its bytes to the node, whoever asks.
#[tokio::test]
async fn who_may_not_read_at_the_origin_gets_nothing_of_the_region() {
    let world = world();
    let version = world.both("k", 1);
    let denied = || Fault::Fail(OriginError::Denied("AccessDenied".into()));
    world.wan.inject_once(Op::Get, denied());
    assert!(matches!(world.read("k", &version).await, Err(OriginError::Denied(_))));
    // What was deleted, or replaced, is not shown either.
    world.origin.insert("k", bytes(2));
    assert!(matches!(world.read("k", &version).await, Err(OriginError::Changed)));
}

/// Who is shown what is cached for what the region says is shown what others may read.
#[tokio::test]
async fn whether_something_may_be_read_the_origin_alone_says() {
    let world = world();
    let version = world.both("k", 1);
    let denied = || Fault::Fail(OriginError::Denied("AccessDenied".into()));
    world.read("k", &version).await.unwrap();
    let asked = world.asked.load(Ordering::Relaxed);
    world.wan.inject_once(Op::Get, denied());
    assert!(matches!(world.regional.allows("k", &version).await, Err(OriginError::Denied(_))));
    assert_eq!(world.asked.load(Ordering::Relaxed), asked);
    // What it said last counts, of bytes, too.
    world.wan.inject_once(Op::Get, denied());
    assert!(matches!(world.read("k", &version).await, Err(OriginError::Denied(_))));
    world.regional.allows("k", &version).await.unwrap();
    world.wan.fail_all(Some(OriginError::TimedOut));
    assert!(world.read("k", &version).await.unwrap() == bytes(1));
}

#[tokio::test]
async fn other_credentials_ask_the_origin_again() {
    let world = world();
    let version = world.both("k", 1);
    world.read("k", &version).await.unwrap();
    world.regional.credentials_changed();
    world.wan.inject_once(Op::Get, Fault::Fail(OriginError::Denied("AccessDenied".into())));
    assert!(matches!(world.read("k", &version).await, Err(OriginError::Denied(_))));
}

/// Mounts speak to it through that.
#[tokio::test]
async fn what_is_asked_and_said_beside_bytes_passes_the_layer_of_conditions() {
    let world = world();
    let (verdicts, uploads) = (Arc::<MemoryVerdicts>::default(), Arc::<MemoryUploads>::default());
    let region: Arc<dyn Origin> = world.regional.clone();
    let origin = Conditional::new(region, &DirPrefix::root(), verdicts, uploads);
    let version = world.both("k", 1);
    let denied = || Fault::Fail(OriginError::Denied("AccessDenied".into()));
    world.read("k", &version).await.unwrap();
    world.wan.inject_once(Op::Get, denied());
    assert!(matches!(origin.allows("k", &version).await, Err(OriginError::Denied(_))));
    origin.allows("k", &version).await.unwrap();
    origin.credentials_changed();
    world.wan.inject_once(Op::Get, denied());
    assert!(matches!(world.read("k", &version).await, Err(OriginError::Denied(_))));
    assert!(!origin.judge("k", &version, WRONG));
    assert_eq!(world.region.doubts.standing("k"), Standing::Suspected);
}

#[tokio::test]
async fn the_nodes_own_credentials_are_asked_for_once_until_something_is_refused_to_them() {
    let world = world_of(ProofScope::Mount);
    let [k, l, m] = ["k", "l", "m"].map(|key| (key, world.both(key, 1)));
    world.read(k.0, &k.1).await.unwrap();
    // Nothing else is asked for.
    world.wan.inject_once(Op::Get, Fault::Fail(OriginError::Denied("AccessDenied".into())));
    assert!(world.read(l.0, &l.1).await.unwrap() == bytes(1));
    world.cached.remove(l.0);
    assert!(matches!(world.read(l.0, &l.1).await, Err(OriginError::Denied(_))));
    // What it lets be read says nothing of others any more.
    world.read(k.0, &k.1).await.unwrap();
    world.wan.inject_once(Op::Get, Fault::Fail(OriginError::Denied("AccessDenied".into())));
    assert!(matches!(world.read(m.0, &m.1).await, Err(OriginError::Denied(_))));
}

const SMALL: usize = 100_000;
const WRONG: Compared = Compared::Different { of_origin: false };

/// All bytes of a small one.
async fn read_small(world: &World, version: &Version) -> Vec<u8> {
    let body = world.regional.get("s", version, 0..SMALL as u64).await.unwrap();
    assert!(!body.borrowed, "it was not compared with its tag");
    all_of(body).await.unwrap()
}

fn small(world: &World) -> Version {
    world.cached.insert("s", bytes(1)[..SMALL].to_vec());
    let etag = world.origin.insert("s", bytes(1)[..SMALL].to_vec());
    Version { etag, size: SMALL as u64 }
}

#[tokio::test]
async fn wrong_bytes_of_a_small_object_are_shown_to_nobody_and_the_region_is_not_asked_again() {
    let world = world();
    let version = small(&world);
    assert!(read_small(&world, &version).await == bytes(1)[..SMALL]);
    assert_eq!((world.outcome("given"), world.region.metrics.region_wrong_objects.get()), (1, 0));
    world.edge.inject_once(Op::Get, Fault::FlipBit);
    for _ in 0..3 {
        assert!(read_small(&world, &version).await == bytes(1)[..SMALL]);
    }
    assert_eq!((world.asked(), world.told().await), (2, vec![vec!["s".to_owned()]]));
    assert_eq!(world.region.metrics.region_wrong_objects.get(), 1);
    assert_eq!(world.region.doubts.standing("s"), Standing::Guilty);
    // Others are asked for there.
    let other = world.both("k", 1);
    assert!(world.read("k", &other).await.unwrap() == bytes(1));
    assert_eq!(world.asked.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn tags_that_are_no_md5s_accuse_nobody_but_once() {
    let world = world();
    let version = small(&world);
    world.edge.inject_once(Op::Get, Fault::FlipBit);
    // The first asks for its permission.
    world.wan.inject_nth(Op::Get, 2, Fault::FlipBit);
    assert!(read_small(&world, &version).await != bytes(1)[..SMALL]);
    assert_eq!(world.region.doubts.standing("s"), Standing::Open);
    assert!(!world.region.doubts.can_judge("s", &version.etag));
    assert!(read_small(&world, &version).await == bytes(1)[..SMALL]);
    assert_eq!(world.outcome("given"), 2);
}

#[tokio::test]
async fn larger_bytes_are_to_be_compared_by_who_has_them_all() {
    let world = world();
    let version = world.both("k", 1);
    let borrowed = async || {
        let body = world.regional.get("k", &version, 0..version.size).await.unwrap();
        let borrowed = body.borrowed;
        all_of(body).await.unwrap();
        borrowed
    };
    assert!(borrowed().await);
    assert!(!world.regional.judge("k", &version, WRONG), "they are to be dropped");
    assert!(borrowed().await, "the origin's own are compared, too");
    assert!(world.regional.judge("k", &version, Compared::Equal));
    assert!(!borrowed().await);
    assert_eq!((world.outcome("given"), world.region.metrics.region_wrong_objects.get()), (1, 1));
    // A tag of several parts says nothing of the bytes.
    let parts = Version { etag: ETag::new("0-2").unwrap(), size: 1 };
    assert!(!world.region.doubts.can_judge("k", &parts.etag));
}

#[tokio::test]
async fn a_region_that_never_answers_is_not_waited_for_without_end() {
    let world = world();
    let version = world.both("k", 1);
    // Nor is the origin asked beside it.
    while world.regional.origin.may_ask_beside(1 << 10) {}
    world.edge.inject_once(Op::Get, Fault::Delay(Duration::from_secs(3600)));
    let read = timeout(Duration::from_secs(60), world.read("k", &version));
    assert!(read.await.unwrap().unwrap() == bytes(1));
    assert_eq!(world.outcome("failed"), 1);
    // It may be fetching it: others are asked for there meanwhile.
    assert!(world.read("k", &version).await.unwrap() == bytes(1));
    assert!(world.gives().await);
    assert_eq!(world.asked(), 2);
}
