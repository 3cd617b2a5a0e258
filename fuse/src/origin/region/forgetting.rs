//! Has a region forget what it has of keys that were changed at the origin, or that it has otherwise
//! than the origin: in the background, whatever the region does.
//!
//! A key whose change is about to be sent is in a log before that, or in the record of whoever sends
//! it, and stays there until the region has forgotten it after the change. So a process that dies
//! leaves the next one what to send; that one sends more than it would have to, which harms nobody.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::evictions::End;
use super::{Region, Verdict};
use crate::origin::OriginError;

/// How often a list is sent: what comes meanwhile goes together.
const EVERY: Duration = Duration::from_secs(1);
/// Longest wait for a region that was told a list.
const TOLD: Duration = Duration::from_secs(60);
/// Longest wait for the log, for whoever has no record of his own. What is later is in memory only.
const LOGGED: Duration = Duration::from_secs(1);

/// Remembers beyond the end of the process what regions are to forget.
#[async_trait]
pub trait EvictionLog: Send + Sync + 'static {
    /// Bucket and key of all that is in it, in their order.
    async fn found(&self) -> Vec<(Box<str>, Box<str>)>;

    /// Returns once this is on the medium, or cannot be put there.
    async fn note(&self, bucket: &str, key: &str);

    /// Forgets keys, in the background, and after what was noted before.
    fn forget(&self, bucket: &str, keys: Vec<Box<str>>);
}

/// The log of all buckets, once there is one.
pub(super) type Log = Arc<OnceLock<Arc<dyn EvictionLog>>>;

/// A request under way that changes what a key names.
pub(super) struct Change {
    region: Arc<Region>,
    key: Box<str>,
    is_kept: bool,
    end: End,
}

impl Change {
    /// Returns once the key is in the log, or that takes too long.
    pub(super) async fn note(&self) {
        let Some(log) = self.region.log.get().filter(|_| !self.is_kept) else { return };
        if timeout(LOGGED, log.note(&self.region.log_name, &self.key)).await.is_ok() {
            self.region.evictions.note_kept(&self.key);
        }
    }

    /// The request has ended so.
    pub(super) fn end<T>(mut self, outcome: &Result<T, OriginError>) {
        self.end = match outcome {
            Err(error) if error.is_transient() => End::InDoubt,
            Err(
                OriginError::Denied(_) | OriginError::NoCredentials(_) | OriginError::NoSuchBucket,
            ) => End::Refused,
            _ => End::Changed,
        };
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let region = &self.region;
        region.evictions.end(&self.key, self.end, |keys| region.forget_logged(keys));
        self.region.follow();
    }
}

impl Region {
    /// Takes notice that a request is about to change what a key names. `None`: the region has nothing
    /// of it to forget, or too many keys wait.
    pub(super) fn change(self: &Arc<Self>, key: &str) -> Option<Change> {
        if !self.replica.can_forget(key) {
            return None;
        }
        let is_kept = self.evictions.begin(key)?;
        Some(Change { region: self.clone(), key: key.into(), is_kept, end: End::InDoubt })
    }

    /// Has the region forget what it has of a key.
    pub(super) fn refresh(self: &Arc<Self>, key: &str) {
        if self.replica.can_forget(key) {
            self.evictions.add(key);
            self.follow();
        }
    }

    /// Has the region forget what an earlier process left to be forgotten.
    pub(super) fn take_over(self: &Arc<Self>, keys: Vec<Box<str>>) {
        let (can, cannot) =
            keys.into_iter().partition::<Vec<_>, _>(|key| self.replica.can_forget(key));
        self.forget_logged(cannot);
        self.evictions.add_found(&can);
        self.follow();
    }

    fn forget_logged(&self, keys: Vec<Box<str>>) {
        if let Some(log) = self.log.get().filter(|_| !keys.is_empty()) {
            log.forget(&self.log_name, keys);
        }
    }

    /// Begins to send what waits, unless that is done already. The region is there meanwhile, whether
    /// or not anybody reads the bucket.
    fn follow(self: &Arc<Self>) {
        // The end of a runtime drops what was under way.
        let Ok(home) = Handle::try_current() else { return };
        if !self.evictions.follow() {
            return;
        }
        let region = self.clone();
        home.spawn(async move {
            while !region.evictions.rest() {
                sleep(EVERY).await;
                region.send_list().await;
            }
        });
    }

    /// Sends a list of what is due, where the region is not left alone.
    pub(super) async fn send_list(&self) {
        let list = self.evictions.next(Instant::now());
        if list.is_empty() {
            return;
        }
        let Some(leave) = self.enter(Instant::now()) else {
            self.evictions.put_back(&list);
            return;
        };
        let keys: Vec<&str> = list.iter().map(|listed| &*listed.key).collect();
        let told = timeout(TOLD, self.replica.forget(&keys)).await;
        let told = told.unwrap_or_else(|_| Err(OriginError::Busy("it is not told in time".into())));
        let verdict = told.as_ref().map_or_else(Verdict::of, |()| Verdict::Given);
        // That it may be told nothing does not keep it from giving bytes.
        if matches!(verdict, Verdict::Given | Verdict::Silent) {
            self.note(leave, verdict, told.as_ref().err());
        }
        match told {
            Ok(()) => {
                tracing::debug!(bucket = %self.bucket, keys = keys.len(), "the region has forgotten");
                self.evictions.forgotten(list, |keys| self.forget_logged(keys));
            }
            Err(error) => {
                let (bucket, keys) = (&self.bucket, keys.len());
                tracing::warn!(%bucket, keys, %error, "the region is not told what it is to forget; it will be");
                self.evictions.failed(&list, Instant::now());
            }
        }
    }
}
