//! Whether all that a publisher has sent has come.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::announcement::{Announcement, Role};
use super::lifetime::Span;

/// Relays that are followed: a cluster, or a region, has one or two.
const RELAYS_MAX: usize = 64;
/// Other publishers that are followed, of whom those are forgotten that were not heard for longest: they
/// are as many as there are nodes.
const NODES_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// Clocks of two machines may drift apart by a thousandth: what is late by less than that is not seen.
const DRIFT: u32 = 1000;

/// Why names are no longer taken as true for as long as nothing is said of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lapse {
    /// Something that was sent has not come.
    Gap,
    /// A relay has started again: what it had to say meanwhile is not known.
    Epoch,
    /// Nothing came for too long, or what came was under way for too long.
    Silence,
    /// The connection was lost.
    Disconnected,
    /// More came than was taken.
    Overflow,
}

impl Lapse {
    /// As it is counted.
    pub fn label(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Epoch => "epoch",
            Self::Silence => "silence",
            Self::Disconnected => "disconnected",
            Self::Overflow => "overflow",
        }
    }
}

/// What has come of the publishers of a feed.
///
/// A bucket's names live long while at least one relay that says it relays the bucket is heard: every
/// [`Pulse::new`]'s `timeout` at least, without a gap. A relay that ends, in whatever way, takes no more
/// than that with it. Nodes come and go; that one is silent says nothing, and a message of one that is
/// missing is a lapse.
pub struct Pulse {
    timeout: Duration,
    relays: HashMap<Box<str>, Relay>,
    nodes: LruCache<Box<str>, Heard>,
    /// The last lapse of all there is.
    lapsed: Option<Instant>,
}

/// What was heard of a run last.
#[derive(Clone, Copy)]
struct Heard {
    epoch: u64,
    sequence: u64,
}

impl Heard {
    /// Takes notice of a message of the same run. `None`: it comes late, or again; else whether there is
    /// something missing before it.
    fn take(&mut self, message: &Announcement) -> Option<bool> {
        let counts = u64::from(!message.changes.is_empty());
        if message.sequence < self.sequence {
            return None;
        }
        let is_gap = message.sequence > self.sequence.saturating_add(counts);
        self.sequence = message.sequence;
        Some(is_gap)
    }
}

struct Relay {
    heard: Heard,
    clock: Clock,
    span: Span,
    /// Whether it lived when it was looked at last.
    lives: bool,
    relays: BTreeMap<Box<str>, Option<u64>>,
}

/// When the messages of a run were sent, by our own clock, as if the quickest had taken no time.
#[derive(Clone, Copy)]
struct Clock {
    began: Instant,
    looked: Instant,
}

impl Clock {
    /// `None` for a clock that no machine has.
    fn new(clock: Duration, now: Instant) -> Option<Self> {
        Some(Self { began: now.checked_sub(clock)?, looked: now })
    }

    fn sent(&mut self, clock: Duration, now: Instant) -> Instant {
        let drift = now.saturating_duration_since(self.looked) / DRIFT;
        self.looked = now;
        self.began += drift;
        if let Some(began) = now.checked_sub(clock) {
            self.began = self.began.min(began);
        }
        self.began.checked_add(clock).map_or(now, |sent| sent.min(now))
    }
}

impl Pulse {
    /// A relay lives while something is heard that it has sent within `timeout`.
    pub fn new(timeout: Duration) -> Self {
        let nodes = LruCache::new(NODES_MAX);
        Self { timeout, relays: HashMap::new(), nodes, lapsed: None }
    }

    /// Takes notice of a message; says whether something is missing, before what it says itself. Of a
    /// message that comes twice, or late, nothing follows.
    pub fn hear(&mut self, message: &Announcement, now: Instant) -> Option<Lapse> {
        match message.role {
            Role::Relay => self.hear_relay(message, now),
            Role::Node => self.hear_node(message, now),
        }
    }

    fn hear_node(&mut self, message: &Announcement, now: Instant) -> Option<Lapse> {
        let Announcement { epoch, sequence, .. } = *message;
        match self.nodes.get_mut(&message.publisher) {
            Some(heard) if heard.epoch == epoch => {
                if heard.take(message)? {
                    self.lapsed = Some(now);
                    return Some(Lapse::Gap);
                }
            }
            _ => {
                self.nodes.put(message.publisher.clone(), Heard { epoch, sequence });
            }
        }
        None
    }

    fn hear_relay(&mut self, message: &Announcement, now: Instant) -> Option<Lapse> {
        let (name, clock) = (&message.publisher, Duration::from_millis(message.clock_ms));
        let Some(relay) = self.relays.get_mut(name).filter(|r| r.heard.epoch == message.epoch)
        else {
            return self.begin(message, clock, now);
        };
        let is_gap = relay.heard.take(message)?;
        let is_new = now > relay.span.until || !relay.lives;
        let sent = relay.clock.sent(clock, now);
        relay.span.until = relay.span.until.max(sent + self.timeout);
        relay.relays.clone_from(&message.relays);
        let lapse = match is_gap {
            true => Some(Lapse::Gap),
            false => (is_new && relay.lives).then_some(Lapse::Silence),
        };
        if is_gap || is_new {
            // What it sent before is not known, or may have come too late.
            relay.span.since = now;
        }
        relay.lives = now <= relay.span.until;
        if message.goodbye {
            self.relays.remove(name);
        }
        lapse
    }

    /// The first message of a run that is heard.
    fn begin(&mut self, message: &Announcement, clock: Duration, now: Instant) -> Option<Lapse> {
        let before = self.relays.remove(&message.publisher);
        self.make_room(now);
        if !message.goodbye && self.relays.len() < RELAYS_MAX {
            let relay = Relay {
                heard: Heard { epoch: message.epoch, sequence: message.sequence },
                clock: Clock::new(clock, now)?,
                span: Span { since: now, until: now + self.timeout },
                lives: true,
                relays: message.relays.clone(),
            };
            self.relays.insert(message.publisher.clone(), relay);
        }
        before.map(|_| Lapse::Epoch)
    }

    /// Where there are too many, forgets the one that was silent for longest, if one is.
    fn make_room(&mut self, now: Instant) {
        if self.relays.len() >= RELAYS_MAX {
            let silent = self.relays.iter().filter(|(_, relay)| now > relay.span.until);
            let longest = silent.min_by_key(|(_, relay)| relay.span.until);
            if let Some(name) = longest.map(|(name, _)| name.clone()) {
                self.relays.remove(&name);
            }
        }
    }

    /// How many relays have fallen silent since it was asked last.
    pub fn fall_silent(&mut self, now: Instant) -> usize {
        let mut fallen = 0;
        for relay in self.relays.values_mut().filter(|r| r.lives && now > r.span.until) {
            relay.lives = false;
            fallen += 1;
        }
        fallen
    }

    /// Whether a relay is heard.
    pub fn lives(&self, now: Instant) -> bool {
        self.relays.values().any(|relay| now <= relay.span.until)
    }

    /// When a bucket's feed lives, and within how many milliseconds its relay's own object was seen to
    /// come.
    pub fn of_bucket(&self, bucket: &str, now: Instant) -> Option<(Span, Option<u64>)> {
        let living = self.relays.values().filter(|relay| now <= relay.span.until);
        let its = living.filter_map(|relay| Some((relay.span, *relay.relays.get(bucket)?)));
        let (span, canary) = its.min_by_key(|(span, _)| span.since)?;
        let since = self.lapsed.map_or(span.since, |at| at.max(span.since));
        Some((Span { since, ..span }, canary))
    }

    /// Takes all for silent: the connection was lost, or more came than was taken. How long messages take
    /// is still known.
    pub fn silence(&mut self, now: Instant) {
        let before = now.checked_sub(Duration::from_nanos(1)).unwrap_or(now);
        for relay in self.relays.values_mut() {
            relay.lives = false;
            relay.span.until = relay.span.until.min(before);
        }
        self.lapsed = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Change;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn beat(publisher: &str, epoch: u64, sequence: u64) -> Announcement {
        let relays = BTreeMap::from([("b".into(), None)]);
        Announcement { relays, ..Announcement::new(publisher, Role::Relay, epoch, sequence) }
    }

    fn news(epoch: u64, sequence: u64) -> Announcement {
        let changes = vec![Change { bucket: "b".into(), key: "k".into(), gone: false }];
        Announcement { changes, ..beat("p", epoch, sequence) }
    }

    /// As sent at this time of the publisher's.
    fn at(ms: u64, message: Announcement) -> Announcement {
        Announcement { clock_ms: ms, ..message }
    }

    fn since(pulse: &Pulse, now: Instant) -> Option<Instant> {
        pulse.of_bucket("b", now).map(|(span, _)| span.since)
    }

    #[test]
    fn a_gap_a_new_run_and_silence_are_lapses_and_what_comes_twice_or_late_is_none() {
        let mut pulse = Pulse::new(TIMEOUT);
        let start = Instant::now();
        let now = start + Duration::from_secs(1);
        assert_eq!(since(&pulse, start), None, "nobody was heard");
        assert_eq!(pulse.hear(&beat("p", 1, 7), start), None);
        assert_eq!(pulse.of_bucket("other", start), None, "nobody relays it");
        for quiet in
            [beat("p", 1, 7), news(1, 8), news(1, 8), beat("p", 1, 8), news(1, 9), news(1, 8)]
        {
            assert_eq!(pulse.hear(&at(1000, quiet), now), None);
        }
        assert_eq!(since(&pulse, now), Some(start));
        // A message with changes was lost: the next one says so, and so does a heartbeat.
        assert_eq!(pulse.hear(&at(1000, news(1, 11)), now), Some(Lapse::Gap));
        assert_eq!(since(&pulse, now), Some(now));
        assert_eq!(pulse.hear(&at(1000, beat("p", 1, 12)), now), Some(Lapse::Gap));
        assert_eq!(pulse.hear(&beat("p", 2, 0), now), Some(Lapse::Epoch));
        assert_eq!(pulse.hear(&news(2, 1), now), None);
        let late = now + TIMEOUT + Duration::from_millis(1);
        assert_eq!(since(&pulse, late), None);
        assert_eq!(pulse.fall_silent(late), 1);
        assert_eq!(pulse.fall_silent(late), 0, "once");
        assert_eq!(pulse.hear(&at(5001, beat("p", 2, 1)), late), None);
        assert_eq!(since(&pulse, late), Some(late));
        let later = late + TIMEOUT * 2;
        assert_eq!(pulse.hear(&at(15_001, beat("p", 2, 1)), later), Some(Lapse::Silence));
        assert_eq!(since(&pulse, later), Some(later));
        pulse.silence(later);
        assert_eq!(since(&pulse, later), None);
    }

    #[test]
    fn one_relay_of_a_bucket_is_enough_and_one_that_says_goodbye_is_gone() {
        let mut pulse = Pulse::new(TIMEOUT);
        let start = Instant::now();
        for relay in ["p", "q"] {
            pulse.hear(&beat(relay, 1, 0), start);
        }
        let now = start + TIMEOUT;
        pulse.hear(&at(5000, beat("q", 1, 0)), now);
        let later = now + TIMEOUT;
        assert_eq!(since(&pulse, later), Some(start), "the other is heard");
        pulse.hear(&Announcement { goodbye: true, ..at(9000, beat("q", 1, 0)) }, later);
        assert_eq!(since(&pulse, later), None);
    }

    #[test]
    fn nodes_that_come_and_go_say_nothing_and_a_gap_of_theirs_is_a_lapse() {
        let mut pulse = Pulse::new(TIMEOUT);
        let start = Instant::now();
        let now = start + Duration::from_secs(1);
        pulse.hear(&beat("p", 1, 0), start);
        let node =
            |name: &str, epoch, sequence| Announcement::new(name, Role::Node, epoch, sequence);
        for n in 0..2 * NODES_MAX.get() {
            assert_eq!(pulse.hear(&node(&n.to_string(), 1, 5), now), None);
        }
        assert_eq!(pulse.nodes.len(), NODES_MAX.get());
        let last = (2 * NODES_MAX.get() - 1).to_string();
        assert_eq!(pulse.hear(&node(&last, 2, 0), now), None, "it started again");
        assert_eq!(since(&pulse, now), Some(start));
        assert_eq!(pulse.hear(&node(&last, 2, 1), now), Some(Lapse::Gap));
        assert_eq!(since(&pulse, now), Some(now));
        for n in 0..2 * RELAYS_MAX {
            pulse.hear(&beat(&n.to_string(), 1, 0), now);
        }
        assert_eq!(pulse.relays.len(), RELAYS_MAX);
    }

    #[test]
    fn what_was_under_way_for_too_long_is_as_good_as_silence() {
        let mut pulse = Pulse::new(TIMEOUT);
        let start = Instant::now();
        let second = |n: u64| start + Duration::from_secs(n);
        let sent = |n: u64| at(n * 1000, beat("p", 1, 0));
        (0..10).for_each(|n| assert_eq!(pulse.hear(&sent(n), second(n)), None));
        // From here on all takes a minute, and nothing is missing.
        assert_eq!(since(&pulse, second(14)), Some(start));
        assert_eq!(since(&pulse, second(15)), None);
        assert_eq!(pulse.hear(&sent(10), second(70)), Some(Lapse::Silence));
        for n in 11..60 {
            assert_eq!(pulse.hear(&sent(n), second(60 + n)), None);
            assert_eq!(since(&pulse, second(60 + n)), None, "{n}");
        }
        // And in time again.
        pulse.hear(&sent(125), second(125));
        assert_eq!(since(&pulse, second(125)), Some(second(125)));
        // A clock that goes slower than ours by less than a thousandth is no lateness.
        for n in 1..100_000_u64 {
            let now = second(125) + Duration::from_secs(n);
            let clock = 125_000 + n * 1000 - n / 2;
            assert_eq!(pulse.hear(&at(clock, beat("p", 1, 0)), now), None, "{n}");
        }
    }
}
