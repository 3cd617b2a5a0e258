//! What may be believed of a name, whatever comes of the feed and in whatever order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Change;
use super::announcement::{Announcement, Role};
use super::hearing::{BucketHearing, Hearing};
use super::pulse::Lapse;
use crate::metrics::Metrics;

const TIMEOUT: Duration = Duration::from_millis(5000);
const SHORT: Duration = Duration::from_millis(1000);
const LONG: Duration = Duration::from_secs(300);
/// The longest that a message is under way in these tests before it is too late.
const DELIVERY: u64 = 400;
const KEYS: [&str; 4] = ["a", "d/b", "d/e/c", "ü"];

fn hearing() -> Arc<Hearing> {
    Hearing::new("own", TIMEOUT, LONG, Arc::new(Metrics::new().unwrap())).0
}

fn change(key: &str) -> Change {
    Change { bucket: "b".into(), key: key.into(), gone: false }
}

fn message(sequence: u64, clock_ms: u64, changes: Vec<Change>) -> Announcement {
    let relays = BTreeMap::from([("b".into(), Some(DELIVERY))]);
    Announcement { clock_ms, relays, changes, ..Announcement::new("r", Role::Relay, 1, sequence) }
}

/// A world in which one relay tells of changes, over a network that loses, delays and repeats.
struct World {
    dice: StdRng,
    hearing: Arc<Hearing>,
    bucket: BucketHearing,
    start: Instant,
    now: u64,
    sequence: u64,
    beat: u64,
    /// When each key was changed last.
    changed: BTreeMap<&'static str, u64>,
    /// When each was asked for last.
    asked: BTreeMap<&'static str, u64>,
    /// What is on its way, and when it comes.
    under_way: Vec<(u64, Announcement)>,
    /// Added to what each message takes, and how many of a hundred are lost.
    late: u64,
    lost: u32,
    fresh: u64,
    long: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let hearing = hearing();
        Self {
            dice: StdRng::seed_from_u64(seed),
            bucket: hearing.of_bucket("b"),
            hearing,
            start: Instant::now(),
            now: 1000,
            sequence: 0,
            beat: 0,
            changed: BTreeMap::new(),
            asked: BTreeMap::new(),
            under_way: Vec::new(),
            late: 0,
            lost: 0,
            fresh: 0,
            long: 0,
        }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn send(&mut self, changes: Vec<Change>) {
        self.sequence += u64::from(!changes.is_empty());
        let sent = message(self.sequence, self.now, changes);
        // Twice, now and then; the copies overtake each other.
        for _ in 0..self.dice.random_range(1..=2) {
            let comes = self.now + self.late + self.dice.random_range(1..=DELIVERY);
            if self.dice.random_range(0..100) >= self.lost {
                self.under_way.push((comes, sent.clone()));
            }
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let (come, rest) =
            std::mem::take(&mut self.under_way).into_iter().partition(|m| m.0 <= now);
        self.under_way = rest;
        let mut come: Vec<(u64, Announcement)> = come;
        come.sort_by_key(|(comes, _)| *comes);
        for (_, message) in come {
            self.hearing.take(&message.to_bytes(), self.at(now));
        }
    }

    fn step(&mut self) {
        self.now += self.dice.random_range(1..200);
        self.deliver();
        if self.now >= self.beat {
            self.beat = self.now + 1600;
            self.send(Vec::new());
        }
        let key = KEYS[self.dice.random_range(0..KEYS.len())];
        match self.dice.random_range(0..100) {
            0..4 => {
                self.changed.insert(key, self.now);
                self.send(vec![change(key)]);
            }
            4..20 => {
                self.asked.insert(key, self.now);
            }
            20 => self.late = [0, 0, 8_000, 60_000][self.dice.random_range(0..4)],
            21 => self.lost = [0, 0, 0, 30, 100][self.dice.random_range(0..5)],
            22 => self.hearing.look(self.at(self.now)),
            23 if self.dice.random_bool(0.2) => {
                self.hearing.lapse(Lapse::Disconnected, self.at(self.now));
            }
            _ => {}
        }
        KEYS.into_iter().for_each(|key| self.check(key));
    }

    /// No name is believed that was changed longer ago than is promised.
    fn check(&mut self, key: &'static str) {
        let Some(&asked) = self.asked.get(key) else { return };
        let lifetime = self.bucket.lifetime(SHORT, self.at(self.now));
        let marked = self.bucket.of_name(self.bucket.root().then(key));
        if !lifetime.is_fresh(self.at(asked), marked, self.at(self.now)) {
            return;
        }
        let age = Duration::from_millis(self.now - asked);
        assert!(age < LONG);
        self.fresh += 1;
        self.long += u64::from(age >= SHORT);
        let Some(&changed) = self.changed.get(key).filter(|at| **at >= asked) else { return };
        let stale = Duration::from_millis(self.now - changed);
        // What comes first of a run says how long messages take at the least: by so much more they may
        // be late before it is noticed.
        let most = Duration::from_millis(2 * DELIVERY) + TIMEOUT;
        assert!(age < SHORT || stale <= most, "{key}: {stale:?} after the change, {age:?} old");
    }
}

#[test]
fn no_name_is_believed_beyond_what_is_promised_whatever_comes_of_the_feed() {
    let (mut fresh, mut long) = (0, 0);
    for seed in 0..200 {
        let mut world = World::new(seed);
        (0..3000).for_each(|_| world.step());
        (fresh, long) = (fresh + world.fresh, long + world.long);
    }
    assert!(long > fresh / 10, "{long} of {fresh} were believed for long");
}

#[test]
fn a_flood_of_events_is_taken_in_and_forgets_nothing() {
    let hearing = hearing();
    let bucket = hearing.of_bucket("b");
    let before = Instant::now();
    for n in 0..1000 {
        let changes = (0..100).map(|k| change(&format!("flood/{n}/{k}"))).collect();
        hearing.take(&message(n + 1, 0, changes).to_bytes(), before);
    }
    for key in ["flood/0/0", "flood/999/99", "flood/500/50"] {
        let marked = bucket.of_name(bucket.root().then(key));
        assert_eq!(marked.own, Some(before), "{key}");
    }
    assert!(bucket.lifetime(SHORT, before).span.is_some());
}

#[test]
fn what_this_process_says_itself_it_does_not_hear_and_records_prove_nothing() {
    let hearing = hearing();
    let bucket = hearing.of_bucket("b");
    let now = Instant::now();
    let own = Announcement { publisher: "own".into(), ..message(1, 0, vec![change("k")]) };
    hearing.take(&own.to_bytes(), now);
    assert!(bucket.of_name(bucket.root().then("k")).own.is_none());
    let record = br#"{"Records":[{"eventName":"s3:ObjectCreated:Put",
        "s3":{"bucket":{"name":"b"},"object":{"key":"k"}}}]}"#;
    hearing.take(record, now);
    assert!(bucket.of_name(bucket.root().then("k")).own.is_some());
    assert!(bucket.lifetime(SHORT, now).span.is_none());
    hearing.take(b"neither", now);
}

#[test]
fn what_may_go_unseen_is_said_by_the_canary_and_without_one_by_the_lifetime() {
    let hearing = hearing();
    let bucket = hearing.of_bucket("b");
    let now = Instant::now();
    assert_eq!(bucket.staleness(SHORT, now), SHORT);
    let mut said = message(0, 0, Vec::new());
    hearing.take(&said.to_bytes(), now);
    assert_eq!(bucket.staleness(SHORT, now), Duration::from_millis(DELIVERY) + TIMEOUT + SHORT);
    said.relays.insert("b".into(), None);
    hearing.take(&said.to_bytes(), now);
    assert_eq!(bucket.staleness(SHORT, now), LONG);
    assert_eq!(bucket.staleness(LONG * 2, now), LONG * 2);
    assert_eq!(bucket.staleness(SHORT, now + TIMEOUT * 2), SHORT);
    assert_eq!(hearing.of_bucket("c").staleness(SHORT, now), SHORT, "nobody relays it");
}
