//! When nodes were last heard of, by the clock of who listens.
//!
//! A node's clock may be wrong for as long as the node lives, so that what it says of a time counts
//! for the first look alone. After that it is heard of whenever it says another time, or, where it says
//! none, as plugins of releases before do, whenever it says something else.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

use crate::kubernetes::weirnode::{NodeReport, SILENT_AFTER};

/// What was heard, by node.
#[derive(Default)]
pub(super) struct Heard(HashMap<String, Last>);

/// The last that was heard of a node.
struct Last {
    told: Word,
    /// When it was seen, and how old it was then.
    seen: Instant,
    age: Duration,
}

/// What tells one report from the next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    /// The time that it says.
    Time(Timestamp),
    /// All that it says, where it says no time.
    Text(u64),
}

impl Word {
    fn of(report: &NodeReport) -> Self {
        report.last_report_time.as_ref().map_or_else(
            || {
                let mut hasher = DefaultHasher::new();
                hasher.write(&serde_json::to_vec(report).unwrap_or_default());
                Self::Text(hasher.finish())
            },
            |told| Self::Time(told.0),
        )
    }
}

impl Heard {
    /// Whether the node of this report says nothing any more. One that says no time is new at the
    /// first look.
    pub(super) fn is_silent(
        &mut self,
        node: &str,
        report: &NodeReport,
        (clock, now): (Timestamp, Instant),
    ) -> bool {
        let (told, age) = (Word::of(report), report.age(clock).unwrap_or_default());
        let last = self.0.entry(node.to_owned());
        let last = last.or_insert(Last { told, seen: now, age });
        if last.told != told {
            *last = Last { told, seen: now, age: Duration::ZERO };
        }
        last.age + now.saturating_duration_since(last.seen) > SILENT_AFTER
    }

    /// Forgets nodes that are not among these.
    pub(super) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|node, _| is_there(node));
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Whether a node that says the time of this minute is silent, at another minute of ours.
    fn is_silent(heard: &mut Heard, start: Instant, told: i64, now: u32) -> bool {
        let at = |minute: i64| Timestamp::from_second(1_000_000_000 + minute * 60).unwrap();
        let report = NodeReport { last_report_time: Some(Time(at(told))), ..NodeReport::default() };
        heard.is_silent("n", &report, (at(i64::from(now)), start + MINUTE * now))
    }

    #[test]
    fn a_node_that_says_nothing_new_is_silent_after_three_reports() {
        let start = Instant::now();
        let mut heard = Heard::default();
        assert!(!is_silent(&mut heard, start, 0, 0));
        assert!(!is_silent(&mut heard, start, 0, 15));
        assert!(is_silent(&mut heard, start, 0, 16));
        assert!(!is_silent(&mut heard, start, 16, 16));
        // At the first look its own word counts, which is all that there is.
        heard.retain(|_| false);
        assert!(is_silent(&mut heard, start, 0, 60));
    }

    #[test]
    fn a_node_that_says_no_time_is_silent_once_it_says_nothing_else() {
        let (start, mut heard) = (Instant::now(), Heard::default());
        let mut is_silent = |ready, minute| {
            let report = NodeReport { ready, ..NodeReport::default() };
            heard.is_silent("n", &report, (Timestamp::now(), start + MINUTE * minute))
        };
        assert!(!is_silent(false, 0));
        assert!(!is_silent(false, 15) && is_silent(false, 16));
        assert!(!is_silent(true, 17));
        assert!(!is_silent(true, 32) && is_silent(true, 33));
    }

    #[test]
    fn a_node_whose_clock_is_wrong_is_heard_of_all_the_same() {
        let start = Instant::now();
        let mut late = Heard::default();
        assert!(is_silent(&mut late, start, -600, 0));
        assert!(!is_silent(&mut late, start, -595, 5));
        assert!(is_silent(&mut late, start, -595, 21));
        // Nor is it believed for as long as it is ahead.
        let mut early = Heard::default();
        assert!(!is_silent(&mut early, start, 600, 0));
        assert!(is_silent(&mut early, start, 600, 16));
    }
}
