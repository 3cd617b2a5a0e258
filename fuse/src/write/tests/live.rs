//! Uploads that a dead process left, beside those of its successor under the same key.

use super::PART;
use super::lab::Lab;
use crate::blocking::MAY;
use crate::origin::OriginError;
use crate::origin::faulty::{Fault, Gate, Op};

#[test]
fn what_a_dead_process_began_is_aborted_and_what_this_one_begins_is_not() {
    let lab = Lab::new();
    let bucket = lab.bucket();
    let leftovers = lab.block_on(async {
        let node = lab.node_on(bucket.faulty.clone());
        let gate = Gate::new();
        bucket.faulty.inject_once(Op::Create, Fault::StallReply(gate.clone()));
        let draft = node.create("f");
        draft.write(MAY, 0, &[1; 3 * PART]).unwrap();
        let mut commit = Box::pin(node.writer.commit(&draft));
        tokio::select! {
            _ = &mut commit => panic!("it was answered"),
            () = gate.reached() => {}
        }
        let path = draft.path().to_owned();
        lab.kill(Some(&path), false, || drop(commit))
    });
    assert_eq!(bucket.memory.open_uploads(), 1);
    lab.block_on(async {
        let node = lab.node_on(bucket.faulty.clone());
        let draft = node.create("f");
        let passed = draft.write(MAY, 0, &[2; 3 * PART]).unwrap();
        node.writer.pass(&draft, passed).await;
        assert_eq!(bucket.memory.open_uploads(), 2);
        node.writer.work_off(&leftovers, None).await;
        assert_eq!(bucket.memory.open_uploads(), 1);
        bucket.faulty.inject_nth(Op::Create, 1, Fault::Fail(OriginError::TimedOut));
        node.writer.commit(&draft).await.unwrap();
        assert_eq!(bucket.memory.open_uploads(), 0);
        assert!(bucket.memory.bytes("f").unwrap() == [2; 3 * PART].as_slice());
    });
}
