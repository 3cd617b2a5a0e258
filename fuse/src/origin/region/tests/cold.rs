//! A region that fetches objects whole, and slowly.

use super::super::cold::Presence;
use super::*;

/// One that takes three seconds for an object.
fn slow() -> (World, Arc<Jobs>) {
    let jobs = Arc::<Jobs>::default();
    let world = world_with(ProofScope::Version, Arc::default(), Some(jobs.clone()));
    world.region.cold.assume_rate(SIZE as u64 / 3);
    (world, jobs)
}

impl World {
    fn presence(&self, key: &str, version: &Version) -> Option<Presence> {
        self.region.cold.presence(key, &version.etag, Instant::now())
    }

    /// Waits until it is found out whether the region has it.
    async fn found_out(&self, key: &str, version: &Version) -> Presence {
        loop {
            match self.presence(key, version) {
                None | Some(Presence::Unknown | Presence::Coming) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Some(presence) => return presence,
            }
        }
    }
}

#[tokio::test]
async fn a_large_object_is_the_origins_where_somebody_waits_until_the_region_has_it_whole() {
    let (world, jobs) = slow();
    let version = world.both("k", 1);
    assert!(!world.regional.may_fetch_ahead("k", &version), "before anybody asked");
    for _ in 0..3 {
        assert!(world.read("k", &version).await.unwrap() == bytes(1));
    }
    assert_eq!((world.asked(), world.last.fetched_bytes()), (0, 1 + 3 * SIZE as u64));
    while world.presence("k", &version) != Some(Presence::Coming) {
        tokio::task::yield_now().await;
    }
    assert!(!world.regional.may_fetch_ahead("k", &version));
    jobs.has.store(true, Ordering::Relaxed);
    jobs.ended.store(true, Ordering::Relaxed);
    assert!(matches!(world.found_out("k", &version).await, Presence::Present(_)));
    assert!(world.regional.may_fetch_ahead("k", &version));
    assert!(world.read("k", &version).await.unwrap() == bytes(1));
    assert_eq!((world.outcome("given"), jobs.begun.load(Ordering::Relaxed)), (1, 1));
    assert_eq!(world.last.fetched_bytes(), 1 + 3 * SIZE as u64);
}

#[tokio::test]
async fn what_it_does_not_come_to_have_is_the_origins_for_a_while() {
    let (world, jobs) = slow();
    let version = world.both("k", 1);
    jobs.ended.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        assert!(world.read("k", &version).await.unwrap() == bytes(1));
        assert!(matches!(world.found_out("k", &version).await, Presence::Absent(_)));
        assert!(world.regional.may_fetch_ahead("k", &version));
    }
    assert_eq!((world.asked(), jobs.begun.load(Ordering::Relaxed)), (0, 1));
    // Of another version of it nothing is known.
    let other = world.both("k", 2);
    assert_eq!(world.presence("k", &other), None);
}

/// It had it, and has given it up since, or has another version of it.
#[tokio::test]
async fn what_it_does_not_have_after_all_it_is_asked_to_fetch() {
    let (world, jobs) = slow();
    let version = world.both("k", 1);
    jobs.has.store(true, Ordering::Relaxed);
    assert!(world.region.has("k", &version).await);
    world.cached.insert("k", bytes(2));
    assert!(world.read("k", &version).await.unwrap() == bytes(1));
    assert_eq!((world.outcome("stale"), world.presence("k", &version)), (1, None));
    jobs.has.store(false, Ordering::Relaxed);
    assert!(world.read("k", &version).await.unwrap() == bytes(1));
    while jobs.begun.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.asked(), 1);
}

#[tokio::test]
async fn one_that_does_not_say_what_it_has_is_sick() {
    let (world, jobs) = slow();
    jobs.is_sick.store(true, Ordering::Relaxed);
    for n in 0..5 {
        let key = n.to_string();
        let version = world.both(&key, n);
        assert!(world.read(&key, &version).await.unwrap() == bytes(n));
        world.found_out(&key, &version).await;
    }
    assert!(world.region.server.is_shut());
    // What is not asked for there is read ahead.
    let version = world.both("k", 1);
    assert!(world.regional.may_fetch_ahead("k", &version));
    assert_eq!(jobs.begun.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn what_may_not_be_read_is_not_fetched_there_either() {
    let (world, jobs) = slow();
    let version = world.both("k", 1);
    let denied = Fault::Fail(OriginError::Denied("AccessDenied".into()));
    world.wan.inject_once(Op::Get, denied);
    assert!(matches!(world.read("k", &version).await, Err(OriginError::Denied(_))));
    tokio::task::yield_now().await;
    assert_eq!((jobs.begun.load(Ordering::Relaxed), world.presence("k", &version)), (0, None));
}

#[tokio::test]
async fn what_it_fetches_in_a_second_it_is_asked_for_at_once() {
    let (world, jobs) = slow();
    world.region.cold.assume_rate(SIZE as u64);
    let version = world.both("k", 1);
    assert!(world.regional.may_fetch_ahead("k", &version));
    assert!(world.read("k", &version).await.unwrap() == bytes(1));
    assert_eq!((world.outcome("given"), jobs.begun.load(Ordering::Relaxed)), (1, 0));
}

/// It has begun to fetch it, perhaps: how far it is is asked before it is asked for bytes again.
#[tokio::test]
async fn one_that_is_late_with_what_should_have_come_at_once_is_slower_than_was_thought() {
    let (world, jobs) = slow();
    world.region.cold.assume_rate(SIZE as u64);
    let version = world.both("k", 1);
    world.region.was_late("k", &version);
    assert!(!world.region.late.has("k", Instant::now()));
    assert!(!world.regional.may_fetch_ahead("k", &version));
    assert!(world.read("k", &version).await.unwrap() == bytes(1));
    assert_eq!(world.asked(), 0);
    jobs.has.store(true, Ordering::Relaxed);
    jobs.ended.store(true, Ordering::Relaxed);
    assert!(matches!(world.found_out("k", &version).await, Presence::Present(_)));
    // With what it has it should not be late.
    world.region.was_late("k", &version);
    assert!(world.region.late.has("k", Instant::now()));
    assert!(world.regional.may_fetch_ahead("k", &version));
}
