//! One server of a region: what it has of each bucket.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use super::aistore::AiStore;
use super::breaker::Breaker;
use super::bucket::ReplicaBucket;
use super::forgetting::Log;
use super::{Region, RegionKind, RegionSettings, Replica};
use crate::blocking::aside;
use crate::metrics::Metrics;
use crate::origin::OriginError;
use crate::sync::unpoisoned;

/// What there is of a bucket at the server, as long as somebody uses it. Locked while it is made.
type Slot = Arc<tokio::sync::Mutex<Weak<Region>>>;

/// A server.
pub(super) struct Server {
    settings: RegionSettings,
    /// Stands behind a bucket's name in the log of evictions; the first of several has none.
    log_suffix: String,
    breaker: Arc<Breaker>,
    by_bucket: Mutex<HashMap<Box<str>, Slot>>,
    /// What earlier processes left to be forgotten, of buckets that nobody has asked for yet.
    found: Mutex<HashMap<Box<str>, Vec<Box<str>>>>,
}

impl Server {
    /// Sends nothing. `is_first`: none was named before it.
    pub(super) fn new(settings: RegionSettings, is_first: bool) -> Self {
        let log_suffix = match is_first {
            true => String::new(),
            false => format!("\u{1f}{}", settings.url.trim_end_matches('/')),
        };
        let (breaker, by_bucket, found) = Default::default();
        Self { settings, log_suffix, breaker, by_bucket, found }
    }

    pub(super) fn url(&self) -> &str {
        &self.settings.url
    }

    /// Whether it is left alone, or what it has of some bucket is.
    pub(super) fn is_shut(&self) -> bool {
        let slots: Vec<_> = unpoisoned(self.by_bucket.lock()).values().cloned().collect();
        let regions = slots.iter().filter_map(|slot| slot.try_lock().ok()?.upgrade());
        self.breaker.is_shut() || regions.into_iter().any(|region| region.is_shut())
    }

    /// What stands for a bucket of it in the log of evictions.
    pub(super) fn log_name(&self, bucket: &str) -> String {
        format!("{bucket}{}", self.log_suffix)
    }

    /// The bucket for which this stands in the log, if that is one of this server.
    pub(super) fn bucket_of<'a>(&self, log_name: &'a str) -> Option<&'a str> {
        let bucket = log_name.strip_suffix(&*self.log_suffix)?;
        (!bucket.contains('\u{1f}')).then_some(bucket)
    }

    /// This was left to be forgotten.
    pub(super) fn note_found(&self, bucket: &str, key: Box<str>) {
        unpoisoned(self.found.lock()).entry(bucket.into()).or_default().push(key);
    }

    /// Buckets of which something was left to be forgotten.
    pub(super) fn found_buckets(&self) -> Vec<Box<str>> {
        unpoisoned(self.found.lock()).keys().cloned().collect()
    }

    /// What it has of a bucket.
    ///
    /// # Errors
    /// [`OriginError::Invalid`] where a file that is named cannot be used, or it is of another kind.
    pub(super) async fn of(
        &self,
        bucket: &str,
        metrics: &Arc<Metrics>,
        log: &Log,
    ) -> Result<Arc<Region>, OriginError> {
        let slot = self.slot(bucket);
        let mut known = slot.lock().await;
        let region = match known.upgrade() {
            Some(region) => region,
            None => {
                let replica = self.replica(bucket).await?;
                let (breaker, metrics) = (self.breaker.clone(), metrics.clone());
                let names = (bucket, &*self.log_name(bucket));
                Region::new(names, replica, breaker, metrics, log.clone())
            }
        };
        *known = Arc::downgrade(&region);
        if log.get().is_some()
            && let Some(keys) = unpoisoned(self.found.lock()).remove(bucket)
        {
            region.take_over(keys);
        }
        Ok(region)
    }

    #[cfg(test)]
    pub(super) fn buckets(&self) -> usize {
        unpoisoned(self.by_bucket.lock()).len()
    }

    fn slot(&self, bucket: &str) -> Slot {
        let mut by_bucket = unpoisoned(self.by_bucket.lock());
        // One that is locked, or waited for, somebody else has, too.
        by_bucket.retain(|_, slot| {
            Arc::strong_count(slot) > 1
                || slot.try_lock().is_ok_and(|region| region.strong_count() > 0)
        });
        by_bucket.entry(bucket.into()).or_default().clone()
    }

    async fn replica(&self, bucket: &str) -> Result<Box<dyn Replica>, OriginError> {
        Ok(match self.settings.kind {
            RegionKind::AiStore => {
                let (settings, bucket) = (self.settings.clone(), bucket.to_owned());
                Box::new(aside(move |may| AiStore::new(may, &settings, &bucket)).await?)
            }
            RegionKind::S3 => Box::new(ReplicaBucket::new(&self.settings, bucket).await?),
        })
    }
}
