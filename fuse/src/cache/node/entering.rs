//! Mounts that begin to use a bucket. Every disk is told, each in its turn, and no longer waited for than
//! a mount can wait: by one that has not said who else uses the bucket, somebody else does.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;

use super::{NodeCache, lock};
use crate::blocking::MayBlock;
use crate::cache::disk::DiskCache;
use crate::cache::index::Signer;
use crate::cache::tenants::{Tenancy, Tenants};
use crate::model::version::BucketId;

/// How long a disk is waited for, whoever has asked it: so much less than a mount may take to go on under
/// another engine that there is time for the rest. A busy one is quicker.
pub const ANSWERS: Duration = Duration::from_secs(2);

/// How soon a disk is told again that could not note something, first and at last.
const TELL_AGAIN: Duration = Duration::from_secs(1);
const TELL_AGAIN_MAX: Duration = Duration::from_secs(60);

fn hangs(disk: &DiskCache) -> bool {
    disk.shared.silence() > ANSWERS
}

/// Asks a disk in its turn, on a thread that waits for nothing else. It goes on to its end, whether or
/// not anybody waits for it; `None`: it has none, or the disk's cache was closed meanwhile. Who waits for
/// the turn keeps nothing of it, and neither does who has the answer: he may open it again.
fn ask<T, Q>(
    disk: &Arc<DiskCache>,
    question: Q,
) -> impl Future<Output = Option<T>> + Send + 'static + use<T, Q>
where
    T: Send + 'static,
    Q: FnOnce(&MayBlock, &DiskCache) -> T + Send + 'static,
{
    let (calls, disk) = (disk.shared.calls.clone(), Arc::downgrade(disk));
    let question = move |may: &MayBlock| disk.upgrade().map(|disk| question(may, &disk));
    async move { calls.beside(question).await.await.ok().flatten() }
}

/// Tells a disk who came to use a bucket, one after the other, until it has noted all or is closed.
async fn tell(disk: Weak<DiskCache>, number: usize, bucket: BucketId, tenants: Arc<Tenants>) {
    let mut pause = TELL_AGAIN;
    while let Some(news) = tenants.next_news(number) {
        let (bucket, signer, present) = (bucket.clone(), news.signer.clone(), tenants.clone());
        let lives = move |identity: &str| present.lives(identity);
        let enter =
            move |may: &MayBlock, disk: &DiskCache| disk.enter(may, &bucket, &signer, lives);
        let asked = disk.upgrade().map(|disk| ask(&disk, enter));
        let standing = match asked {
            // In a task of its own: where no thread can be had for it, that one panics.
            Some(asked) => tokio::spawn(asked).await.ok().flatten().flatten(),
            None => return,
        };
        tenants.note_told(number, news, standing.as_ref());
        if standing.is_some() {
            pause = TELL_AGAIN;
        } else {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(TELL_AGAIN_MAX);
        }
    }
}

/// What a disk is asked for that nobody waits for to the end, noted until this is dropped: it is asked
/// once at a time.
struct Question {
    cache: Weak<NodeCache>,
    of: (usize, Vec<u8>),
}

impl Question {
    /// `None`: it is asked already.
    fn begin(cache: &Arc<NodeCache>, disk: usize, what: &[u8]) -> Option<Self> {
        let of = (disk, what.to_owned());
        let is_new = lock(&cache.questions).insert(of.clone());
        is_new.then(|| Self { cache: Arc::downgrade(cache), of })
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        if let Some(cache) = self.cache.upgrade() {
            lock(&cache.questions).remove(&self.of);
        }
    }
}

impl NodeCache {
    /// Notes that somebody uses the bucket, until what is returned is dropped. A disk that does not say
    /// soon how he stands may still: then that counts.
    pub async fn enter(&self, bucket: &BucketId, signer: Signer) -> Tenancy {
        let tenants = self.tenants_of(bucket);
        let (arrival, mut tenancy) = tenants.arrive(&signer, self.disks.len());
        for (number, disk) in self.disks.iter().enumerate() {
            if tenants.note_news(number, &signer, &arrival) {
                let disk = Arc::downgrade(disk);
                tokio::spawn(tell(disk, number, bucket.clone(), tenants.clone()));
            }
        }
        let hangs = |number: usize| self.disks.get(number).is_none_or(|disk| hangs(disk));
        let _ = tokio::time::timeout(ANSWERS, arrival.until_said(hangs)).await;
        arrival.begin(&mut tenancy);
        tenancy
    }

    /// Those who use a bucket. Buckets that nobody uses are forgotten.
    fn tenants_of(&self, bucket: &BucketId) -> Arc<Tenants> {
        let mut all = lock(&self.tenants);
        all.retain(|_, tenants| tenants.are_known());
        all.entry(bucket.clone()).or_default().clone()
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
    /// was: one that answers late is not waited for, and is heard all the same. `what` names what is done:
    /// a disk is asked for it once at a time.
    pub async fn with_former(
        self: &Arc<Self>,
        bucket: &BucketId,
        identity: &str,
        what: &[u8],
        work: impl Fn(&Self, &str) + Clone + Send + 'static,
    ) {
        let each = self.disks.iter().enumerate().filter_map(|(number, disk)| {
            let question = Question::begin(self, number, what)?;
            let (bucket, identity) = (bucket.clone(), identity.to_owned());
            let asked = ask(disk, move |may, disk| disk.former_of(may, &bucket, &identity));
            let (cache, work) = (Arc::downgrade(self), work.clone());
            Some(tokio::spawn(async move {
                let former = asked.await.flatten().unwrap_or_default();
                drop(question);
                let Some(cache) = cache.upgrade() else { return };
                former.iter().for_each(|name| work(&cache, name));
            }))
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
    use crate::blocking::{MAY, Turn, beside, in_place};
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
        let cache = open(&folders);
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

    /// What waits for one disk while it does not answer.
    fn turns(cache: &NodeCache) -> Vec<Turn> {
        std::iter::from_fn(|| cache.disks[0].shared.calls.try_take()).collect()
    }

    fn open(folders: &[tempfile::TempDir]) -> Arc<NodeCache> {
        let disk = |folder: &tempfile::TempDir| DiskSettings::new(folder.path().into(), 1 << 30, 0);
        let settings = CacheSettings { disks: folders.iter().map(disk).collect() };
        NodeCache::open(MAY, &settings, Arc::new(Metrics::new().unwrap())).unwrap()
    }

    async fn eventually(what: &str, happens: impl Fn() -> bool) {
        let waits = async {
            while !happens() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waits).await.unwrap_or_else(|_| panic!("never {what}"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn who_gets_new_keys_again_and_again_while_a_disk_does_not_answer_is_alone_after_all() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let cache = open(&folders);
        let bucket = BucketId::new("http://s3", "b");
        let turns = turns(&cache);
        // The disks are to be told of it in this order, and more often than one has turns.
        let mut last = None;
        for n in 0..40 {
            drop(last.take());
            let replaces: Vec<_> = (n > 0).then(|| (n - 1).to_string()).into_iter().collect();
            let signer = Signer { former: replaces.clone(), replaces, ..signer(n) };
            let mut begins = Box::pin(cache.enter(&bucket, signer));
            assert!(tokio::time::timeout(Duration::ZERO, &mut begins).await.is_err());
            last = Some(begins);
        }
        let last = last.unwrap();
        let last = last.await;
        assert!(!is_alone(&last), "one disk has not said");
        drop(turns);
        eventually("alone", || is_alone(&last)).await;
        for disk in &cache.disks {
            let former = |n: i32| in_place(|may| disk.former_of(may, &bucket, &n.to_string()));
            let names = former(39).unwrap();
            assert!(
                names.len() > 20
                    && names.iter().zip((0..39).rev()).all(|(a, b)| *a == b.to_string())
            );
            assert!((0..39).all(|n| former(n).is_none()), "those before were replaced");
        }
        drop(last);
        // Nobody uses it any more.
        let other = BucketId::new("http://s3", "c");
        let until = std::time::Instant::now() + PATIENCE;
        while cache.tenants.lock().unwrap().contains_key(&bucket) {
            assert!(std::time::Instant::now() < until, "it is never forgotten");
            drop(cache.enter(&other, signer(0)).await);
        }
        in_place(|may| cache.close(may));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_that_could_not_note_a_mount_is_told_again_once_it_can() {
        let folder = [tempfile::tempdir().unwrap()];
        let cache = open(&folder);
        let bucket = BucketId::new("http://s3", "b");
        let one = cache.enter(&bucket, signer("one")).await;
        eventually("alone", || is_alone(&one)).await;
        drop(one);
        let index = &cache.disks[0].index;
        in_place(|may| index.close(may));
        let two = cache.enter(&bucket, signer("two")).await;
        assert!(!is_alone(&two));
        drop(two);
        let one = cache.enter(&bucket, signer("one")).await;
        assert!(!is_alone(&one), "the disk knows nothing of the other");
        drop(one);
        in_place(|may| index.reopen(may)).unwrap();
        let known = || in_place(|may| cache.disks[0].former_of(may, &bucket, "two")).is_some();
        eventually("known", known).await;
        let one = cache.enter(&bucket, signer("one")).await;
        assert!(!is_alone(&one));
        in_place(|may| cache.close(may));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_that_does_not_answer_is_asked_for_one_thing_once() {
        let folder = [tempfile::tempdir().unwrap()];
        let cache = open(&folder);
        let bucket = BucketId::new("http://s3", "b");
        let replaces = vec!["one".to_owned()];
        let two = Signer { former: replaces.clone(), replaces, ..signer("two") };
        drop(cache.enter(&bucket, two).await);
        let (done, each) = mpsc::channel();
        let ask = |what: &'static str| {
            let done = done.clone();
            let work = move |_: &NodeCache, name: &str| done.send((what, name.to_owned())).unwrap();
            cache.with_former(&bucket, "two", what.as_bytes(), work)
        };
        let turns = turns(&cache);
        for what in ["this", "this", "that", "this"] {
            let _ = tokio::time::timeout(Duration::ZERO, ask(what)).await;
        }
        drop(turns);
        let heard = || in_place(|_| each.recv_timeout(PATIENCE));
        let mut both = [heard().unwrap(), heard().unwrap()];
        both.sort();
        assert_eq!(both, [("that", "one".to_owned()), ("this", "one".to_owned())]);
        // Once it has answered, it is asked again.
        ask("this").await;
        assert_eq!(heard(), Ok(("this", "one".to_owned())));
        assert!(each.try_recv().is_err());
        in_place(|may| cache.close(may));
    }
}
