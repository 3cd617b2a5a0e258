//! When nodes were last heard of, by the clock of who listens.
//!
//! A node's clock may be wrong for as long as the node lives, so that what it says of a time counts
//! for the first look alone. After that it is heard of whenever it says another time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

use crate::kubernetes::weirnode::{NodeReport, SILENT_AFTER};

/// What was heard, by node.
#[derive(Default)]
pub(super) struct Heard(HashMap<String, Last>);

/// The last that was heard of a node.
struct Last {
    /// The time that it said.
    told: Timestamp,
    /// When it was seen, and how old it was then.
    seen: Instant,
    age: Duration,
}

impl Heard {
    /// Whether the node of this report says nothing any more. One that says no time says nothing.
    pub(super) fn is_silent(
        &mut self,
        node: &str,
        report: &NodeReport,
        (clock, now): (Timestamp, Instant),
    ) -> bool {
        let Some((told, age)) = report.last_report_time.as_ref().zip(report.age(clock)) else {
            return true;
        };
        let last = self.0.entry(node.to_owned());
        let last = last.or_insert(Last { told: told.0, seen: now, age });
        if last.told != told.0 {
            *last = Last { told: told.0, seen: now, age: Duration::ZERO };
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
        assert!(heard.is_silent("n", &NodeReport::default(), (Timestamp::now(), start)));
        assert!(!is_silent(&mut heard, start, 0, 0));
        assert!(!is_silent(&mut heard, start, 0, 15));
        assert!(is_silent(&mut heard, start, 0, 16));
        assert!(!is_silent(&mut heard, start, 16, 16));
        // At the first look its own word counts, which is all that there is.
        heard.retain(|_| false);
        assert!(is_silent(&mut heard, start, 0, 60));
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
