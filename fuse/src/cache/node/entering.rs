//! Mounts that begin to use a bucket. Every disk is told, each in its turn, and no longer waited for than
//! a mount can wait: by one that has not said who else uses the bucket, somebody else does.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::{NodeCache, lock};
use crate::blocking::MayBlock;
use crate::cache::disk::DiskCache;
use crate::cache::index::Signer;
use crate::cache::tenants::Tenancy;
use crate::model::version::BucketId;

/// How long a disk is waited for, whoever has asked it: so much less than a mount may take to go on under
/// another engine that there is time for the rest. A busy one is quicker.
const ANSWERS: Duration = Duration::from_secs(3);

fn hangs(disk: &DiskCache) -> bool {
    disk.shared.silence() > ANSWERS
}

/// Asks a disk in its turn, on a thread that waits for nothing else. It goes on to its end, whether or
/// not anybody waits for it; `None`: it has none.
async fn ask<T: Send + 'static>(
    disk: &Arc<DiskCache>,
    question: impl FnOnce(&MayBlock, &DiskCache) -> T + Send + 'static,
) -> Option<T> {
    let asked = disk.clone();
    disk.shared.calls.beside(move |may| question(may, &asked)).await.await.ok()
}

impl NodeCache {
    /// Notes that somebody uses the bucket, until what is returned is dropped. A disk that does not say
    /// soon how he stands may still: then that counts.
    pub async fn enter(&self, bucket: &BucketId, signer: Signer) -> Tenancy {
        let tenants = lock(&self.tenants).entry(bucket.clone()).or_default().clone();
        let (arrival, mut tenancy) = tenants.arrive(&signer.identity, self.disks.len());
        for (number, disk) in self.disks.iter().enumerate() {
            let (disk, bucket, signer) = (disk.clone(), bucket.clone(), signer.clone());
            let arrival = arrival.clone();
            tokio::spawn(async move {
                let told = arrival.clone();
                let lives = move |identity: &str| told.lives(identity);
                let asked =
                    ask(&disk, move |may, disk| disk.enter(may, &bucket, &signer, lives)).await;
                // Who hears of it may end the cache, and open it again.
                drop(disk);
                arrival.note(number, asked.unwrap_or_default());
            });
        }
        let hangs = |number: usize| self.disks.get(number).is_none_or(|disk| hangs(disk));
        let _ = tokio::time::timeout(ANSWERS, arrival.until_said(hangs)).await;
        arrival.begin(&mut tenancy);
        tenancy
    }

    /// What somebody was known as before, the latest first; `None` for one who has not used the
    /// bucket, as far as the disks say that answer.
    pub async fn former_of(&self, bucket: &BucketId, identity: &str) -> Option<Vec<String>> {
        for disk in self.disks.iter().filter(|disk| !hangs(disk)) {
            let (bucket, identity) = (bucket.clone(), identity.to_owned());
            let asked = ask(disk, move |may, disk| disk.former_of(may, &bucket, &identity));
            if let Ok(Some(Some(former))) = tokio::time::timeout(ANSWERS, asked).await {
                return Some(former);
            }
        }
        None
    }

    /// Does something with all that somebody was known as before, as soon as each disk has said what that
    /// was: one that answers late is not waited for, and is heard all the same.
    pub async fn with_former(
        self: &Arc<Self>,
        bucket: &BucketId,
        identity: &str,
        work: impl Fn(&Self, &str) + Clone + Send + 'static,
    ) {
        let each = self.disks.iter().map(|disk| {
            let (disk, bucket, identity) = (disk.clone(), bucket.clone(), identity.to_owned());
            let (cache, work) = (Arc::downgrade(self), work.clone());
            tokio::spawn(async move {
                let asked = ask(&disk, move |may, disk| disk.former_of(may, &bucket, &identity));
                let former = asked.await.flatten().unwrap_or_default();
                let Some(cache) = cache.upgrade() else { return };
                former.iter().for_each(|name| work(&cache, name));
            })
        });
        let _ = tokio::time::timeout(ANSWERS, join_all(each.collect::<Vec<_>>())).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::sync::mpsc;

    use tokio::runtime::Builder;

    use super::*;
    use crate::blocking::{MAY, beside};
    use crate::cache::{CacheSettings, DiskSettings};
    use crate::metrics::Metrics;

    /// Only a hang takes so long.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn signer(identity: impl ToString) -> Signer {
        Signer { identity: identity.to_string(), ..Signer::default() }
    }

    fn is_alone(tenancy: &Tenancy) -> bool {
        !tenancy.several.load(Ordering::Relaxed)
    }

    /// More mounts begin than there are turns, or threads, while one of two disks does not answer.
    #[test]
    fn a_disk_that_does_not_answer_keeps_few_threads_and_no_mount_that_begins() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let disk = |folder: &tempfile::TempDir| DiskSettings::new(folder.path().into(), 1 << 30, 0);
        let settings = CacheSettings { disks: folders.iter().map(disk).collect() };
        let cache = NodeCache::open(MAY, &settings, Arc::new(Metrics::new().unwrap())).unwrap();
        let mut builder = Builder::new_multi_thread();
        // A disk has sixteen turns.
        let runtime =
            builder.worker_threads(1).max_blocking_threads(24).enable_all().build().unwrap();
        let bucket = |n: usize| BucketId::new("http://s3", &n.to_string());
        let begin = |n: usize| {
            let cache = cache.clone();
            async move { cache.enter(&bucket(n), signer("one")).await }
        };
        let (told, begun) = mpsc::channel();
        let (mounts, all_wait) = cache.disks[0].index.stalled(|| {
            for n in 0..40 {
                let (begin, told) = (begin(n), told.clone());
                runtime.spawn(async move { told.send(begin.await).unwrap() });
            }
            let mounts: Vec<_> = (0..40).map_while(|_| begun.recv_timeout(PATIENCE).ok()).collect();
            let all_wait = !mounts.iter().any(is_alone);
            // There is a thread for others.
            let (told, other) = mpsc::channel();
            runtime.spawn(async move { told.send(beside(|_| ()).await.is_ok()).unwrap() });
            assert_eq!(other.recv_timeout(PATIENCE), Ok(true));
            (mounts, all_wait)
        });
        assert_eq!((mounts.len(), all_wait), (40, true));
        // It answers, and each is known to be alone with his bucket.
        let until = std::time::Instant::now() + PATIENCE;
        while !mounts.iter().all(is_alone) {
            assert!(std::time::Instant::now() < until, "what it says at last is not heard");
            std::thread::sleep(Duration::from_millis(10));
        }
        let known = |n| runtime.block_on(cache.former_of(&bucket(n), "one"));
        assert!((0..40).all(|n| known(n).is_some()) && known(40).is_none());
        cache.close(MAY);
    }
}
