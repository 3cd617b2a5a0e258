//! What a store of a stored file sends: what changed, and no more than S3's limits ask for.

use std::io::Read;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::lab::{Bucket, Lab, Node};
use crate::blocking::MAY;
use crate::buffers::Buffers;
use crate::model::blocks::BLOCK;
use crate::model::key::DirPrefix;
use crate::origin::conditional::{Conditional, MemoryVerdicts};
use crate::origin::faulty::{Fault, Op};
use crate::origin::memory::{Behaviour, Obedience};
use crate::origin::uploads::MemoryUploads;
use crate::origin::{ConditionKind, OriginError};
use crate::write::WriteError;
use crate::write::draft::Draft;

/// A file, and what it is to hold.
struct Twin {
    node: Node,
    draft: Arc<Draft>,
    bytes: Vec<u8>,
    on: Handle,
    received: u64,
}

impl Twin {
    fn new(lab: &Lab, bucket: &Bucket) -> Self {
        let verdicts = Arc::new(MemoryVerdicts::default());
        let uploads = Arc::new(MemoryUploads::default());
        let origin = Conditional::new(bucket.faulty.clone(), &DirPrefix::root(), verdicts, uploads);
        let node = lab.node_on(Arc::new(origin));
        let draft = node.open(node.names.root(), "f").unwrap();
        Self { node, draft, bytes: Vec::new(), on: Handle::current(), received: 0 }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset as usize + data.len();
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[offset as usize..end].copy_from_slice(data);
        let passed = self.draft.write(MAY, offset, data).unwrap();
        let (writer, draft) = (self.node.writer.clone(), self.draft.clone());
        self.on.block_on(async move { writer.pass(&draft, passed).await });
    }

    fn truncate(&mut self, size: u64) {
        self.bytes.resize(size as usize, 0);
        self.draft.truncate(MAY, size).unwrap();
    }

    fn commit(&self) -> Result<(), WriteError> {
        let (writer, draft) = (self.node.writer.clone(), self.draft.clone());
        self.on.block_on(async move { writer.commit(&draft).await })
    }

    /// Stores it; how many bytes were sent since the last time.
    fn store(&mut self, bucket: &Bucket) -> u64 {
        self.commit().unwrap();
        assert_eq!(bucket.memory.open_uploads(), 0);
        assert!(bucket.memory.bytes("f").unwrap() == self.bytes);
        let received = bucket.memory.received_bytes();
        received - std::mem::replace(&mut self.received, received)
    }

    /// Closes it, and sees what its cached version holds.
    fn finish(self) {
        let (writer, draft) = (self.node.writer.clone(), self.draft.clone());
        assert!(self.on.block_on(async move { writer.finish(&draft).await }).is_none());
        let key = self.node.names.version_key(&self.draft.node).unwrap();
        let version = self.node.names.cache.acquire(MAY, &key, &[]);
        let right = version.check(MAY, &Buffers::new(0), &version.held_blocks(), |_| ());
        assert!(version.is_complete() && right);
        let mut held = Vec::new();
        version.open_for_passthrough(MAY).unwrap().read_to_end(&mut held).unwrap();
        assert!(held == self.bytes);
    }
}

/// The endpoint is asked first what it obeys, by some small bodies.
fn assert_near(sent: u64, bytes: u64) {
    assert!((bytes..bytes + 100).contains(&sent), "{sent} bytes sent instead of {bytes}");
}

fn random_bytes(random: &mut StdRng, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    random.fill_bytes(&mut bytes);
    bytes
}

#[test]
fn a_log_that_is_synced_again_and_again_sends_little_more_than_itself() {
    let lab = Lab::new();
    let _within = lab.enter();
    for step in [BLOCK / 3, BLOCK] {
        let bucket = lab.bucket();
        let mut log = Twin::new(&lab, &bucket);
        let mut random = StdRng::seed_from_u64(step);
        let size = 20 * BLOCK;
        let mut sent = 0;
        while (log.bytes.len() as u64) < size {
            let record = random_bytes(&mut random, step);
            log.write(log.bytes.len() as u64, &record);
            sent += log.store(&bucket);
        }
        assert!(sent * 10 <= size * 13, "{step}: {sent} bytes sent of {size}");
        log.finish();
    }
}

#[test]
fn a_change_within_sends_a_part() {
    let lab = Lab::new();
    let _within = lab.enter();
    let bucket = lab.bucket();
    let mut file = Twin::new(&lab, &bucket);
    let mut random = StdRng::seed_from_u64(1);
    let bytes = random_bytes(&mut random, 20 * BLOCK + 77);
    file.write(0, &bytes);
    assert_near(file.store(&bucket), bytes.len() as u64);
    file.write(7 * BLOCK + 5, b"changed");
    assert_near(file.store(&bucket), BLOCK);
    file.truncate(9 * BLOCK);
    assert_near(file.store(&bucket), 0);
    file.truncate(9 * BLOCK + 100);
    assert_near(file.store(&bucket), 100);
    assert_near(file.store(&bucket), 0);
    file.truncate(BLOCK - 1);
    assert_near(file.store(&bucket), BLOCK - 1);
    file.finish();
}

#[test]
fn whatever_changes_and_whatever_the_endpoint_makes_of_conditions_the_bytes_are_right() {
    use ConditionKind as Kind;
    let lab = Lab::new();
    let _within = lab.enter();
    let strict = Behaviour::default().with_part_min(BLOCK);
    let twins = [
        strict.clone(),
        strict.clone().with([Kind::CopyPartSource], Obedience::Ignored),
        strict.clone().with([Kind::CopyPartSource], Obedience::Refused501),
        strict.clone().with([Kind::CompleteMatches, Kind::CompleteAbsent], Obedience::Ignored),
        strict.clone().with([Kind::CopyPartSource, Kind::CompleteMatches], Obedience::Ignored),
        Behaviour { every_part_named: true, ..strict },
    ];
    for (number, behaviour) in twins.into_iter().enumerate() {
        let mut random = StdRng::seed_from_u64(number as u64);
        let bucket = lab.bucket();
        bucket.memory.behave(behaviour);
        let mut file = Twin::new(&lab, &bucket);
        for _ in 0..60 {
            let size = file.bytes.len() as u64;
            match random.random_range(0..10) {
                0..4 => {
                    let record = random_bytes(&mut random, BLOCK + 9);
                    file.write(size, &record);
                }
                4..6 => {
                    let offset = random.random_range(0..=size);
                    let len = random.random_range(1..BLOCK);
                    let change = random_bytes(&mut random, len);
                    file.write(offset, &change);
                }
                6 => file.truncate(random.random_range(size / 2..=size + BLOCK)),
                _ => {
                    file.store(&bucket);
                }
            }
        }
        file.store(&bucket);
        file.finish();
    }
}

#[test]
fn an_endpoint_that_copies_nothing_gets_every_byte() {
    let lab = Lab::new();
    let _within = lab.enter();
    let bucket = lab.bucket();
    let mut file = Twin::new(&lab, &bucket);
    file.write(0, &[1; 3 * BLOCK as usize]);
    file.store(&bucket);
    // What it makes of conditions is known after this.
    file.write(3 * BLOCK, &[2; 10]);
    assert_near(file.store(&bucket), 10);
    let refusal = OriginError::Invalid("NotImplemented".into());
    bucket.faulty.inject_once(Op::CopyPart, Fault::Fail(refusal));
    file.write(3 * BLOCK + 10, &[3; 10]);
    assert_eq!(file.store(&bucket), 3 * BLOCK + 20);
    // It is not asked again.
    file.write(3 * BLOCK + 20, &[4; 10]);
    assert_eq!(file.store(&bucket), 3 * BLOCK + 30);
}

#[test]
fn what_another_version_took_the_place_of_is_not_mixed_with_it() {
    let lab = Lab::new();
    let _within = lab.enter();
    for gone in [false, true] {
        let bucket = lab.bucket();
        let mut file = Twin::new(&lab, &bucket);
        file.write(0, &[1; 3 * BLOCK as usize]);
        file.store(&bucket);
        match gone {
            true => bucket.memory.remove("f"),
            false => drop(bucket.memory.insert("f", vec![9; 4 * BLOCK as usize])),
        }
        file.write(3 * BLOCK, &[2; 10]);
        assert_eq!(file.commit().unwrap_err().errno(), Errno::STALE);
        assert_eq!(bucket.memory.bytes("f").is_none(), gone);
        assert_eq!(bucket.memory.open_uploads(), 0);
    }
}
