//! What regions are to forget, kept in the index of the cache from one run to the next.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use crate::cache::{NodeCache, RegionEviction};
use crate::origin::region::EvictionLog;
use crate::sync::unpoisoned;

/// Keeps rows; those that come while others are put on the medium are put there together.
pub(super) struct KeptEvictions(Arc<Kept>);

struct Kept {
    cache: Arc<NodeCache>,
    /// Of files that earlier runs were writing when they ended: the origin may have what it was sent.
    unfinished: Mutex<Vec<RegionEviction>>,
    /// In the order in which they came.
    queue: Mutex<Vec<RegionEviction>>,
    /// Held by whoever puts them on the medium.
    turn: tokio::sync::Mutex<()>,
}

impl KeptEvictions {
    /// `unfinished` are bucket and key of files that earlier runs were writing when they ended.
    pub(super) fn new(cache: Arc<NodeCache>, unfinished: Vec<(String, String)>) -> Self {
        let unfinished = unfinished.into_iter().map(|(bucket, key)| row(&bucket, &key, true));
        let unfinished = Mutex::new(unfinished.collect());
        let (queue, turn) = Default::default();
        Self(Arc::new(Kept { cache, unfinished, queue, turn }))
    }
}

fn row(bucket: &str, key: &str, is_due: bool) -> RegionEviction {
    RegionEviction { bucket: bucket.into(), key: key.into(), is_due }
}

impl Kept {
    fn add(&self, rows: impl IntoIterator<Item = RegionEviction>) {
        unpoisoned(self.queue.lock()).extend(rows);
    }

    /// Returns once all that was added before is on the medium, or is not taken there.
    async fn flush(&self) {
        let _turn = self.turn.lock().await;
        let rows = std::mem::take(&mut *unpoisoned(self.queue.lock()));
        if !rows.is_empty() {
            self.cache.note_region_evictions(&rows).await;
        }
    }
}

#[async_trait]
impl EvictionLog for KeptEvictions {
    async fn found(&self) -> Vec<(Box<str>, Box<str>)> {
        let unfinished = std::mem::take(&mut *unpoisoned(self.0.unfinished.lock()));
        let names = unfinished.iter().map(|row| (row.bucket.clone(), row.key.clone()));
        let mut found: BTreeSet<_> = names.collect();
        self.0.add(unfinished);
        self.0.flush().await;
        let kept = self.0.cache.region_evictions().await;
        found.extend(kept.into_iter().map(|row| (row.bucket, row.key)));
        found.into_iter().collect()
    }

    async fn note(&self, bucket: &str, key: &str) {
        self.0.add([row(bucket, key, true)]);
        // In a task of its own: what one has begun to put there is others', too.
        let kept = self.0.clone();
        let _ = tokio::spawn(async move { kept.flush().await }).await;
    }

    fn forget(&self, bucket: &str, keys: Vec<Box<str>>) {
        self.0.add(keys.iter().map(|key| row(bucket, key, false)));
        let kept = self.0.clone();
        tokio::spawn(async move { kept.flush().await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocking::MAY;
    use crate::cache::CacheSettings;
    use crate::metrics::Metrics;

    fn names(found: &[(Box<str>, Box<str>)]) -> Vec<(&str, &str)> {
        found.iter().map(|(bucket, key)| (&**bucket, &**key)).collect()
    }

    #[tokio::test]
    async fn what_regions_are_to_forget_and_what_was_being_written_a_later_run_finds() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let metrics = Arc::new(Metrics::new().unwrap());
            NodeCache::open(MAY, &CacheSettings::one(dir.path(), u64::MAX, 0), metrics).unwrap()
        };
        let cache = open();
        let log = KeptEvictions::new(cache.clone(), Vec::new());
        assert_eq!(log.found().await, []);
        let noted = ["x", "y", "z"].map(|key| log.note("b", key));
        futures_util::future::join_all(noted).await;
        log.forget("b", vec!["y".into()]);
        log.note("c", "x").await;
        drop(log);
        cache.close(MAY);
        drop(cache);
        let cache = open();
        let unfinished = vec![("b".to_owned(), "u".to_owned()), ("b".to_owned(), "x".to_owned())];
        let log = KeptEvictions::new(cache.clone(), unfinished);
        let all = [("b", "u"), ("b", "x"), ("b", "z"), ("c", "x")];
        assert_eq!(names(&log.found().await), all);
        // Its record may be gone by now.
        assert_eq!(names(&log.found().await), all);
        cache.close(MAY);
    }
}
