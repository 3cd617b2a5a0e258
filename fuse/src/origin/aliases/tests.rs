use super::*;
use crate::origin::faulty::{Fault, Faulty, Gate, Op};
use crate::origin::memory::{Behaviour, MemoryOrigin};

const FROM: &str = "dir/from";
const COPY: &str = "dir/copy";
const BYTES: &[u8] = b"bytes of two parts";

struct World {
    memory: Arc<MemoryOrigin>,
    faulty: Arc<Faulty>,
    origin: Aliases,
    /// The tag that listings tell of the copy, and its own.
    listed: ETag,
    own: ETag,
}

fn write(condition: Condition) -> WriteIntent {
    WriteIntent { condition, writer: "w".into() }
}

fn version(etag: &ETag, bytes: &[u8]) -> Version {
    Version { etag: etag.clone(), size: bytes.len() as u64 }
}

fn matches(etag: &ETag) -> Condition {
    Condition::Matches(etag.clone())
}

/// An object of two parts, and a copy that the server made of it.
async fn world() -> World {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    memory.behave(Behaviour {
        copies_listed_otherwise: true,
        ..Behaviour::default().with_part_min(1)
    });
    let id = memory.create_upload(FROM, "w", PartKind::Sent).await.unwrap();
    let mut parts = Vec::new();
    for (number, bytes) in [(1, &BYTES[..4]), (2, &BYTES[4..])] {
        let body = UploadBody::of(bytes);
        parts.push(memory.upload_part(FROM, &id, number, body).await.unwrap());
    }
    let always = write(Condition::Always);
    let stored = memory.complete_upload(FROM, &id, &parts, &always).await.unwrap();
    let listed = stored.etag.unwrap();
    let source = CopySource { key: FROM.into(), etag: listed.clone(), size: BYTES.len() as u64 };
    let own = memory.copy(&source, COPY, &Condition::Always).await.unwrap().etag.unwrap();
    assert_ne!(listed, own);
    let faulty = Arc::new(Faulty::new(memory.clone()));
    // Nothing takes turns here.
    let origin = Aliases { tick: Duration::ZERO, ..Aliases::new(faulty.clone()) };
    World { memory, faulty, origin, listed, own }
}

impl World {
    async fn read(&self, etag: &ETag) -> Result<Vec<u8>, OriginError> {
        use futures_util::TryStreamExt;
        let body = self.origin.get(COPY, &version(etag, BYTES), 0..BYTES.len() as u64).await?;
        assert_eq!(body.etag, *etag);
        Ok(body.pieces.try_collect::<Vec<_>>().await?.concat())
    }

    /// What listings show of the copy.
    async fn shown(&self) -> ETag {
        let request =
            ListRequest { prefix: "dir/".into(), delimited: true, token: None, max_keys: 1000 };
        let page = self.origin.list(&request).await.unwrap();
        let (_, info) = page.objects.into_iter().find(|(key, _)| key == COPY).unwrap();
        info.etag.unwrap()
    }

    fn source(&self) -> CopySource {
        CopySource { key: COPY.into(), etag: self.listed.clone(), size: BYTES.len() as u64 }
    }
}

#[tokio::test]
async fn a_version_is_read_by_the_tag_of_its_listing_and_listed_by_its_own_from_then_on() {
    let world = world().await;
    assert_eq!(world.shown().await, world.listed);
    for _ in 0..2 {
        assert_eq!(world.read(&world.listed).await.unwrap(), BYTES);
        assert_eq!(world.read(&world.own).await.unwrap(), BYTES);
        assert_eq!(world.shown().await, world.own);
    }
    // Once it is known, a read is one request.
    world.faulty.inject_nth(Op::Get, 2, Fault::Fail(OriginError::TimedOut));
    world.read(&world.listed).await.unwrap();
    assert!(matches!(world.read(&world.listed).await, Err(OriginError::TimedOut)));
}

#[tokio::test]
async fn a_version_is_changed_copied_and_removed_by_the_tag_of_its_listing() {
    for learnt in [false, true] {
        let stage = async || {
            let world = world().await;
            if learnt {
                world.read(&world.listed).await.unwrap();
            }
            world
        };
        let world = stage().await;
        let over = write(matches(&world.listed));
        world.origin.put(COPY, UploadBody::of("new"), &over).await.unwrap();
        // Another version has no alias.
        let again = world.origin.put(COPY, UploadBody::of("x"), &over).await;
        assert!(matches!(again, Err(OriginError::Conflict)), "{again:?}");
        assert!(matches!(world.read(&world.listed).await, Err(OriginError::Changed)));

        let world = stage().await;
        let id = world.origin.create_upload(COPY, "w", PartKind::Mixed).await.unwrap();
        let part = world.origin.copy_part(&world.source(), 0..5, COPY, &id, 1).await.unwrap();
        let over = write(matches(&world.listed));
        world.origin.complete_upload(COPY, &id, &[part], &over).await.unwrap();
        assert_eq!(world.memory.bytes(COPY).unwrap(), &BYTES[..5]);

        let world = stage().await;
        world.origin.copy(&world.source(), "dir/to", &Condition::Absent).await.unwrap();
        assert_eq!(world.memory.bytes("dir/to").unwrap(), BYTES);
        world.origin.delete(COPY, &matches(&world.listed)).await.unwrap();
        assert!(world.memory.bytes(COPY).is_none());

        // Source and target at once.
        let world = stage().await;
        let from = world.memory.insert("dir/other", "other");
        let other = CopySource { key: "dir/other".into(), etag: from, size: 5 };
        world.origin.copy(&other, COPY, &matches(&world.listed)).await.unwrap();
        assert_eq!(world.memory.bytes(COPY).unwrap(), "other");
    }
}

#[tokio::test]
async fn a_version_that_was_replaced_has_changed_whatever_it_was_called() {
    for learnt in [false, true] {
        let world = world().await;
        if learnt {
            world.read(&world.listed).await.unwrap();
        }
        let new = world.memory.insert(COPY, "of somebody else's");
        assert_eq!(world.shown().await, new);
        assert!(matches!(world.read(&world.listed).await, Err(OriginError::Changed)));
        let over = write(matches(&world.listed));
        let lost = world.origin.put(COPY, UploadBody::of("x"), &over).await;
        assert!(matches!(lost, Err(OriginError::Conflict)), "{lost:?}");
        world.memory.remove(COPY);
        assert!(matches!(world.read(&world.listed).await, Err(OriginError::Changed)));
    }
}

/// Whoever writes two versions in turns could be listed with the one between two looks at the
/// other; and those of one second cannot be told apart before it is over.
#[tokio::test]
async fn versions_that_take_turns_are_no_aliases_of_each_other() {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    memory.behave(Behaviour { times_in_seconds: true, ..Behaviour::default() });
    let faulty = Arc::new(Faulty::new(memory.clone()));
    let origin = Arc::new(Aliases::new(faulty.clone()));
    let first = memory.insert("k", "first");
    memory.insert("k", "other");
    let gates = [Gate::new(), Gate::new(), Gate::new(), Gate::new()];
    for (op, gate) in [Op::List, Op::Head, Op::List, Op::Head].into_iter().zip(&gates) {
        faulty.inject_once(op, Fault::Stall(gate.clone()));
    }
    let asked = {
        let (origin, first) = (origin.clone(), version(&first, b"first"));
        tokio::spawn(async move { origin.get("k", &first, 0..5).await.map(|body| body.etag) })
    };
    for (gate, bytes) in gates.iter().zip(["first", "other", "first", "other"]) {
        gate.reached().await;
        memory.insert("k", bytes);
        gate.open();
    }
    let asked = asked.await.unwrap();
    assert!(matches!(asked, Err(OriginError::Changed)), "{asked:?}");
}

/// Listings of OpenStack Swift come to know of a change some time after it.
#[tokio::test]
async fn a_listing_that_is_late_makes_no_lost_update() {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    let origin = Aliases { tick: Duration::ZERO, ..Aliases::new(memory.clone()) };
    let old = memory.insert("k", "old");
    tokio::time::sleep(EXACT).await;
    for new in ["new", "of another size"] {
        memory.insert_unlisted("k", new);
        let lost = origin.put("k", UploadBody::of("x"), &write(matches(&old))).await;
        assert!(matches!(lost, Err(OriginError::Conflict)), "{lost:?}");
        assert!(matches!(
            origin.get("k", &version(&old, b"old"), 0..3).await,
            Err(OriginError::Changed)
        ));
        assert_eq!(memory.bytes("k").unwrap(), new);
    }
}

#[tokio::test]
async fn what_is_refused_on_an_endpoint_of_one_tag_costs_one_listing() {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    let faulty = Arc::new(Faulty::new(memory.clone()));
    let origin = Aliases::new(faulty.clone());
    let old = memory.insert("k", "old");
    memory.insert("k", "new");
    faulty.inject_nth(Op::List, 2, Fault::Fail(OriginError::TimedOut));
    faulty.inject_nth(Op::Head, 1, Fault::Fail(OriginError::TimedOut));
    assert!(matches!(
        origin.get("k", &version(&old, b"old"), 0..3).await,
        Err(OriginError::Changed)
    ));
    let second = ListRequest { prefix: "k".into(), delimited: false, token: None, max_keys: 1 };
    assert!(matches!(origin.list(&second).await, Err(OriginError::TimedOut)));
    assert!(matches!(origin.head("k").await, Err(OriginError::TimedOut)));
}
