//! Random sequences of operations against the reference model.

use std::sync::Arc;

use proptest::test_runner::{Config, TestRunner};
use weir_fuse::model::ttl::MetadataTtl;
use weir_fuse::origin::memory::MemoryOrigin;
use weir_tests::model::{Interpreter, MountFiles, Op, SessionFiles, ops};
use weir_tests::mount::cache_dir;
use weir_tests::node::{Node, NodeSettings};

/// Small, so that versions are evicted all the time; always asking, so that what others change
/// shows at once.
const TIGHT: NodeSettings = NodeSettings {
    cache_max: 2 << 20,
    memory: 4 << 20,
    read_part: 256 << 10,
    ttl: MetadataTtl::Minimal,
};

fn runner(cases: u32) -> TestRunner {
    // WEIR_PROPTEST_CASES makes it look longer.
    let given = std::env::var("WEIR_PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    let cases = given.unwrap_or(cases);
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

#[test]
fn sessions_behave_as_the_model_says() {
    let check = |ops: Vec<Op>| {
        let cache = cache_dir();
        let memory = Arc::new(MemoryOrigin::new("bucket"));
        for life in ops.split(|op| matches!(op, Op::Restart)) {
            let node = Node::new(cache.path(), memory.clone(), TIGHT);
            let mut model = Interpreter::new(SessionFiles::new(node.session()), &*memory);
            life.iter().for_each(|op| model.step(op));
            model.finish();
            node.close();
        }
    };
    let run = |ops: Vec<Op>| {
        check(ops);
        Ok(())
    };
    runner(96).run(&ops(60), run).unwrap();
}

#[test]
fn mounts_behave_as_the_model_says() {
    let run = |ops: Vec<Op>| {
        let cache = cache_dir();
        let place = tempfile::tempdir().unwrap();
        let memory = Arc::new(MemoryOrigin::new("bucket"));
        for life in ops.split(|op| matches!(op, Op::Restart)) {
            let node = Node::new(cache.path(), memory.clone(), TIGHT);
            let mount = node.mount(&place.path().join("mnt"));
            let files = MountFiles::new(place.path().join("mnt"));
            let mut model = Interpreter::new(files, &*memory);
            life.iter().for_each(|op| model.step(op));
            model.finish();
            drop(mount);
            node.close();
        }
        Ok(())
    };
    runner(24).run(&ops(50), run).unwrap();
}
