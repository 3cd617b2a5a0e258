//! What a process has heard of changes, and what follows from it for the names of a mount.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::Change;
use super::announcement::{Announcement, MESSAGE_MAX};
use super::lifetime::{Lifetime, Marked};
use super::marks::{Marks, PathHash};
use super::pulse::{Lapse, Pulse};
use super::records;
use crate::metrics::Metrics;

/// Writes of this process that wait for being announced. A rename of a directory is 20,000.
const OWN_MAX: usize = 1 << 15;

/// Is told of changes beyond the marks: where a kernel may have remembered a name.
pub trait Listener: Send + Sync {
    /// Something was heard of an object of the bucket that it listens for. Must not wait.
    fn changed(&self, change: &Change);
}

/// Who listens, by bucket.
type Listeners = HashMap<Box<str>, Vec<Weak<dyn Listener>>>;

/// How a feed stands, for people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FeedStatus {
    /// The servers, as they were given.
    pub servers: Vec<String>,
    /// Whether a relay is heard.
    pub lives: bool,
    /// How long ago something came, in milliseconds.
    pub heard_ms_ago: Option<u64>,
}

/// What is heard, of all buckets.
pub struct Hearing {
    /// Name of this process's own publisher.
    own: Box<str>,
    timeout: Duration,
    long: Duration,
    marks: Marks,
    pulse: RwLock<Pulse>,
    heard: Mutex<Option<Instant>>,
    listeners: Mutex<Listeners>,
    metrics: Arc<Metrics>,
    written: mpsc::Sender<Change>,
    written_too_much: tokio::sync::watch::Sender<u64>,
}

/// What is written here, to be announced.
pub struct Written {
    /// The changes.
    pub changes: mpsc::Receiver<Change>,
    /// How many more there were than are kept.
    pub lost: tokio::sync::watch::Receiver<u64>,
}

impl Hearing {
    /// Hears what is sent by others than the publisher `own`; a relay lives while it is heard within
    /// `timeout`, and names live for `long` then.
    pub fn new(
        own: &str,
        timeout: Duration,
        long: Duration,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, Written) {
        let (written, changes) = mpsc::channel(OWN_MAX);
        let (written_too_much, lost) = tokio::sync::watch::channel(0);
        let hearing = Arc::new(Self {
            own: own.into(),
            timeout,
            long,
            marks: Marks::default(),
            pulse: RwLock::new(Pulse::new(timeout)),
            heard: Mutex::default(),
            listeners: Mutex::default(),
            metrics,
            written,
            written_too_much,
        });
        (hearing, Written { changes, lost })
    }

    /// Takes a message in.
    pub fn take(&self, message: &[u8], now: Instant) {
        self.metrics.feed_messages.inc();
        if message.len() > MESSAGE_MAX {
            return self.lapse(Lapse::Overflow, now);
        }
        if let Some(said) = Announcement::parse(message) {
            if said.publisher == self.own {
                return;
            }
            self.note_heard(now);
            self.changed(&said.changes, now);
            // After the marks: who sees that the feed lives sees them.
            let lapse = self.pulse_mut(|pulse| pulse.hear(&said, now));
            lapse.into_iter().for_each(|lapse| self.count(lapse));
            return self.show(now);
        }
        match records::changes(message) {
            Ok(changes) => {
                self.note_heard(now);
                self.changed(&changes, now);
            }
            Err(error) => tracing::debug!(%error, "a message of the feed says nothing"),
        }
    }

    fn changed(&self, changes: &[Change], now: Instant) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            self.marks.mark(change, now);
            let its = listeners.get(&change.bucket).into_iter().flatten();
            its.filter_map(Weak::upgrade).for_each(|listener| listener.changed(change));
        }
        self.metrics.feed_marks.inc_by(changes.len() as u64);
    }

    /// From now on all names are as old as the origin's last word of them, until a relay is heard again.
    pub fn lapse(&self, lapse: Lapse, now: Instant) {
        self.pulse_mut(|pulse| pulse.silence(now));
        self.count(lapse);
        self.show(now);
    }

    /// Notes that time has gone by.
    pub fn look(&self, now: Instant) {
        let silent = self.pulse_mut(|pulse| pulse.fall_silent(now));
        (0..silent).for_each(|_| self.count(Lapse::Silence));
        self.show(now);
    }

    fn count(&self, lapse: Lapse) {
        self.metrics.feed_lapses.with_label_values(&[lapse.label()]).inc();
    }

    fn show(&self, now: Instant) {
        self.metrics.feed_lives.set(i64::from(self.lives(now)));
    }

    fn lives(&self, now: Instant) -> bool {
        self.pulse.read().unwrap_or_else(PoisonError::into_inner).lives(now)
    }

    fn pulse_mut<R>(&self, change: impl FnOnce(&mut Pulse) -> R) -> R {
        change(&mut self.pulse.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn note_heard(&self, now: Instant) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// From now on this is told of each change of a bucket's, for as long as it is there.
    pub fn listen(&self, bucket: &str, listener: Weak<dyn Listener>) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let its = listeners.entry(bucket.into()).or_default();
        its.retain(|listener| listener.strong_count() > 0);
        its.push(listener);
    }

    /// How it stands; `servers` are its servers.
    pub fn status(&self, servers: &[String]) -> FeedStatus {
        let now = Instant::now();
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let ago = heard.map(|at| now.saturating_duration_since(at).as_millis());
        FeedStatus {
            servers: servers.to_vec(),
            lives: self.lives(now),
            heard_ms_ago: ago.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
        }
    }

    /// What is heard of one bucket.
    pub fn of_bucket(self: &Arc<Self>, name: &str) -> BucketHearing {
        BucketHearing { all: self.clone(), name: name.into(), root: PathHash::of_bucket(name) }
    }
}

/// What is heard of one bucket.
#[derive(Clone)]
pub struct BucketHearing {
    all: Arc<Hearing>,
    name: Box<str>,
    root: PathHash,
}

impl BucketHearing {
    /// Where paths of keys begin.
    pub fn root(&self) -> PathHash {
        self.root
    }

    /// How long names are taken as true that are so for `short` where no feed lives.
    pub fn lifetime(&self, short: Duration, now: Instant) -> Lifetime {
        let pulse = self.all.pulse.read().unwrap_or_else(PoisonError::into_inner);
        let span = pulse.of_bucket(&self.name, now).map(|(span, _)| span);
        Lifetime { short, long: self.all.long, span }
    }

    /// What was heard of a file, or of a name that is not there.
    pub fn of_name(&self, path: PathHash) -> Marked {
        self.all.marks.of_name(path)
    }

    /// What was heard of a directory, whose path ends without a slash.
    pub fn of_dir(&self, path: PathHash) -> Marked {
        self.all.marks.of_dir(path)
    }

    /// What was heard of the names in a directory, whose path ends in a slash.
    pub fn of_listing(&self, path: PathHash) -> Marked {
        self.all.marks.of_listing(path)
    }

    /// How long a change may go unseen at the most, where metadata is taken as true for `short`. Only of a
    /// relay whose own object came back to it is it known that events come at all.
    pub fn staleness(&self, short: Duration, now: Instant) -> Duration {
        let pulse = self.all.pulse.read().unwrap_or_else(PoisonError::into_inner);
        let long = self.all.long.max(short);
        match pulse.of_bucket(&self.name, now) {
            None => short,
            Some((_, None)) => long,
            Some((_, Some(canary))) => {
                let delivery = Duration::from_millis(canary);
                delivery.saturating_add(self.all.timeout).saturating_add(short).min(long)
            }
        }
    }

    /// Announces what was written here.
    pub fn wrote(&self, key: &str, gone: bool) {
        let change = Change { bucket: self.name.clone(), key: key.into(), gone };
        if self.all.written.try_send(change).is_err() {
            self.all.written_too_much.send_modify(|lost| *lost += 1);
        }
    }

    /// From now on this is told of each change, for as long as it is there.
    pub fn listen(&self, listener: Weak<dyn Listener>) {
        self.all.listen(&self.name, listener);
    }
}
