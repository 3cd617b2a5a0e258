//! Files that are created over something that nobody knew of.

use std::sync::Arc;

use rustix::io::Errno;

use super::lab::{Bucket, Lab, Node};
use crate::blocking::MAY;
use crate::model::blocks::BLOCK;
use crate::origin::OriginError;
use crate::origin::faulty::{Fault, Gate, Op};
use crate::write::draft::Draft;

const OURS: [usize; 2] = [10, 3 * BLOCK as usize];

struct Stage {
    lab: Lab,
    bucket: Bucket,
    node: Node,
}

impl Stage {
    fn new() -> Self {
        let lab = Lab::new();
        let bucket = lab.bucket();
        let node = lab.node_on(bucket.faulty.clone());
        Self { lab, bucket, node }
    }

    fn create(&self, size: usize) -> Arc<Draft> {
        let draft = self.node.create("f");
        draft.write(MAY, 0, &vec![7; size]).unwrap();
        draft
    }

    async fn commit(&self, draft: &Arc<Draft>) -> Result<(), Errno> {
        let done = self.node.writer.commit(draft).await;
        assert_eq!(self.bucket.memory.open_uploads(), 0);
        done.map_err(|error| error.errno())
    }

    fn is_ours(&self, size: usize) -> bool {
        self.bucket.memory.bytes("f").unwrap() == vec![7; size]
    }
}

#[test]
fn what_was_there_before_the_open_is_replaced_whether_the_answer_is_early_or_late() {
    for (size, late) in OURS.into_iter().flat_map(|size| [(size, false), (size, true)]) {
        let stage = Stage::new();
        stage.lab.block_on(async {
            stage.bucket.memory.insert("f", "theirs");
            let gate = Gate::new();
            stage.bucket.faulty.inject_once(Op::Head, Fault::StallReply(gate.clone()));
            let draft = stage.create(size);
            stage.node.writer.inquire(&draft);
            gate.reached().await;
            if !late {
                gate.open();
                draft.learns_seen().await;
            }
            // Refused, it waits for the answer.
            let puts = stage.bucket.memory.received_bytes();
            let opens = async {
                while late && stage.bucket.memory.received_bytes() == puts {
                    tokio::task::yield_now().await;
                }
                gate.open();
            };
            let (done, ()) = tokio::join!(stage.commit(&draft), opens);
            done.unwrap();
            assert!(stage.is_ours(size));
        });
    }
}

#[test]
fn what_came_after_the_open_stays() {
    for size in OURS {
        let stage = Stage::new();
        stage.lab.block_on(async {
            let gate = Gate::new();
            stage.bucket.faulty.inject_once(Op::Head, Fault::StallReply(gate.clone()));
            let draft = stage.create(size);
            stage.node.writer.inquire(&draft);
            gate.reached().await;
            stage.bucket.memory.insert("f", "theirs");
            gate.open();
            assert_eq!(stage.commit(&draft).await, Err(Errno::STALE));
            assert_eq!(stage.bucket.memory.bytes("f").unwrap(), "theirs");
        });
    }
}

#[test]
fn without_an_answer_nothing_is_replaced() {
    let stage = Stage::new();
    stage.lab.block_on(async {
        stage.bucket.memory.insert("f", "theirs");
        let fault = Fault::Fail(OriginError::Unavailable("SlowDown".into()));
        stage.bucket.faulty.inject_once(Op::Head, fault);
        let draft = stage.create(10);
        stage.node.writer.inquire(&draft);
        assert!(!draft.learns_seen().await);
        assert_eq!(stage.commit(&draft).await, Err(Errno::STALE));
        assert_eq!(stage.bucket.memory.bytes("f").unwrap(), "theirs");
    });
}

#[test]
fn what_the_file_itself_stored_is_not_taken_for_another_ones() {
    let stage = Stage::new();
    stage.lab.block_on(async {
        let gate = Gate::new();
        stage.bucket.faulty.inject_once(Op::Head, Fault::StallReply(gate.clone()));
        let draft = stage.create(10);
        stage.node.writer.inquire(&draft);
        gate.reached().await;
        stage.commit(&draft).await.unwrap();
        gate.open();
        draft.learns_seen().await;
        draft.write(MAY, 10, &[7; 5]).unwrap();
        stage.commit(&draft).await.unwrap();
        assert!(stage.is_ours(15));
    });
}
