//! Large objects that a region does not have yet. A range of one has AIStore fetch all of it before the
//! first byte: it is asked for the whole object instead, and for bytes once it has that.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{FIRST_BYTE, Region, STALL};
use crate::model::blocks::BLOCK;
use crate::model::version::{ETag, Version};
use crate::origin::OriginError;
use crate::sync::unpoisoned;

/// What a region fetches whole in so long it is asked for at once.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Bytes a second that a region fetches, as long as that was not seen: of a link of 1 Gbit/s, what one
/// connection gets.
const RATE: u64 = 64 << 20;
/// The least that is believed of what was seen.
const RATE_MIN: u64 = BLOCK;
/// How long a region has what it had.
const PRESENT: Duration = Duration::from_secs(300);
/// How long it is not asked to fetch what it did not.
const GIVEN_UP: Duration = Duration::from_secs(60);
/// How often it is asked whether it has fetched an object: at first, and after a while.
const POLL: Duration = Duration::from_millis(200);
const POLL_MAX: Duration = Duration::from_secs(2);
/// How long it may take, besides four times what the bytes take at the rate that was seen.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often in a row it may be that it does not say how far it is.
const FAILURES_MAX: u32 = 3;
/// Objects that are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// What is known of a region's large objects, for one bucket.
pub(super) struct ColdObjects {
    state: Mutex<State>,
}

struct State {
    /// Bytes a second that it fetches.
    rate: u64,
    objects: LruCache<Box<str>, Object>,
}

struct Object {
    etag: ETag,
    /// Follows what its watch finds out.
    presence: watch::Receiver<Presence>,
}

/// Whether a region has an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Presence {
    /// It is being asked.
    Unknown,
    /// Not yet: it fetches it.
    Coming,
    /// It has it, as of then.
    Present(Instant),
    /// It does not, and does not come to have it; as of then.
    Absent(Instant),
}

impl Default for ColdObjects {
    fn default() -> Self {
        Self { state: Mutex::new(State { rate: RATE, objects: LruCache::new(REMEMBERED) }) }
    }
}

impl State {
    fn is_soon_there(&self, size: u64) -> bool {
        let takes = Duration::from_millis(size.saturating_mul(1000) / self.rate.max(1));
        size <= BLOCK || takes <= AT_ONCE
    }

    fn object(&mut self, key: &str, etag: &ETag, now: Instant) -> Option<(&Object, Presence)> {
        let object = self.objects.get(key).filter(|object| object.etag == *etag)?;
        let presence = *object.presence.borrow();
        let counts = match presence {
            // A watch that was cut short finds out nothing more.
            Presence::Unknown | Presence::Coming => object.presence.has_changed().is_ok(),
            Presence::Present(at) => now < at + PRESENT,
            Presence::Absent(at) => now < at + GIVEN_UP,
        };
        counts.then_some((object, presence))
    }
}

impl ColdObjects {
    /// Whether a region fetches an object of so many bytes about as soon as a range of it.
    pub(super) fn is_soon_there(&self, size: u64) -> bool {
        self.state().is_soon_there(size)
    }

    /// What is known of a version.
    pub(super) fn presence(&self, key: &str, etag: &ETag, now: Instant) -> Option<Presence> {
        self.state().object(key, etag, now).map(|(_, presence)| presence)
    }

    /// Takes notice that a region was late with an object. Returns whether it is to be left alone with it:
    /// it had it, or should have had it by then. Else it is seen next time how far it is.
    pub(super) fn was_late(&self, key: &str, size: u64) -> bool {
        let mut state = self.state();
        if state.objects.pop(key).is_some() {
            return true;
        }
        let seen = size.saturating_mul(1000) / FIRST_BYTE.as_millis() as u64;
        state.rate = state.rate.min(seen).max(RATE_MIN);
        state.is_soon_there(size)
    }

    /// Forgets what is known of an object that it does not have after all.
    pub(super) fn forget(&self, key: &str) {
        self.state().objects.pop(key);
    }

    /// Takes notice of how long it took to fetch an object.
    fn took(&self, size: u64, elapsed: Duration) {
        let mut state = self.state();
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        let seen = size.saturating_mul(1000) / millis;
        state.rate = (state.rate / 4 * 3).saturating_add(seen / 4).max(RATE_MIN);
    }

    /// How long a region may take to fetch so many bytes.
    fn patience(&self, size: u64) -> Duration {
        PATIENCE + Duration::from_millis(size.saturating_mul(1000) / self.state().rate) * 4
    }

    /// As if that had been seen: bytes a second.
    #[cfg(test)]
    pub(super) fn assume_rate(&self, rate: u64) {
        self.state().rate = rate;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }
}

impl Region {
    /// Whether it has a large version now, as far as that matters to it. Where it does not, it is asked to
    /// fetch it; where that is not known, it is asked, and waited for shortly.
    pub(super) async fn has(self: &Arc<Self>, key: &str, version: &Version) -> bool {
        let mut presence = self.watched(key, version);
        let known = presence.wait_for(|presence| *presence != Presence::Unknown);
        let known = timeout(FIRST_BYTE, known).await;
        matches!(known, Ok(Ok(presence)) if matches!(*presence, Presence::Present(_)))
    }

    /// Follows whether it has a version.
    fn watched(self: &Arc<Self>, key: &str, version: &Version) -> watch::Receiver<Presence> {
        let mut state = self.cold.state();
        if let Some((object, _)) = state.object(key, &version.etag, Instant::now()) {
            return object.presence.clone();
        }
        let (sender, presence) = watch::channel(Presence::Unknown);
        let object = Object { etag: version.etag.clone(), presence: presence.clone() };
        state.objects.put(key.into(), object);
        let (region, key, version) = (self.clone(), Box::<str>::from(key), version.clone());
        tokio::spawn(async move { region.watch(&key, &version, sender).await });
        presence
    }

    /// Finds out whether it has an object, and else has it fetch it.
    async fn watch(&self, key: &str, version: &Version, presence: watch::Sender<Presence>) {
        let size = version.size;
        let outcome = match self.has_now(key, &version.etag).await {
            Ok(true) => "present",
            Ok(false) => {
                presence.send_replace(Presence::Coming);
                let began = Instant::now();
                match timeout(self.cold.patience(size), self.fetched(key, &version.etag)).await {
                    Ok(Ok(true)) => {
                        self.cold.took(size, began.elapsed());
                        "fetched"
                    }
                    ended => {
                        let error = ended.ok().and_then(Result::err).map(|error| error.to_string());
                        tracing::debug!(key, error, "the region does not come to have it");
                        "failed"
                    }
                }
            }
            Err(error) => {
                tracing::debug!(key, %error, "the region does not say whether it has it");
                if let Some(leave) = self.enter(Instant::now()) {
                    self.told(leave, Some(&error));
                }
                "unknown"
            }
        };
        self.metrics.region_prefetches.with_label_values(&[outcome]).inc();
        let now = Instant::now();
        presence.send_replace(match outcome {
            "present" | "fetched" => Presence::Present(now),
            _ => Presence::Absent(now),
        });
    }

    async fn has_now(&self, key: &str, etag: &ETag) -> Result<bool, OriginError> {
        let Some(jobs) = self.replica.jobs() else { return Ok(true) };
        in_time(jobs.has(key, etag)).await
    }

    /// Has it fetch an object; returns whether it has it then.
    async fn fetched(&self, key: &str, etag: &ETag) -> Result<bool, OriginError> {
        let Some(jobs) = self.replica.jobs() else { return Ok(true) };
        let job = in_time(jobs.fetch(key)).await?;
        let (mut pause, mut failures) = (POLL, 0);
        loop {
            sleep(pause).await;
            pause = (pause * 5 / 4).min(POLL_MAX);
            match in_time(jobs.has_ended(&job)).await {
                Ok(Some(true)) => return self.has_now(key, etag).await,
                Ok(None) if self.has_now(key, etag).await? => return Ok(true),
                Ok(_) => failures = 0,
                Err(error) if failures == FAILURES_MAX => return Err(error),
                Err(_) => failures += 1,
            }
        }
    }
}

async fn in_time<T>(asks: impl Future<Output = Result<T, OriginError>>) -> Result<T, OriginError> {
    timeout(STALL, asks).await.unwrap_or(Err(OriginError::TimedOut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_large_is_large_is_what_was_seen() {
        let cold = ColdObjects::default();
        assert!(cold.is_soon_there(RATE) && !cold.is_soon_there(2 * RATE));
        // A link of a tenth of that.
        for _ in 0..20 {
            cold.took(RATE, Duration::from_secs(10));
        }
        assert!(cold.is_soon_there(RATE / 12) && !cold.is_soon_there(RATE / 8));
        assert!(cold.patience(RATE) > Duration::from_secs(40));
        // And of ten times as much.
        for _ in 0..20 {
            cold.took(RATE, Duration::from_millis(100));
        }
        assert!(cold.is_soon_there(RATE * 8) && !cold.is_soon_there(RATE * 12));
        for _ in 0..20 {
            cold.was_late("k", 1);
            cold.took(1, Duration::from_secs(3600));
        }
        assert!(cold.is_soon_there(RATE_MIN) && cold.is_soon_there(BLOCK));
    }

    #[test]
    fn no_more_is_remembered_than_is_useful_and_not_for_ever() {
        let (cold, etag, now) = (ColdObjects::default(), ETag::new("e").unwrap(), Instant::now());
        let put = |key: &str, presence| {
            let (_, presence) = watch::channel(presence);
            cold.state().objects.put(key.into(), Object { etag: etag.clone(), presence });
        };
        put("present", Presence::Present(now));
        put("absent", Presence::Absent(now));
        // Its watch has ended in the middle.
        put("coming", Presence::Coming);
        let known = |key, after| cold.presence(key, &etag, now + after).is_some();
        assert!(known("present", Duration::ZERO) && known("absent", Duration::ZERO));
        assert!(known("present", GIVEN_UP) && !known("absent", GIVEN_UP));
        assert!(!known("present", PRESENT) && !known("coming", Duration::ZERO));
        for n in 0..2 * REMEMBERED.get() {
            put(&n.to_string(), Presence::Present(now));
        }
        assert_eq!(cold.state().objects.len(), REMEMBERED.get());
    }
}
