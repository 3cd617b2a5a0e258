//! What comes from a store, published, and confirmed before it is said to be taken.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use weir_fuse::feed::Change;
use weir_fuse::feed::publisher::{PublishError, Publisher};
use weir_fuse::feed::records::{self, Unreadable};
use weir_fuse::metrics::Metrics;

use crate::config::feed_from::{CanaryPlace, FeedFrom};

/// Where changes are published.
#[async_trait]
pub(super) trait Announce: Send + Sync {
    /// Returns once the server has all of them.
    async fn announce(&self, changes: Vec<Change>) -> Result<(), PublishError>;

    /// Notes that something may have been changed that cannot be told.
    async fn skip(&self);

    /// Says whose changes are told, with how late they come, where that is known, in milliseconds.
    fn relays(&self, buckets: BTreeMap<Box<str>, Option<u64>>);
}

#[async_trait]
impl Announce for Publisher {
    async fn announce(&self, changes: Vec<Change>) -> Result<(), PublishError> {
        Publisher::announce(self, changes).await
    }

    async fn skip(&self) {
        Publisher::skip(self).await;
    }

    fn relays(&self, buckets: BTreeMap<Box<str>, Option<u64>>) {
        Publisher::relays(self, buckets);
    }
}

/// What is written and waited for.
struct Waited {
    place: CanaryPlace,
    /// Its tag, without quotes, once it is known: of an object that was written before it is another one.
    tag: Option<String>,
    written: Instant,
    /// Messages about it that came before its tag was known.
    early: Vec<(Vec<u8>, Instant)>,
}

/// Messages that are kept until a tag is known: duplicates of an event come, and those of the one before.
const EARLY_MAX: usize = 4;

/// Publishes what comes.
pub(super) struct Relay {
    to: Arc<dyn Announce>,
    buckets: Mutex<BTreeMap<Box<str>, Option<u64>>>,
    waited: Mutex<Vec<Waited>>,
    counted: Arc<Metrics>,
    /// Whether it takes nothing more.
    has_ended: AtomicBool,
}

impl Relay {
    pub(super) fn new(to: Arc<dyn Announce>, from: &FeedFrom, counted: Arc<Metrics>) -> Self {
        let buckets = from.buckets.iter().map(|bucket| (bucket.as_str().into(), None)).collect();
        let (buckets, waited) = (Mutex::new(buckets), Mutex::default());
        Self { to, buckets, waited, counted, has_ended: AtomicBool::new(false) }
    }

    fn waited(&self) -> MutexGuard<'_, Vec<Waited>> {
        self.waited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes nothing from now on.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }

    /// Says whose changes are told.
    pub(super) fn tell(&self) {
        self.to.relays(self.buckets.lock().unwrap_or_else(PoisonError::into_inner).clone());
    }

    /// Takes messages. Each is to be forgotten by who sent it where this says so of it; what cannot be
    /// read may have said something, and whoever listens is told that something is missing.
    ///
    /// # Errors
    /// The feed's server is not known to have them: whoever sent them keeps all of them.
    pub(super) async fn take(
        &self,
        messages: &[&[u8]],
    ) -> Result<Vec<Result<(), Unreadable>>, PublishError> {
        if self.has_ended.load(Ordering::Relaxed) {
            return Err(PublishError::Client("this relay ends".into()));
        }
        let count = |outcome, number: usize| {
            self.counted.feed_relayed.with_label_values(&[outcome]).inc_by(number as u64);
        };
        let mut all = Vec::new();
        let mut waited_for = Vec::new();
        let mut read = Vec::with_capacity(messages.len());
        for message in messages {
            let changes = records::changes(message);
            read.push(changes.map(|changes| {
                let places = self.waited_for(&changes);
                waited_for.extend(places.into_iter().map(|place| (place, *message)));
                all.extend(changes);
            }));
        }
        let unreadable = read.iter().filter(|read| read.is_err()).count();
        if unreadable > 0 {
            self.to.skip().await;
            count("unreadable", unreadable);
        }
        let readable = messages.len() - unreadable;
        if !all.is_empty()
            && let Err(error) = self.to.announce(all).await
        {
            count("unpublished", readable);
            return Err(error);
        }
        count("published", readable);
        // Only now: it has come as far as the feed's server.
        waited_for.iter().for_each(|(place, message)| {
            self.note_canary(place, message, Instant::now());
        });
        Ok(read)
    }

    /// What of these is waited for.
    fn waited_for(&self, changes: &[Change]) -> Vec<CanaryPlace> {
        let is_among = |place: &CanaryPlace| {
            changes.iter().any(|c| *c.bucket == *place.bucket && *c.key == *place.key)
        };
        let waited = self.waited();
        waited.iter().map(|waited| &waited.place).filter(|place| is_among(place)).cloned().collect()
    }

    /// From now on the event of an object is waited for that is being written.
    pub(super) fn begin_waiting(&self, place: &CanaryPlace) {
        let mut waited = self.waited();
        waited.retain(|waited| waited.place != *place);
        let (place, written) = (place.clone(), Instant::now());
        waited.push(Waited { place, tag: None, written, early: Vec::new() });
    }

    /// It is written, and this is its tag.
    pub(super) fn wait_for(&self, place: &CanaryPlace, tag: &str) {
        let mut waited = self.waited();
        let Some(this) = waited.iter_mut().find(|waited| waited.place == *place) else { return };
        this.tag = Some(tag.trim_matches('"').to_owned());
        let early = std::mem::take(&mut this.early);
        drop(waited);
        early.iter().for_each(|(message, at)| self.note_canary(place, message, *at));
    }

    /// Notes a message about a place, that came at this time.
    fn note_canary(&self, place: &CanaryPlace, message: &[u8], at: Instant) {
        let mut waited = self.waited();
        let Some(index) = waited.iter().position(|waited| waited.place == *place) else { return };
        let this = &mut waited[index];
        let Some(tag) = this.tag.as_deref().map(str::as_bytes) else {
            if this.early.len() < EARLY_MAX {
                this.early.push((message.to_owned(), at));
            }
            return;
        };
        if message.windows(tag.len()).any(|some| some == tag) {
            let written = waited.swap_remove(index).written;
            drop(waited);
            self.prove(place, Some(at.saturating_duration_since(written)));
        }
    }

    /// Whether it is still waited for what was written; it is not any more.
    pub(super) fn give_up(&self, place: &CanaryPlace) -> bool {
        let mut waited = self.waited();
        let before = waited.len();
        waited.retain(|waited| waited.place != *place);
        waited.len() < before
    }

    /// Says how late changes of a bucket come.
    pub(super) fn prove(&self, place: &CanaryPlace, late: Option<Duration>) {
        let millis = |late: Duration| u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.insert(place.bucket.as_str().into(), late.map(millis));
        drop(buckets);
        self.tell();
    }
}
