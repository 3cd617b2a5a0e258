//! What the region is told to forget after changes at the origin.

use std::collections::BTreeSet;

use futures_util::FutureExt;

use super::*;
use crate::blocking::MAY;
use crate::cache::{CacheSettings, NodeCache};
use crate::engine::Engine;
use crate::engine::owner::Proc;
use crate::origin::faulty::Gate;
use crate::origin::{CopySource, PartKind, UploadBody, WriteIntent};

/// A log in memory, which is as late as a test has it.
#[derive(Default)]
struct MemoryLog {
    keys: Mutex<BTreeSet<Box<str>>>,
    /// Whoever notes something waits while this is locked.
    busy: tokio::sync::Mutex<()>,
}

#[async_trait]
impl EvictionLog for MemoryLog {
    async fn found(&self) -> Vec<(Box<str>, Box<str>)> {
        self.keys().into_iter().map(|key| ("b".into(), key.into())).collect()
    }

    async fn note(&self, bucket: &str, key: &str) {
        assert_eq!(bucket, "b");
        let _late = self.busy.lock().await;
        unpoisoned(self.keys.lock()).insert(key.into());
    }

    fn forget(&self, _: &str, keys: Vec<Box<str>>) {
        unpoisoned(self.keys.lock()).retain(|key| !keys.contains(key));
    }
}

impl MemoryLog {
    fn keys(&self) -> Vec<String> {
        unpoisoned(self.keys.lock()).iter().map(ToString::to_string).collect()
    }
}

impl World {
    fn logged(&self) -> Arc<MemoryLog> {
        let log = Arc::<MemoryLog>::default();
        self.log.set(log.clone()).ok().unwrap();
        log
    }

    async fn put(&self, key: &str) {
        self.regional.put(key, UploadBody::of("new"), &intent()).await.unwrap();
    }

    async fn remove(&self, key: &str) -> Result<(), OriginError> {
        self.regional.delete(key, &Condition::Always).await
    }

    fn failed(&self) -> u64 {
        self.region.metrics.region_evictions.with_label_values(&["failed"]).get()
    }

    fn pending(&self) -> i64 {
        self.region.metrics.region_evictions_pending.get()
    }
}

fn intent() -> WriteIntent {
    WriteIntent { condition: Condition::Always, writer: "w".into() }
}

/// It comes to nothing while others may go on.
async fn waits(future: &mut (impl Future + Unpin)) -> bool {
    for _ in 0..100 {
        if (&mut *future).now_or_never().is_some() {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

#[tokio::test]
async fn after_a_change_of_any_kind_the_region_forgets_the_key_and_all_go_in_one_list() {
    let world = world();
    let log = world.logged();
    for key in ["put", "uploaded", "from", "to", "removed", "other"] {
        world.both(key, 1);
    }
    world.put("put").await;
    let origin = &world.regional;
    let id = origin.create_upload("uploaded", "w", PartKind::Sent).await.unwrap();
    let part = origin.upload_part("uploaded", &id, 1, UploadBody::of("new")).await.unwrap();
    origin.complete_upload("uploaded", &id, &[part], &intent()).await.unwrap();
    let etag = world.origin.insert("from", bytes(2));
    let source = CopySource { key: "from".into(), etag, size: SIZE as u64 };
    origin.copy(&source, "to", &Condition::Always).await.unwrap();
    world.remove("removed").await.unwrap();
    let all = ["put", "removed", "to", "uploaded"];
    assert_eq!((log.keys(), world.pending()), (all.map(str::to_owned).to_vec(), 4));
    assert_eq!(world.told().await, [all]);
    assert_eq!((log.keys().len(), world.pending()), (0, 0));
    assert!(all.iter().all(|key| world.cached.bytes(key).is_none()));
    assert!(world.cached.bytes("from").is_some() && world.cached.bytes("other").is_some());
}

#[tokio::test]
async fn what_nobody_has_a_record_of_is_in_the_log_before_it_is_sent_and_the_rest_beside_it() {
    let world = world();
    let log = world.logged();
    for key in ["removed", "put"] {
        world.both(key, 1);
    }
    let busy = log.busy.lock().await;
    let mut removal = world.remove("removed").boxed();
    assert!(waits(&mut removal).await);
    assert!(world.origin.bytes("removed").is_some(), "it was sent before");
    // An empty object's writer has no record.
    let (key, write) = ("empty", intent());
    let mut empty = world.regional.put(key, UploadBody::empty(), &write);
    assert!(waits(&mut empty).await && world.origin.bytes(key).is_none());
    let mut put = world.put("put").boxed();
    assert!(waits(&mut put).await, "he is answered, and may forget, before the log has it");
    assert!(world.origin.bytes("put").unwrap() == "new", "it waits for the log");
    drop(busy);
    removal.await.unwrap();
    empty.await.unwrap();
    put.await;
    assert_eq!(log.keys(), ["empty", "put", "removed"]);
    // What is in the log waits for it no more.
    let _busy = log.busy.lock().await;
    assert!(world.remove("put").now_or_never().is_some());
}

/// As a disk that hangs.
#[tokio::test]
async fn a_log_that_takes_nothing_keeps_no_change_for_long() {
    let world = world();
    let log = world.logged();
    let _busy = log.busy.lock().await;
    timeout(Duration::from_secs(60), world.remove("k")).await.unwrap().unwrap();
    assert_eq!(world.told().await, [["k"]]);
}

#[tokio::test]
async fn a_region_that_hangs_keeps_no_change() {
    let world = world();
    world.put("k").await;
    let gate = Gate::new();
    world.edge.inject_once(Op::Delete, Fault::Stall(gate.clone()));
    let region = world.region.clone();
    let list = tokio::spawn(async move { region.send_list().await });
    gate.reached().await;
    world.put("k").await;
    world.remove("l").await.unwrap();
    assert!(!list.is_finished());
    gate.open();
    list.await.unwrap();
    // What was sent before the last change says nothing of it; its time has not come yet.
    assert_eq!(
        (world.told().await, world.pending()),
        (vec![vec!["k".into()], vec!["l".into()]], 1)
    );
}

#[tokio::test]
async fn what_fails_stays_in_the_log_and_keeps_nothing_from_being_read() {
    let world = world();
    let log = world.logged();
    world.put("k").await;
    let denied = OriginError::Denied("HTTP 403".into());
    world.edge.inject_once(Op::Delete, Fault::Fail(denied));
    assert!(world.told().await.is_empty());
    assert_eq!((world.failed(), world.pending(), log.keys()), (1, 1, vec!["k".to_owned()]));
    assert!(world.gives().await && world.shut() == 0);
    let told = async || {
        while world.told().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), told()).await.unwrap();
    assert_eq!((world.pending(), log.keys().len()), (0, 0));
}

#[tokio::test]
async fn a_region_that_is_left_alone_is_told_once_it_may_be_asked_again() {
    let world = world();
    let log = world.logged();
    // From here on it is sent in the background.
    assert!(world.region.evictions.rest());
    world.fails(5, &OriginError::TimedOut).await;
    assert_eq!(world.shut(), 1);
    world.put("k").await;
    assert!(world.told().await.is_empty());
    assert_eq!((world.failed(), log.keys()), (0, vec!["k".to_owned()]));
    // Who sends that sees for all whether it is there again.
    let told = async || {
        while unpoisoned(world.told.lock()).is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), told()).await.unwrap();
    assert_eq!((world.shut(), world.pending()), (0, 0));
}

#[tokio::test]
async fn what_the_region_cannot_have_it_need_not_forget() {
    let world = world();
    let log = world.logged();
    world.put("a//b").await;
    world.remove("a//b").await.unwrap();
    assert_eq!((world.told().await.len(), world.pending(), log.keys().len()), (0, 0, 0));
}

#[tokio::test]
async fn a_change_whose_answer_nobody_has_stays_in_the_log_after_the_first_list() {
    let world = world();
    let log = world.logged();
    let gate = Gate::new();
    world.wan.inject_once(Op::Delete, Fault::Stall(gate.clone()));
    let mut removal = world.remove("dropped").boxed();
    assert!(waits(&mut removal).await);
    drop(removal);
    let lost = Fault::LoseReply(OriginError::TimedOut);
    world.wan.inject_once(Op::Delete, lost);
    world.remove("lost").await.unwrap_err();
    world.wan.inject_once(Op::Delete, Fault::Fail(OriginError::Conflict));
    world.remove("another").await.unwrap_err();
    assert_eq!(world.told().await, [["another", "dropped", "lost"]]);
    assert_eq!(log.keys(), ["dropped", "lost"]);
}

/// Else who may only read could have it forget all.
#[tokio::test]
async fn what_the_origin_lets_nobody_change_the_region_keeps() {
    let world = world();
    let log = world.logged();
    let denied = Fault::Fail(OriginError::Denied("AccessDenied".into()));
    world.wan.inject_once(Op::Delete, denied);
    world.remove("k").await.unwrap_err();
    assert_eq!((world.told().await.len(), world.pending(), log.keys().len()), (0, 0, 0));
}

#[tokio::test]
async fn what_a_process_has_not_sent_the_next_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let engine = || {
        let metrics = Arc::new(Metrics::new().unwrap());
        let settings = CacheSettings::one(dir.path(), u64::MAX, 0);
        let cache = NodeCache::open(MAY, &settings, metrics.clone()).unwrap();
        let runtime = tokio::runtime::Handle::current();
        Engine::new(MAY, cache, 1 << 21, metrics, runtime, 1 << 20, Arc::new(Proc)).unwrap()
    };
    let first = engine();
    let world = world();
    world.log.set(first.region_evictions.clone()).ok().unwrap();
    world.put("k").await;
    world.remove("l").await.unwrap();
    first.cache.close(MAY);
    drop((world, first));
    let second = engine();
    let world = world_at(ProofScope::Version, Arc::default());
    world.log.set(second.region_evictions.clone()).ok().unwrap();
    let found = second.region_evictions.found().await;
    world.region.take_over(found.into_iter().map(|(_, key)| key).collect());
    assert_eq!(world.told().await, [["k", "l"]]);
    let is_over = async || {
        while !second.region_evictions.found().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), is_over()).await.unwrap();
    second.cache.close(MAY);
}
