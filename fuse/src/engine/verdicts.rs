//! What endpoints obey, kept in the index of the cache from one run to the next.

use std::sync::Arc;

use async_trait::async_trait;

use crate::cache::NodeCache;
use crate::model::version::BucketId;
use crate::origin::conditional::{MemoryVerdicts, Verdicts};

/// Keeps verdicts in memory, and behind that in the index: where it takes nothing, they are those
/// of this process.
pub(super) struct KeptVerdicts {
    cache: Arc<NodeCache>,
    recent: MemoryVerdicts,
}

impl KeptVerdicts {
    pub(super) fn new(cache: Arc<NodeCache>) -> Self {
        Self { cache, recent: MemoryVerdicts::default() }
    }
}

#[async_trait]
impl Verdicts for KeptVerdicts {
    async fn load(&self, bucket: &BucketId) -> Option<Vec<u8>> {
        match self.recent.known(bucket) {
            None => self.cache.at_main(|may| self.cache.verdicts(may, bucket)).await,
            known => known,
        }
    }

    fn store(&self, bucket: &BucketId, bytes: Vec<u8>) {
        self.recent.store(bucket, bytes.clone());
        self.cache.put_verdicts(bucket, bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::blocking::MAY;
    use crate::cache::CacheSettings;
    use crate::engine::Engine;
    use crate::engine::owner::Proc;
    use crate::metrics::Metrics;
    use crate::model::key::DirPrefix;
    use crate::origin::conditional::{Conditional, Question, Verdict};
    use crate::origin::measured::Measured;
    use crate::origin::memory::MemoryOrigin;
    use crate::origin::uploads::MemoryUploads;
    use crate::origin::{Condition, Origin, UploadBody, WriteIntent};

    const DAY_S: u64 = 24 * 3600;

    /// An engine over this folder, as a process begins with.
    fn engine(dir: &Path) -> Arc<Engine> {
        let metrics = Arc::new(Metrics::new().unwrap());
        let settings = CacheSettings::one(dir, u64::MAX, 0);
        let mut opened = NodeCache::open(MAY, &settings, metrics.clone());
        // A thread of the engine before may have the folder for a moment.
        for _ in 0..1000 {
            if opened.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
            opened = NodeCache::open(MAY, &settings, metrics.clone());
        }
        let cache = opened.unwrap();
        let runtime = tokio::runtime::Handle::current();
        Engine::new(MAY, cache, 1 << 21, metrics, runtime, 1 << 20, Arc::new(Proc)).unwrap()
    }

    /// Stores a new object in a mount of `engine`; how many PUTs that took.
    async fn puts(engine: &Engine, memory: &Arc<MemoryOrigin>) -> usize {
        let metrics = Arc::new(Metrics::new().unwrap());
        let measured = Arc::new(Measured::new(memory.clone(), metrics.clone()));
        let origin = Conditional::new(
            measured,
            &DirPrefix::root(),
            engine.verdicts.clone(),
            Arc::new(MemoryUploads::default()),
        );
        memory.remove("key");
        let write = WriteIntent { condition: Condition::Absent, writer: "w".into() };
        origin.put("key", UploadBody::of("bytes"), &write).await.unwrap();
        let counts = metrics.text();
        let name = "weir_s3_request_duration_seconds_count{op=\"PutObject\"";
        let of_puts = |line: &&str| line.starts_with(name);
        let count = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<usize>().unwrap();
        counts.lines().filter(of_puts).map(count).sum()
    }

    fn bucket(name: &str) -> Arc<MemoryOrigin> {
        Arc::new(MemoryOrigin::new(name))
    }

    /// Moves the time of what is kept by so many seconds.
    async fn shift(engine: &Engine, memory: &MemoryOrigin, by_s: i64) {
        type Kept = BTreeMap<Question, (Verdict, u64)>;
        let kept = engine.verdicts.load(memory.bucket_id()).await.unwrap();
        let mut kept: Kept = postcard::from_bytes(&kept).unwrap();
        for (_, at) in kept.values_mut() {
            *at = at.checked_add_signed(by_s).unwrap();
        }
        engine.verdicts.store(memory.bucket_id(), postcard::to_allocvec(&kept).unwrap());
    }

    #[tokio::test]
    async fn what_a_process_found_is_not_asked_by_the_next_one_for_a_day() {
        let (dir, memory) = (tempfile::tempdir().unwrap(), bucket("b"));
        let first = engine(dir.path());
        assert!(puts(&first, &memory).await > 1, "the endpoint is asked");
        shift(&first, &memory, 60 - DAY_S as i64).await;
        first.cache.close(MAY);
        drop(first);
        let second = engine(dir.path());
        assert_eq!(puts(&second, &memory).await, 1);
        assert_eq!(puts(&second, &memory).await, 1);
        // Another bucket may be another endpoint.
        assert!(puts(&second, &bucket("c")).await > 1);
        second.cache.close(MAY);
    }

    #[tokio::test]
    async fn what_is_too_old_or_of_a_time_to_come_is_asked_again() {
        let (dir, memory) = (tempfile::tempdir().unwrap(), bucket("b"));
        let mut before = engine(dir.path());
        for by_s in [-(DAY_S as i64), 3600] {
            assert!(puts(&before, &memory).await > 1);
            assert_eq!(puts(&before, &memory).await, 1);
            shift(&before, &memory, by_s).await;
            before.cache.close(MAY);
            drop(before);
            before = engine(dir.path());
        }
        assert!(puts(&before, &memory).await > 1);
        before.cache.close(MAY);
    }

    /// An index that takes nothing and knows nothing, as one that is closed.
    #[tokio::test]
    async fn without_an_index_verdicts_are_those_of_the_process() {
        let (dir, memory) = (tempfile::tempdir().unwrap(), bucket("b"));
        let engine = engine(dir.path());
        engine.cache.close(MAY);
        assert!(puts(&engine, &memory).await > 1);
        assert_eq!(puts(&engine, &memory).await, 1);
    }
}
