//! Whether all that a publisher has sent has come.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::announcement::Announcement;

/// Publishers that are followed. Each is a process of somebody's that may publish.
const PUBLISHERS_MAX: usize = 64;

/// Why names are no longer taken as true for as long as nothing is said of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lapse {
    /// Something that was sent has not come.
    Gap,
    /// A publisher has started again: what it had to say meanwhile is not known.
    Epoch,
    /// Nothing came for too long.
    Silence,
}

/// What has come of the publishers of a feed.
pub struct Pulse {
    timeout: Duration,
    publishers: HashMap<Box<str>, Heard>,
}

/// What has come of one.
#[derive(Clone, Copy)]
struct Heard {
    epoch: u64,
    sequence: u64,
    at: Instant,
}

impl Pulse {
    /// A feed lives while each of its publishers was heard within `timeout`.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, publishers: HashMap::new() }
    }

    /// Takes notice of a message; says whether something is missing, before what it says itself. Of a
    /// message that comes twice, or late, nothing follows.
    pub fn hear(&mut self, message: &Announcement, now: Instant) -> Option<Lapse> {
        let Announcement { epoch, sequence, .. } = *message;
        let counts = u64::from(!message.changes.is_empty());
        let Some(heard) = self.publishers.get_mut(&message.publisher) else {
            if self.publishers.len() < PUBLISHERS_MAX {
                let heard = Heard { epoch, sequence, at: now };
                self.publishers.insert(message.publisher.clone(), heard);
            }
            // What it sent before is not known.
            return Some(Lapse::Epoch);
        };
        if epoch < heard.epoch || (epoch == heard.epoch && sequence < heard.sequence) {
            return None;
        }
        let silent = now.duration_since(heard.at) > self.timeout;
        let lapse = if epoch != heard.epoch {
            Some(Lapse::Epoch)
        } else if sequence > heard.sequence.saturating_add(counts) {
            Some(Lapse::Gap)
        } else {
            silent.then_some(Lapse::Silence)
        };
        *heard = Heard { epoch, sequence, at: now };
        lapse
    }

    /// Whether all publishers that were ever heard are heard still, and there is one. One that is gone
    /// for good is forgotten after `gone`.
    pub fn lives(&mut self, now: Instant, gone: Duration) -> bool {
        self.publishers.retain(|_, heard| now.duration_since(heard.at) <= gone);
        let is_heard = |heard: &Heard| now.duration_since(heard.at) <= self.timeout;
        !self.publishers.is_empty() && self.publishers.values().all(is_heard)
    }

    /// Forgets what has come: the connection was lost, and what was sent meanwhile is not known.
    pub fn forget(&mut self) {
        self.publishers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Change;

    const TIMEOUT: Duration = Duration::from_secs(5);
    const GONE: Duration = Duration::from_secs(300);

    fn beat(publisher: &str, epoch: u64, sequence: u64) -> Announcement {
        Announcement::new(publisher, epoch, sequence, Vec::new())
    }

    fn news(epoch: u64, sequence: u64) -> Announcement {
        let change = Change { bucket: "b".into(), key: "k".into() };
        Announcement::new("p", epoch, sequence, vec![change])
    }

    #[test]
    fn a_gap_a_new_run_and_silence_are_lapses_and_what_comes_twice_or_late_is_none() {
        let mut pulse = Pulse::new(TIMEOUT);
        let now = Instant::now();
        assert!(!pulse.lives(now, GONE), "nobody was heard");
        assert_eq!(pulse.hear(&beat("p", 1, 7), now), Some(Lapse::Epoch));
        assert!(pulse.lives(now, GONE));
        for quiet in
            [beat("p", 1, 7), news(1, 8), news(1, 8), beat("p", 1, 8), news(1, 9), news(1, 8)]
        {
            assert_eq!(pulse.hear(&quiet, now), None, "{quiet:?}");
        }
        // A message with changes was lost: the next one says so, and so does a heartbeat.
        assert_eq!(pulse.hear(&news(1, 11), now), Some(Lapse::Gap));
        assert_eq!(pulse.hear(&beat("p", 1, 12), now), Some(Lapse::Gap));
        assert_eq!(pulse.hear(&news(1, 13), now), None);
        assert_eq!(pulse.hear(&beat("p", 2, 0), now), Some(Lapse::Epoch));
        assert_eq!(pulse.hear(&news(1, 14), now), None, "of the run before");
        assert_eq!(pulse.hear(&news(2, 1), now), None);
        let late = now + TIMEOUT + Duration::from_millis(1);
        assert!(!pulse.lives(late, GONE));
        assert_eq!(pulse.hear(&beat("p", 2, 1), late), Some(Lapse::Silence));
        assert!(pulse.lives(late, GONE));
    }

    #[test]
    fn all_publishers_are_to_be_heard_until_one_is_gone_for_good_and_they_are_few() {
        let mut pulse = Pulse::new(TIMEOUT);
        let mut now = Instant::now();
        for publisher in ["p", "q"] {
            pulse.hear(&beat(publisher, 1, 0), now);
        }
        now += TIMEOUT * 2;
        pulse.hear(&beat("p", 1, 0), now);
        assert!(!pulse.lives(now, GONE), "one is silent");
        now += GONE;
        pulse.hear(&beat("p", 1, 0), now);
        assert!(pulse.lives(now, GONE));
        for n in 0..2 * PUBLISHERS_MAX {
            assert_eq!(pulse.hear(&beat(&n.to_string(), 1, 0), now), Some(Lapse::Epoch));
        }
        assert_eq!(pulse.publishers.len(), PUBLISHERS_MAX);
        pulse.forget();
        assert!(!pulse.lives(now, GONE));
    }
}
