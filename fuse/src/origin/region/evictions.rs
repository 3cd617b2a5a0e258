//! What a region is to forget of one bucket, key by key, until it has said so after the key's last
//! change.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::metrics::Metrics;
use crate::sync::unpoisoned;

/// How often a region is told to forget one key.
const AGAIN: Duration = Duration::from_secs(60);
/// Most keys that wait. Of what comes beyond them the region is not told: readers tell by its tag.
pub(super) const ROWS_MAX: usize = 65_536;
/// Most keys in one list.
pub(super) const LIST_MAX: usize = 1000;
/// How long nothing is sent after a list that failed: doubled each time, between these.
const PAUSE: Range<Duration> = Duration::from_secs(1)..Duration::from_secs(60);

/// Keys that wait.
pub(super) struct Evictions {
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rows: BTreeMap<Box<str>, Row>,
    /// When keys were sent last.
    sent: HashMap<Box<str>, Instant>,
    /// Until when nothing is sent, since the last list failed.
    pause: Option<(Instant, Duration)>,
    /// What was asked so far.
    asked: u64,
    /// Whether somebody sends what comes.
    followed: bool,
}

/// A key.
#[derive(Default)]
struct Row {
    /// Requests under way that change what it names.
    changes: u32,
    /// The number of what was asked of it last: what was sent before that does not count.
    asked: u64,
    /// Whether it is to be sent.
    is_due: bool,
    /// Whether a request may change it yet though nobody has its answer: then once is not enough.
    in_doubt: bool,
    /// Whether it may be in the log, and whether it surely is.
    logged: bool,
    kept: bool,
}

/// What came of a request that changes what a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It may have changed it, and will not any more.
    Changed,
    /// It may yet, though nobody has its answer.
    InDoubt,
    /// It may not, so that who asks for it has no say in what the region has.
    Refused,
}

/// A key in a list, and what had been asked of it then.
pub(super) struct Listed {
    pub(super) key: Box<str>,
    asked: u64,
}

impl Evictions {
    /// None wait.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, state: Mutex::default() }
    }

    /// A request begins that changes what it names: until its end nothing is sent of it. Says whether
    /// it is surely in the log; `None`: too many wait.
    pub(super) fn begin(&self, key: &str) -> Option<bool> {
        let mut state = self.state();
        let row = self.row(&mut state, key)?;
        row.changes += 1;
        row.logged = true;
        Some(row.kept)
    }

    /// The log has it.
    pub(super) fn note_kept(&self, key: &str) {
        if let Some(row) = self.state().rows.get_mut(key) {
            row.kept = true;
        }
    }

    /// Such a request has ended. As [`Evictions::forgotten`] where there is nothing to send for that.
    pub(super) fn end(&self, key: &str, end: End, forget: impl FnOnce(Vec<Box<str>>)) {
        let mut state = self.state();
        let Some(row) = self.row(&mut state, key) else { return };
        row.changes = row.changes.saturating_sub(1);
        match end {
            End::Changed => row.is_due = true,
            End::InDoubt => (row.is_due, row.in_doubt) = (true, true),
            End::Refused if row.is_due || row.changes > 0 => {}
            End::Refused => {
                state.rows.remove(key);
                self.metrics.region_evictions_pending.dec();
                forget(vec![key.into()]);
            }
        }
    }

    /// It is to be forgotten, whoever changed it.
    pub(super) fn add(&self, key: &str) {
        if let Some(row) = self.row(&mut self.state(), key) {
            row.is_due = true;
        }
    }

    /// These are in the log of an earlier process.
    pub(super) fn add_found(&self, keys: &[Box<str>]) {
        let mut state = self.state();
        for key in keys {
            if let Some(row) = self.row(&mut state, key) {
                (row.is_due, row.logged, row.kept) = (true, true, true);
            }
        }
    }

    /// The row of a key of which something new is asked.
    fn row<'a>(&self, state: &'a mut State, key: &str) -> Option<&'a mut Row> {
        state.asked += 1;
        let asked = state.asked;
        if !state.rows.contains_key(key) {
            if state.rows.len() >= ROWS_MAX {
                self.count("dropped", 1);
                return None;
            }
            state.rows.insert(key.into(), Row::default());
            self.metrics.region_evictions_pending.inc();
        }
        let row = state.rows.get_mut(key)?;
        row.asked = asked;
        Some(row)
    }

    /// The next list. Nothing is in another one until its time has come again.
    pub(super) fn next(&self, now: Instant) -> Vec<Listed> {
        let mut state = self.state();
        if state.pause.is_some_and(|(until, _)| now < until) {
            return Vec::new();
        }
        state.sent.retain(|_, at| now < *at + AGAIN);
        let settled = state.rows.iter().filter(|(_, row)| row.is_due && row.changes == 0);
        let due = settled.filter(|(key, _)| !state.sent.contains_key(*key)).take(LIST_MAX);
        let list: Vec<_> =
            due.map(|(key, row)| Listed { key: key.clone(), asked: row.asked }).collect();
        for Listed { key, .. } in &list {
            state.sent.insert(key.clone(), now);
        }
        list
    }

    /// Puts a list back that was not sent.
    pub(super) fn put_back(&self, list: &[Listed]) {
        let mut state = self.state();
        for Listed { key, .. } in list {
            state.sent.remove(key);
        }
    }

    /// A list failed.
    pub(super) fn failed(&self, list: &[Listed], now: Instant) {
        self.put_back(list);
        self.count("failed", list.len());
        let mut state = self.state();
        let pause = state.pause.map_or(PAUSE.start, |(_, pause)| (pause * 2).min(PAUSE.end));
        state.pause = Some((now + pause, pause));
    }

    /// The region has forgotten a list. What the log need not have any more it is to `forget` before
    /// another change of that begins, which it is to have.
    pub(super) fn forgotten(&self, list: Vec<Listed>, forget: impl FnOnce(Vec<Box<str>>)) {
        self.count("forgotten", list.len());
        let mut state = self.state();
        state.pause = None;
        let mut over = Vec::new();
        for Listed { key, asked } in list {
            let Some(row) = state.rows.get_mut(&key).filter(|row| row.asked == asked) else {
                continue;
            };
            if std::mem::take(&mut row.in_doubt) {
                continue;
            }
            let logged = row.logged;
            state.rows.remove(&key);
            self.metrics.region_evictions_pending.dec();
            if logged {
                over.push(key);
            }
        }
        forget(over);
    }

    /// Whether whoever asks is to send what comes, since nobody does.
    pub(super) fn follow(&self) -> bool {
        let mut state = self.state();
        !std::mem::replace(&mut state.followed, true)
    }

    /// Whether nothing waits; then whoever sends may rest, and the next one begins.
    pub(super) fn rest(&self) -> bool {
        let mut state = self.state();
        state.followed = !state.rows.is_empty();
        !state.followed
    }

    /// Those that wait.
    #[cfg(test)]
    pub(super) fn keys(&self) -> Vec<String> {
        self.state().rows.keys().map(ToString::to_string).collect()
    }

    fn count(&self, outcome: &str, keys: usize) {
        self.metrics.region_evictions.with_label_values(&[outcome]).inc_by(keys as u64);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }
}

impl Drop for Evictions {
    fn drop(&mut self) {
        let left = self.state().rows.len();
        self.metrics.region_evictions_pending.sub(left as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evictions() -> Evictions {
        Evictions::new(Arc::new(Metrics::new().unwrap()))
    }

    fn keys(list: &[Listed]) -> Vec<&str> {
        list.iter().map(|listed| &*listed.key).collect()
    }

    impl Evictions {
        /// What the log is told to forget, while nothing else happens to it.
        fn over(&self, list: Vec<Listed>) -> Vec<String> {
            let mut over = Vec::new();
            self.forgotten(list, |keys| {
                assert!(self.state.try_lock().is_err(), "a change may begin meanwhile");
                over = keys.iter().map(ToString::to_string).collect();
            });
            over
        }

        fn ends(&self, key: &str, end: End) -> bool {
            let mut is_over = false;
            self.end(key, end, |_| {
                assert!(self.state.try_lock().is_err(), "a change may begin meanwhile");
                is_over = true;
            });
            is_over
        }

        fn counts(&self) -> (u64, u64, i64) {
            let of = |outcome| self.metrics.region_evictions.with_label_values(&[outcome]).get();
            (of("forgotten"), of("dropped"), self.metrics.region_evictions_pending.get())
        }
    }

    #[test]
    fn a_key_is_sent_after_the_end_of_its_change_and_once_in_a_while() {
        let (evictions, now) = (evictions(), Instant::now());
        evictions.add("k");
        assert_eq!(evictions.begin("k"), Some(false));
        assert!(evictions.next(now).is_empty(), "nobody knows what became of it");
        assert!(!evictions.ends("k", End::Changed));
        let list = evictions.next(now);
        assert_eq!(keys(&list), ["k"]);
        assert!(evictions.next(now).is_empty());
        assert_eq!(evictions.over(list), ["k"]);
        // The next one is not lost.
        evictions.begin("k");
        assert!(!evictions.ends("k", End::Changed));
        evictions.add("l");
        assert_eq!(keys(&evictions.next(now)), ["l"]);
        let later = now + AGAIN;
        assert_eq!(keys(&evictions.next(later)), ["k", "l"]);
    }

    #[test]
    fn what_changes_while_it_is_sent_is_sent_again() {
        let (evictions, now) = (evictions(), Instant::now());
        evictions.add("k");
        let list = evictions.next(now);
        evictions.begin("k");
        assert_eq!(evictions.over(list), [] as [&str; 0]);
        assert!(!evictions.ends("k", End::Changed));
        let list = evictions.next(now + AGAIN);
        assert_eq!(evictions.over(list), ["k"]);
        assert!(evictions.next(now + 2 * AGAIN).is_empty());
        assert_eq!(evictions.counts(), (2, 0, 0));
    }

    /// The request may arrive when nobody waits for its answer any more.
    #[test]
    fn what_has_no_answer_is_sent_twice() {
        let (evictions, now) = (evictions(), Instant::now());
        evictions.begin("k");
        assert!(!evictions.ends("k", End::InDoubt));
        let first = evictions.next(now);
        assert_eq!(evictions.over(first), [] as [&str; 0]);
        let second = evictions.next(now + AGAIN);
        assert_eq!(evictions.over(second), ["k"]);
    }

    #[test]
    fn what_was_refused_is_not_sent_for_that() {
        let (evictions, now) = (evictions(), Instant::now());
        evictions.begin("k");
        assert!(evictions.ends("k", End::Refused) && evictions.counts().2 == 0);
        for _ in 0..2 {
            evictions.begin("k");
        }
        assert!(!evictions.ends("k", End::Refused));
        assert!(evictions.next(now).is_empty(), "the other one is under way");
        assert!(!evictions.ends("k", End::Changed));
        evictions.begin("k");
        assert!(!evictions.ends("k", End::Refused));
        assert_eq!(keys(&evictions.next(now)), ["k"]);
    }

    #[test]
    fn what_failed_is_sent_again_ever_later() {
        let (evictions, mut now) = (evictions(), Instant::now());
        evictions.add("k");
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            let list = evictions.next(now);
            assert_eq!(keys(&list), ["k"], "{pause}");
            evictions.failed(&list, now);
            now += Duration::from_secs(pause);
            assert!(evictions.next(now - Duration::from_millis(1)).is_empty(), "{pause}");
        }
        let list = evictions.next(now);
        evictions.over(list);
        evictions.add("l");
        assert_eq!(keys(&evictions.next(now)), ["l"]);
    }

    #[test]
    fn lists_and_what_waits_are_bounded() {
        let (evictions, now) = (evictions(), Instant::now());
        for n in 0..ROWS_MAX + 3 {
            evictions.add(&n.to_string());
        }
        assert_eq!(evictions.begin("more"), None);
        // Of a key that waits more may come.
        assert_eq!(evictions.begin("0"), Some(false));
        assert!(!evictions.ends("0", End::Changed));
        assert_eq!(evictions.counts(), (0, 4, ROWS_MAX as i64));
        let list = evictions.next(now);
        assert_eq!(list.len(), LIST_MAX);
        evictions.over(list);
        assert_eq!(evictions.begin("more"), Some(false));
        let metrics = evictions.metrics.clone();
        drop(evictions);
        assert_eq!(metrics.region_evictions_pending.get(), 0);
    }

    #[test]
    fn what_was_found_in_the_log_is_taken_out_of_it_and_what_was_never_there_is_not() {
        let (evictions, now) = (evictions(), Instant::now());
        evictions.add_found(&["found".into()]);
        evictions.add("read");
        assert_eq!(evictions.begin("found"), Some(true));
        assert!(!evictions.ends("found", End::Changed));
        let list = evictions.next(now);
        assert_eq!(keys(&list), ["found", "read"]);
        assert_eq!(evictions.over(list), ["found"]);
    }

    #[test]
    fn one_sends_what_comes_until_nothing_waits() {
        let (evictions, now) = (evictions(), Instant::now());
        evictions.add("k");
        assert!(evictions.follow() && !evictions.follow());
        assert!(!evictions.rest() && !evictions.follow());
        let list = evictions.next(now);
        evictions.over(list);
        assert!(evictions.rest() && evictions.follow());
    }
}
