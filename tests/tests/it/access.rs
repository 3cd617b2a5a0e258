//! Bytes are shared by all who use a node; permission is not.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use weir_fuse::engine::Session;
use weir_fuse::engine::open::OpenRequest;
use weir_fuse::model::ttl::MetadataTtl;
use weir_fuse::namespace::AccessSettings;
use weir_fuse::origin::OriginError;
use weir_fuse::origin::faulty::{Fault, Faulty, Op};
use weir_fuse::origin::memory::MemoryOrigin;
use weir_tests::mount::cache_dir;
use weir_tests::node::{Node, NodeSettings, read};
use weir_tests::{eventually, runtime};

/// Opens a file, and closes it again.
fn open(session: &Arc<Session>, name: &str) -> Result<(), Errno> {
    let shown = runtime().block_on(session.lookup(1, name))?;
    let opened = runtime().block_on(session.open(shown.attr.ino, &OpenRequest::default()))?;
    runtime().block_on(session.release(opened.fh));
    Ok(())
}

fn someone(node: &Node, identity: &str, revocable: bool) -> (Arc<Session>, Arc<Faulty>) {
    let origin = Arc::new(Faulty::new(node.memory.clone()));
    let access = AccessSettings {
        identity: identity.into(),
        each_object: revocable,
        ..AccessSettings::default()
    };
    (node.session_of(origin.clone(), access), origin)
}

fn denied() -> Fault {
    Fault::Fail(OriginError::Denied("AccessDenied".into()))
}

#[test]
fn what_others_brought_is_shown_only_to_those_who_may_read_it() {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    memory.insert("f", vec![7; 100_000]);
    let cache = cache_dir();
    let node = Node::new(cache.path(), memory, NodeSettings::default());
    let fetched = || node.engine.metrics.fetched_bytes.get();
    let (one, one_origin) = someone(&node, "one", false);
    open(&one, "f").unwrap();
    eventually("it is cached", || fetched() == 100_000);
    // Alone with its bucket: what is here was brought with its own permission.
    one_origin.inject_once(Op::Get, denied());
    open(&one, "f").unwrap();

    let (two, two_origin) = someone(&node, "two", false);
    two_origin.inject_once(Op::Get, denied());
    assert_eq!(open(&two, "f"), Err(Errno::ACCESS));
    open(&two, "f").unwrap();
    two_origin.inject_once(Op::Get, denied());
    open(&two, "f").unwrap();
    // Now the first cannot know any more who brought what.
    assert_eq!(open(&one, "f"), Err(Errno::ACCESS));
    open(&one, "f").unwrap();
    assert_eq!(fetched(), 100_000);
}

#[test]
fn a_permission_that_is_taken_away_ends_with_the_lifetime_of_metadata() {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    memory.insert("f", vec![7; 100_000]);
    let cache = cache_dir();
    let ttl = MetadataTtl::For(Duration::from_millis(300));
    let node = Node::new(cache.path(), memory, NodeSettings { ttl, ..NodeSettings::default() });
    let (pod, origin) = someone(&node, "pod", true);
    open(&pod, "f").unwrap();
    origin.inject_once(Op::Get, denied());
    eventually("it is asked again, and refused", || open(&pod, "f") == Err(Errno::ACCESS));
    open(&pod, "f").unwrap();
    // An origin that does not answer takes nothing away.
    std::thread::sleep(Duration::from_millis(400));
    origin.fail_all(Some(OriginError::Unreachable("gone".into())));
    open(&pod, "f").unwrap();
}

#[test]
fn who_is_told_of_an_object_may_not_read_it_for_that() {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    memory.insert("f", vec![7; 100_000]);
    memory.insert("empty", vec![]);
    let cache = cache_dir();
    let node = Node::new(cache.path(), memory, NodeSettings::default());
    let (one, _) = someone(&node, "one", false);
    open(&one, "f").unwrap();
    // It answers every HEAD.
    let (two, two_origin) = someone(&node, "two", false);
    for _ in 0..3 {
        two_origin.inject_once(Op::Get, denied());
        assert_eq!(open(&two, "f"), Err(Errno::ACCESS));
    }
    assert_eq!(node.engine.metrics.fetched_bytes.get(), 100_000);
    // Of nothing no byte can be asked for.
    two_origin.inject_once(Op::Get, denied());
    open(&two, "empty").unwrap();
    two_origin.forget_faults();
    let (three, three_origin) = someone(&node, "three", false);
    runtime().block_on(three.lookup(1, "empty")).unwrap();
    three_origin.inject_once(Op::Head, denied());
    assert_eq!(open(&three, "empty"), Err(Errno::ACCESS));
}

#[test]
fn a_permission_for_a_version_shows_no_version_before() {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    memory.insert("f", vec![7; 100_000]);
    let cache = cache_dir();
    let node = Node::new(cache.path(), memory.clone(), NodeSettings::default());
    let (one, _) = someone(&node, "one", false);
    open(&one, "f").unwrap();
    let (two, _) = someone(&node, "two", false);
    let before = runtime().block_on(two.lookup(1, "f")).unwrap().attr.ino;
    memory.insert("f", vec![8; 100_000]);
    let open = |ino| runtime().block_on(two.open(ino, &OpenRequest::default())).map(|file| file.fh);
    assert_eq!(open(before), Err(Errno::STALE));
    // What is not shown any more is not shown to a second question, either.
    assert_eq!(open(before), Err(Errno::STALE));
    let after = runtime().block_on(two.lookup(1, "f")).unwrap().attr.ino;
    assert_ne!(before, after);
    assert_eq!(read(&two, "f"), vec![8; 100_000]);
}
