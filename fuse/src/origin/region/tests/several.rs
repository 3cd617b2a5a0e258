//! Several regions before an origin.

use super::*;
use crate::origin::faulty::Gate;
use crate::origin::{Condition, UploadBody, WriteIntent};

struct Two {
    origin: Arc<MemoryOrigin>,
    wan: Arc<Faulty>,
    last: Arc<crate::origin::measured::LastAnswer>,
    edges: [Edge; 2],
    regional: Arc<Regional>,
}

fn two() -> Two {
    let (metrics, log) = (Arc::new(Metrics::new().unwrap()), Log::default());
    let origin = Arc::new(MemoryOrigin::new("b"));
    let edges = [(); 2].map(|()| edge_of(Arc::default(), &metrics, &log, None));
    let wan = Arc::new(Faulty::new(origin.clone()));
    let measured = Arc::new(Measured::new(wan.clone(), metrics));
    let last = measured.last_answer();
    let regions = edges.iter().map(|edge| edge.region.clone()).collect();
    let proof = (ProofScope::Mount, Duration::from_secs(600));
    let regional = Arc::new(Regional::new(measured, regions, proof));
    Two { origin, wan, last, edges, regional }
}

impl Two {
    /// The same version everywhere, which the origin lets read.
    async fn everywhere(&self, key: &str, seed: u8) -> Version {
        for edge in &self.edges {
            edge.cached.insert(key, bytes(seed));
        }
        let version = Version { etag: self.origin.insert(key, bytes(seed)), size: SIZE as u64 };
        self.regional.allows(key, &version).await.unwrap();
        version
    }

    async fn read(&self, key: &str, version: &Version) -> Result<Vec<u8>, OriginError> {
        all_of(self.regional.get(key, version, 0..version.size).await?).await
    }

    /// They have answered so soon until now, in milliseconds.
    fn have_paces(&self, paces: [u64; 2]) {
        for (edge, pace) in self.edges.iter().zip(paces) {
            (0..64).for_each(|_| edge.region.pace.note(Duration::from_millis(pace)));
        }
    }

    fn asked(&self) -> [u64; 2] {
        self.edges.each_ref().map(|edge| edge.asked.load(Ordering::Relaxed))
    }

    /// Bytes that came from the origin besides those that say who may read.
    fn of_origin(&self) -> u64 {
        self.last.fetched_bytes() - 1
    }
}

#[tokio::test]
async fn the_soonest_is_asked_and_the_others_now_and_then() {
    let two = two();
    let version = two.everywhere("k", 1).await;
    two.have_paces([100, 1]);
    for _ in 0..10 {
        assert!(two.read("k", &version).await.unwrap() == bytes(1));
    }
    assert_eq!(two.asked(), [0, 10]);
    for _ in 10..64 {
        assert!(two.read("k", &version).await.unwrap() == bytes(1));
    }
    assert_eq!((two.asked(), two.of_origin()), ([1, 63], 0));
}

#[tokio::test]
async fn where_one_fails_or_lacks_it_the_next_is_asked_and_then_the_origin() {
    let two = two();
    let version = two.everywhere("k", 1).await;
    let failing = || Fault::Fail(OriginError::Unavailable("HTTP 500".into()));
    two.edges[0].faulty.inject_once(Op::Get, failing());
    assert!(two.read("k", &version).await.unwrap() == bytes(1));
    two.edges[0].cached.remove("k");
    assert!(two.read("k", &version).await.unwrap() == bytes(1));
    assert_eq!((two.asked(), two.of_origin()), ([2, 2], 0));
    two.edges[1].faulty.inject_once(Op::Get, failing());
    assert!(two.read("k", &version).await.unwrap() == bytes(1));
    assert_eq!((two.asked(), two.of_origin()), ([3, 3], SIZE as u64));
}

#[tokio::test]
async fn who_is_late_is_overtaken_and_known_for_it() {
    let two = two();
    let version = two.everywhere("k", 1).await;
    two.have_paces([1, 1]);
    for _ in 0..3 {
        two.edges[0].faulty.inject_once(Op::Get, Fault::Stall(Gate::new()));
        assert!(two.read("k", &version).await.unwrap() == bytes(1));
    }
    assert_eq!((two.asked(), two.of_origin()), ([3, 3], 0));
    assert!(two.edges[0].region.pace.patience() > two.edges[1].region.pace.usual());
    assert!(!two.edges[0].region.late.has("k", Instant::now()), "it may be there yet");
}

/// What is asked of two is a small part of what is asked of one.
#[tokio::test]
async fn the_origin_is_asked_beside_those_that_are_late_for_few_bytes() {
    let two = two();
    let version = two.everywhere("k", 1).await;
    two.have_paces([1, 1]);
    let stall = || {
        for edge in &two.edges {
            edge.faulty.inject_once(Op::Get, Fault::Stall(Gate::new()));
        }
    };
    stall();
    assert!(two.read("k", &version).await.unwrap() == bytes(1));
    assert_eq!((two.asked(), two.of_origin()), ([1, 1], SIZE as u64));
    // After that they are waited for.
    assert!(!two.regional.origin.may_ask_beside(1 << 20));
    while two.regional.origin.may_ask_beside(1) {}
    stall();
    assert!(two.read("k", &version).await.unwrap() == bytes(1));
    assert!(two.edges.iter().all(|edge| edge.region.late.has("k", Instant::now())));
    assert_eq!((two.asked(), two.of_origin()), ([2, 2], 2 * SIZE as u64));
}

#[tokio::test]
async fn an_origin_that_does_not_answer_ends_no_wait_for_regions_and_one_that_refuses_does() {
    let two = two();
    let version = two.everywhere("k", 1).await;
    two.have_paces([1, 1]);
    let stall = || {
        let gates = [Gate::new(), Gate::new()];
        for (edge, gate) in two.edges.iter().zip(&gates) {
            edge.faulty.inject_once(Op::Get, Fault::Stall(gate.clone()));
        }
        gates
    };
    let gates = stall();
    two.wan.inject_once(Op::Get, Fault::Fail(OriginError::TimedOut));
    let opens = async {
        for gate in &gates {
            gate.reached().await;
        }
        // The origin has been asked by then, and has failed.
        tokio::time::sleep(Duration::from_millis(100)).await;
        gates[0].open();
    };
    let (read, ()) = tokio::join!(two.read("k", &version), opens);
    assert!(read.unwrap() == bytes(1));
    let _gates = stall();
    two.wan.inject_once(Op::Get, Fault::Fail(OriginError::Denied("AccessDenied".into())));
    assert!(matches!(two.read("k", &version).await, Err(OriginError::Denied(_))));
}

#[tokio::test]
async fn each_is_told_of_what_it_has_otherwise_and_of_what_is_changed() {
    let two = two();
    two.everywhere("k", 1).await;
    let version = Version { etag: two.origin.insert("k", bytes(2)), size: SIZE as u64 };
    assert!(two.read("k", &version).await.unwrap() == bytes(2));
    let intent = WriteIntent { condition: Condition::Always, writer: "w".into() };
    two.regional.put("new", UploadBody::of("x"), &intent).await.unwrap();
    for edge in &two.edges {
        edge.region.send_list().await;
        assert_eq!(*unpoisoned(edge.told.lock()), [["k", "new"]]);
    }
}

#[tokio::test]
async fn none_is_asked_again_for_what_one_gave_wrong() {
    let two = two();
    two.everywhere("k", 1).await;
    let etag = crate::model::version::ETag::new("900150983cd24fb0d6963f7d28e17f72").unwrap();
    let version = Version { etag: etag.clone(), size: 3 };
    let wrong = Compared::Different { of_origin: false };
    assert!(!two.regional.judge("k", &version, wrong));
    assert!(two.edges.iter().all(|edge| edge.region.doubts.standing("k") == Standing::Suspected));
    assert_eq!(two.edges[0].region.metrics.region_wrong_objects.get(), 1);
}

/// Of earlier processes, of which some had other regions.
#[tokio::test]
async fn what_was_left_to_be_forgotten_is_for_each_region_whose_it_is() {
    #[derive(Default)]
    struct Left(Mutex<Vec<String>>);

    #[async_trait]
    impl EvictionLog for Left {
        async fn found(&self) -> Vec<(Box<str>, Box<str>)> {
            let names = ["b", "b\u{1f}http://127.0.0.1:9", "b\u{1f}http://gone"];
            names
                .iter()
                .zip(["all", "second", "gone"])
                .map(|(n, k)| ((*n).into(), k.into()))
                .collect()
        }

        async fn note(&self, name: &str, key: &str) {
            unpoisoned(self.0.lock()).push(format!("note {name} {key}"));
        }

        fn forget(&self, name: &str, keys: Vec<Box<str>>) {
            unpoisoned(self.0.lock()).push(format!("forget {name} {}", keys.join(" ")));
        }
    }

    let of = |url: &str| scripted::settings(RegionKind::AiStore, url.into());
    let settings = vec![of("http://127.0.0.1:8"), of("http://127.0.0.1:9")];
    let regions = Regions::new(settings, Arc::new(Metrics::new().unwrap()));
    let left = Arc::<Left>::default();
    regions.remember(left.clone()).await;
    let seen = unpoisoned(left.0.lock()).clone();
    assert_eq!(seen, ["note b\u{1f}http://127.0.0.1:9 all", "forget b\u{1f}http://gone gone"]);
    let waits = regions.of("b").await.unwrap().into_iter().map(|region| region.evictions.keys());
    assert_eq!(waits.collect::<Vec<_>>(), [vec!["all"], vec!["all", "second"]]);
}
