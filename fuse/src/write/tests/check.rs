//! What must hold after an order.

use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;

use super::acts::pattern;
use super::case::{Bench, LAST, Seat};
use super::model::{AWAY, End, FILE, Outcome, Step};
use super::poll::drive;
use super::seen;
use crate::blocking::MAY;
use crate::namespace::{LookupError, Node};

impl Bench<'_> {
    /// Ends all and compares it with what the model allows. `ra`: where the first operation
    /// went to its end.
    pub(super) fn check(self, mut allowed: Vec<End>, ra: Option<Outcome>, rb: Outcome) {
        self.finish();
        self.check_nothing_is_left();
        let (bucket, lost) = (self.bucket.objects(), self.lab.take_lost());
        for (world, _, _) in &mut allowed {
            for node in 0..self.seats.len() {
                world.step(node, &Step::Finish).unwrap();
                world.step(node, &Step::End).unwrap();
            }
        }
        let fits = |(world, a, b): &End| {
            let (alone, weaves) = (self.case.is_alone(), self.case.may_weave());
            let fits = seen::fits(world, &bucket, &lost, alone, weaves);
            fits && *b == rb && ra.is_none_or(|ra| ra == *a)
        };
        let whole = self.case.are_renames_apart() && seen::is_whole(&self.world, &bucket);
        let found = whole || allowed.iter().any(fits);
        let what = || {
            let ends = allowed
                .iter()
                .map(|(world, a, b)| seen::told(&world.bucket, &world.lost, (Some(*a), *b)));
            format!(
                "seen is\n  {}\nallowed is\n  {}\nrequests: {:?}",
                seen::told(&bucket, &lost, (ra, rb)),
                ends.collect::<Vec<_>>().join("\n  "),
                self.bucket.stepped.begun(),
            )
        };
        assert!(found, "{}", what());
        self.seats.iter().for_each(|seat| seat.check_view(&bucket));
        self.seats.iter().enumerate().for_each(|(n, seat)| self.check_use(seat, LAST + n as u8));
        self.check_nothing_is_left();
    }

    fn check_nothing_is_left(&self) {
        for seat in &self.seats {
            assert!(seat.draft.as_ref().is_none_or(|draft| draft.is_sealed()), "not sealed");
            assert!(seat.node.writer.drafts().is_empty(), "a file is under change for ever");
        }
        assert_eq!(self.bucket.memory.open_uploads(), 0, "an upload is left");
        let staged = self.lab.staged();
        assert!(staged.is_empty(), "in the staging folder is left {:?}", staged.keys());
    }

    /// The name can be written anew.
    fn check_use(&self, seat: &Seat, tag: u8) {
        let node = &seat.node;
        let dir = node.dir("d").unwrap_or_else(|| {
            let (names, writer) = (node.names.clone(), node.writer.clone());
            drive(async move { writer.mkdir(names.root(), "d").await }).unwrap();
            node.dir("d").unwrap()
        });
        let draft = node.open(&dir, "f").unwrap();
        let bytes = pattern(tag, 100);
        draft.write(MAY, 0, &bytes).unwrap();
        let writer = node.writer.clone();
        drive(async move { writer.finish(&draft).await });
        assert!(self.bucket.memory.bytes(FILE) == Some(bytes), "the name is of no use any more");
    }
}

impl Seat {
    /// Names lead to what is in the bucket, and what is cached of it are its bytes.
    fn check_view(&self, bucket: &BTreeMap<String, Bytes>) {
        for key in bucket.keys().map(String::as_str).chain([FILE, AWAY]) {
            let (dir, name) = key.split_once('/').unwrap();
            let Some(dir) = self.node.dir(dir) else {
                assert!(!bucket.contains_key(key), "{key}: its directory is not shown");
                continue;
            };
            let (names, at) = (self.node.names.clone(), name.to_owned());
            let found = drive(async move { names.lookup(&dir, &at).await });
            let node = match (found, bucket.get(key)) {
                (Ok(Node::File(node)), Some(_)) => node,
                (Err(LookupError::Absent), None) => continue,
                (found, there) => {
                    panic!("{key} is there: {}, and is shown: {}", there.is_some(), found.is_ok())
                }
            };
            let version = self.node.names.version_key(&node).unwrap();
            assert_eq!(version.version.size, bucket[key].len() as u64, "{key}: its size");
            let cached =
                self.node.names.cache.peek(MAY, &version).filter(|cached| cached.is_trusted());
            let mut bytes = Vec::new();
            if let Some(mut file) = cached.and_then(|cached| cached.open_for_passthrough(MAY).ok())
            {
                file.read_to_end(&mut bytes).unwrap();
                assert!(bytes == bucket[key], "{key}: wrong bytes are cached");
            }
        }
    }
}
