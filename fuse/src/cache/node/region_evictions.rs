//! What regions are to forget, kept beside what belongs to no version.

use std::sync::Arc;

use super::NodeCache;
use crate::blocking::in_place;
use crate::cache::commit::batch;
use crate::cache::disk::DiskCache;
use crate::cache::index::RegionEviction;

impl NodeCache {
    /// What regions are to forget, as far as disks say that answer.
    pub async fn region_evictions(&self) -> Vec<RegionEviction> {
        let mut rows = Vec::new();
        for disk in &self.disks {
            if let Some(_turn) = self.turn_at(disk).await {
                let _call = disk.shared.call();
                rows.extend(in_place(|may| disk.index.region_evictions(may)));
            }
        }
        rows
    }

    /// Puts it on the medium that regions are to forget something, or need not any more. What no index
    /// takes a later process does not know.
    pub async fn note_region_evictions(&self, rows: &[RegionEviction]) {
        let main = self.main().clone();
        self.note_at(&main, rows).await;
        // One that is over may be noted where another disk was used.
        let over: Vec<_> = rows.iter().filter(|row| !row.is_due).cloned().collect();
        for disk in self.disks.iter().filter(|disk| !Arc::ptr_eq(disk, &main)) {
            self.note_at(disk, &over).await;
        }
    }

    async fn note_at(&self, disk: &Arc<DiskCache>, rows: &[RegionEviction]) {
        if rows.is_empty() {
            return;
        }
        let Some(_turn) = self.turn_at(disk).await else { return };
        let _call = disk.shared.call();
        let note = |may: &_| {
            batch::apply(may, &disk.shared, &disk.index, |index| {
                index.note_region_evictions(may, rows)
            })
        };
        if let Err(error) = in_place(note) {
            tracing::debug!(%error, "a later run is not told what a region is to forget");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocking::MAY;
    use crate::cache::{CacheSettings, DiskSettings};
    use crate::metrics::Metrics;

    fn row(key: &str, is_due: bool) -> RegionEviction {
        RegionEviction { bucket: "b".into(), key: key.into(), is_due }
    }

    #[tokio::test]
    async fn what_a_region_is_to_forget_is_known_to_a_later_process_until_it_need_not() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let disk = |of: usize| DiskSettings::new(dirs[of].path().to_owned(), u64::MAX, 0);
        let open = |disks: Vec<DiskSettings>| {
            let metrics = Arc::new(Metrics::new().unwrap());
            NodeCache::open(MAY, &CacheSettings { disks }, metrics).unwrap()
        };
        let cache = open(vec![disk(0), disk(1)]);
        cache.note_region_evictions(&[row("a", true), row("b", true), row("c", true)]).await;
        cache.note_region_evictions(&[row("b", false), row("b", true), row("c", false)]).await;
        cache.close(MAY);
        drop(cache);
        // The disk that they are on is not the first one now.
        let cache = open(vec![disk(1), disk(0)]);
        assert_eq!(cache.region_evictions().await, [row("a", true), row("b", true)]);
        cache.note_region_evictions(&[row("a", false)]).await;
        assert_eq!(cache.region_evictions().await, [row("b", true)]);
        cache.close(MAY);
        // Without an index nobody waits for ever.
        cache.note_region_evictions(&[row("a", true)]).await;
        assert_eq!(cache.region_evictions().await, []);
    }
}
