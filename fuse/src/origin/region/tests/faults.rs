//! What a region, or an origin, does wrong.

use tokio::net::TcpListener;

use super::*;

/// What a node remembers may be older than what the region has.
#[tokio::test]
async fn a_version_that_the_origin_does_not_have_any_more_evicts_nothing_of_the_region() {
    let world = world();
    let old = world.both("k", 1);
    assert!(world.read("k", &old).await.unwrap() == bytes(1));
    let new = world.both("k", 2);
    assert!(matches!(world.read("k", &old).await, Err(OriginError::Changed)));
    assert!(world.read("k", &new).await.unwrap() == bytes(2));
    assert_eq!((world.outcome("stale"), world.told().await.len()), (1, 0));
}

#[tokio::test]
async fn what_comes_after_the_last_byte_of_the_region_is_of_no_interest() {
    let world = world();
    let version = world.both("k", 1);
    *unpoisoned(world.manner.lock()) = Manner::WithAnErrorBehind;
    world.regional.allows("k", &version).await.unwrap();
    world.wan.fail_all(Some(OriginError::TimedOut));
    assert!(world.read("k", &version).await.unwrap() == bytes(1));
    assert_eq!((world.outcome("given"), world.outcome("failed")), (1, 0));
}

#[tokio::test]
async fn what_the_origin_refuses_within_a_body_the_region_gives_no_more_of() {
    let world = world();
    let version = world.both("k", 1);
    let denied = || Fault::Fail(OriginError::Denied("AccessDenied".into()));
    world.regional.allows("k", &version).await.unwrap();
    world.edge.inject_once(Op::Get, Fault::Truncate(1));
    for _ in 0..2 {
        world.wan.inject_once(Op::Get, denied());
        assert!(matches!(world.read("k", &version).await, Err(OriginError::Denied(_))));
    }
}

#[tokio::test]
async fn a_body_of_the_region_that_trickles_is_the_origins_from_there_on() {
    let world = world();
    let version = world.both("k", 1);
    *unpoisoned(world.manner.lock()) = Manner::InTrickles;
    let read = timeout(Duration::from_secs(60), world.read("k", &version));
    assert!(read.await.unwrap().unwrap() == bytes(1));
    assert_eq!(world.outcome("failed"), 1);
    assert!(world.read("k", &version).await.unwrap() == bytes(1));
    assert_eq!(world.asked(), 1, "it is asked for the same again");
}

#[tokio::test]
async fn what_the_region_answers_of_one_bucket_says_nothing_of_others() {
    let code = || "HTTP".to_owned();
    for (times, error) in [
        (1, OriginError::Denied(code())),
        (1, OriginError::NoSuchBucket),
        (5, OriginError::NotS3(code())),
        (5, OriginError::BadBody(code())),
        (5, OriginError::Unavailable(code())),
    ] {
        let server = Arc::<Breaker>::default();
        let [one, two] = [(); 2].map(|()| world_at(ProofScope::Version, server.clone()));
        one.fails(times, &error).await;
        assert!(!one.gives().await && one.shut() == 1, "{error}");
        assert!(two.gives().await && !server.is_shut(), "{error}");
        let metrics = one.region.metrics.clone();
        drop(one);
        assert_eq!(metrics.regions_shut.get(), 0, "nobody asks it for the bucket any more");
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_left_alone_for_all_buckets() {
    for error in [OriginError::Unreachable("refused".into()), OriginError::TimedOut] {
        let server = Arc::<Breaker>::default();
        let [one, two] = [(); 2].map(|()| world_at(ProofScope::Version, server.clone()));
        one.fails(5, &error).await;
        assert!(server.is_shut() && !two.gives().await, "{error}");
        assert_eq!((one.asked(), one.shut(), two.asked()), (5, 1, 0));
        assert!(!one.region.breaker.is_shut(), "{error}");
    }
}

#[tokio::test]
async fn a_region_is_asked_what_it_is_once_a_bucket_and_for_all_of_them_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let metrics = Arc::new(Metrics::new().unwrap());
    let regions = Arc::new(Regions::new(vec![scripted::settings(RegionKind::S3, url)], metrics));
    let of = |bucket: &'static str| {
        let regions = regions.clone();
        tokio::spawn(async move { regions.of(bucket).await.unwrap().remove(0) })
    };
    let all = [of("a"), of("a"), of("b")];
    // None is answered.
    let asked = [listener.accept().await.unwrap(), listener.accept().await.unwrap()];
    assert!(!all.iter().any(tokio::task::JoinHandle::is_finished), "one waits for another");
    drop((listener, asked));
    let [first, same, other] = all.map(async |region| region.await.unwrap());
    let (first, same, other) = (first.await, same.await, other.await);
    assert!(Arc::ptr_eq(&first, &same) && !Arc::ptr_eq(&first, &other));
    drop((first, same, other));
    regions.of("c").await.unwrap();
    assert_eq!(regions.buckets(), 1, "nobody uses the others");
}
