use super::*;
use crate::origin::memory::MemoryOrigin;

fn pair() -> (Arc<MemoryOrigin>, Arc<Faulty>) {
    let memory = Arc::new(MemoryOrigin::new("b"));
    (memory.clone(), Arc::new(Faulty::new(memory)))
}

async fn put(faulty: &Faulty, key: &str) -> Result<Stored, OriginError> {
    let write = WriteIntent { condition: Condition::Always, writer: "w".into() };
    faulty.put(key, UploadBody::of(vec![1]), &write).await
}

#[tokio::test]
async fn the_nth_request_of_its_kind_is_hit_and_no_other() {
    let (memory, faulty) = pair();
    faulty.inject_nth(Op::Put, 3, Fault::LoseReply(OriginError::TimedOut));
    faulty.inject_once(Op::Put, Fault::Fail(OriginError::TimedOut));
    assert!(put(&faulty, "a").await.is_err());
    faulty.head("a").await.unwrap_err();
    put(&faulty, "b").await.unwrap();
    assert!(put(&faulty, "c").await.is_err());
    put(&faulty, "d").await.unwrap();
    let there = |key| memory.bytes(key).is_some();
    assert_eq!(["a", "b", "c", "d"].map(there), [false, true, true, true]);
}

#[tokio::test]
async fn a_request_that_stalls_has_no_effect_before_its_gate_opens_and_none_when_dropped() {
    let (memory, faulty) = pair();
    let gate = Gate::new();
    faulty.inject_once(Op::Put, Fault::Stall(gate.clone()));
    let stalled = put(&faulty, "kept");
    tokio::pin!(stalled);
    tokio::select! {
        _ = &mut stalled => panic!("did not stall"),
        () = gate.reached() => {}
    }
    assert!(memory.bytes("kept").is_none());
    gate.open();
    stalled.await.unwrap();
    assert!(memory.bytes("kept").is_some());
    let closed = Gate::new();
    faulty.inject_once(Op::Put, Fault::Stall(closed.clone()));
    tokio::select! {
        _ = put(&faulty, "dropped") => panic!("did not stall"),
        () = closed.reached() => {}
    }
    closed.open();
    put(&faulty, "later").await.unwrap();
    assert!(memory.bytes("dropped").is_none());
}

#[tokio::test]
async fn a_reply_that_stalls_comes_after_the_effect() {
    let (memory, faulty) = pair();
    let gate = Gate::new();
    faulty.inject_once(Op::Put, Fault::StallReply(gate.clone()));
    tokio::select! {
        _ = put(&faulty, "k") => panic!("did not stall"),
        () = gate.reached() => {}
    }
    assert!(memory.bytes("k").is_some());
}
