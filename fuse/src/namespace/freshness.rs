//! Whether what is known is recent enough, and nothing was heard of it since.

use std::time::{Duration, Instant};

use super::Namespace;
use super::dir::Dir;
use crate::feed::hearing::BucketHearing;
use crate::feed::lifetime::{Lifetime, Marked};
use crate::feed::marks::PathHash;

/// How long answers are taken as true at a time.
pub(super) struct Freshness<'a> {
    now: Instant,
    positive: Lifetime,
    negative: Lifetime,
    hearing: Option<&'a BucketHearing>,
}

/// What was heard of a name.
#[derive(Clone, Copy, Default)]
pub(super) struct Heard {
    name: Marked,
    dir: Marked,
}

impl Namespace {
    /// As of now.
    pub(super) fn freshness(&self, now: Instant) -> Freshness<'_> {
        let hearing = self.hearing.as_ref();
        let lifetime = |short: Duration| match hearing {
            None => Lifetime::plain(short),
            Some(hearing) => hearing.lifetime(short, now),
        };
        let positive = lifetime(self.ttl());
        let negative = Lifetime { short: self.settings.negative_ttl.duration(), ..positive };
        Freshness { now, positive, negative, hearing }
    }
}

impl Freshness<'_> {
    /// When it is.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// What was heard of a name.
    pub(super) fn heard(&self, dir: &Dir, name: &str) -> Heard {
        let Some(hearing) = self.hearing else { return Heard::default() };
        let path = self.path(hearing, dir).then(name);
        Heard { name: hearing.of_name(path), dir: hearing.of_dir(path) }
    }

    fn path(&self, hearing: &BucketHearing, dir: &Dir) -> PathHash {
        dir.path_hash(hearing.root())
    }

    /// How long it is still true that this is a file, as it was told then.
    pub(super) fn file_left(&self, asked: Instant, heard: Heard) -> Duration {
        self.positive.left(asked, heard.name, self.now)
    }

    /// How long it is still true that this is a directory.
    pub(super) fn dir_left(&self, asked: Instant, heard: Heard) -> Duration {
        self.positive.left(asked, heard.dir, self.now)
    }

    /// Whether it is still true that there is no such name.
    pub(super) fn is_absent(&self, asked: Instant, heard: Heard) -> bool {
        self.negative.is_fresh(asked, heard.name, self.now)
    }

    /// Whether a listing that was begun then still tells the names of a directory.
    pub(super) fn is_listed(&self, dir: &Dir, begun: Instant) -> bool {
        let marked = self.hearing.map(|hearing| hearing.of_listing(self.path(hearing, dir)));
        self.positive.is_fresh(begun, marked.unwrap_or_default(), self.now)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::blocking::MAY;
    use crate::cache::{CacheSettings, NodeCache};
    use crate::feed::Change;
    use crate::feed::announcement::{Announcement, Role};
    use crate::feed::hearing::{Hearing, Written};
    use crate::feed::pulse::Lapse;
    use crate::metrics::Metrics;
    use crate::model::ttl::MetadataTtl;
    use crate::namespace::NamespaceSettings;
    use crate::namespace::dir::Knowledge;
    use crate::namespace::hidden::HiddenKeys;
    use crate::namespace::memory::NameMemory;
    use crate::origin::Origin;
    use crate::origin::announced::Announced;
    use crate::origin::memory::MemoryOrigin;

    /// Names of a bucket that are asked for at each use, unless a feed lives.
    struct Stage {
        origin: Arc<MemoryOrigin>,
        hearing: Arc<Hearing>,
        written: Written,
        names: Arc<Namespace>,
        _folder: tempfile::TempDir,
    }

    impl Stage {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let metrics = Arc::new(Metrics::new().unwrap());
            let cached = CacheSettings::one(folder.path(), u64::MAX, 0);
            let cache = NodeCache::open(MAY, &cached, metrics.clone()).unwrap();
            let origin = Arc::new(MemoryOrigin::new("bucket"));
            let (timeout, long) = (Duration::from_secs(60), Duration::from_secs(3600));
            let (hearing, written) = Hearing::new("own", timeout, long, metrics.clone());
            let ttl = MetadataTtl::Minimal;
            let settings = NamespaceSettings { ttl, negative_ttl: ttl, ..Default::default() };
            let bucket = hearing.of_bucket(origin.bucket_id().name());
            let names = Namespace::new(
                Arc::new(Announced::new(origin.clone(), bucket.clone())),
                cache,
                NameMemory::new(1 << 24),
                HiddenKeys::new(metrics),
                settings,
                Some(bucket),
            );
            Self { origin, hearing, written, names, _folder: folder }
        }

        fn bucket(&self) -> Box<str> {
            self.origin.bucket_id().name().into()
        }

        /// A relay says that these were changed.
        fn say(&self, sequence: u64, changes: &[(&str, bool)]) {
            let change = |(key, gone): &(&str, bool)| Change {
                bucket: self.bucket(),
                key: (*key).into(),
                gone: *gone,
            };
            let said = Announcement {
                relays: BTreeMap::from([(self.bucket(), None)]),
                changes: changes.iter().map(change).collect(),
                ..Announcement::new("relay", Role::Relay, 1, sequence)
            };
            self.hearing.take(&said.to_bytes(), Instant::now());
        }

        fn known(&self, dir: &Arc<Dir>, name: &str) -> Knowledge {
            dir.known(name, &self.names.freshness(Instant::now()))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn names_are_known_while_the_feed_lives_and_what_is_marked_is_asked_for() {
        let stage = Stage::new();
        let root = stage.names.root().clone();
        for key in ["a", "b", "d/e"] {
            stage.origin.insert(key, "x");
        }
        let look = async || {
            for name in ["a", "b", "d", "none"] {
                let _ = stage.names.lookup(&root, name).await;
            }
            stage.names.read_dir(&root).await.unwrap();
        };
        look().await;
        assert_eq!(stage.known(&root, "a"), Knowledge::Expired, "nothing is heard");
        stage.say(0, &[]);
        look().await;
        let known = |name: &str| stage.known(&root, name);
        let all = || ["a", "b", "d", "none"].map(known);
        let [present, absent] = [Knowledge::Present, Knowledge::Absent];
        assert_eq!(all(), [present, present, present, absent]);
        assert!(stage.names.read_dir_now(&root).is_some());
        stage.say(1, &[("a", false)]);
        assert_eq!(all(), [Knowledge::Expired, present, present, absent]);
        assert!(stage.names.read_dir_now(&root).is_none());
        look().await;
        stage.say(2, &[("none", false)]);
        assert_eq!(all(), [present, present, present, Knowledge::Unknown]);
        look().await;
        // That something is in it does not make a directory doubtful; that something is not may.
        stage.say(3, &[("d/f", false)]);
        assert_eq!(all(), [present, present, present, absent]);
        stage.say(4, &[("d/e", true)]);
        assert_eq!(all(), [present, present, Knowledge::Expired, absent]);
        look().await;
        assert_eq!(all(), [present, present, present, absent]);
        stage.hearing.lapse(Lapse::Disconnected, Instant::now());
        assert_eq!(known("a"), Knowledge::Expired);
        stage.say(4, &[]);
        assert_eq!(known("a"), Knowledge::Expired, "it was answered before");
        look().await;
        assert_eq!(known("a"), present);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_that_was_asked_for_before_the_event_is_old_when_it_comes() {
        let stage = Stage::new();
        let root = stage.names.root().clone();
        stage.origin.insert("a", "x");
        stage.say(0, &[]);
        let asked = Instant::now();
        let info = stage.origin.head("a").await.unwrap();
        stage.say(1, &[("a", false)]);
        root.merge_one("a", Some(Some(info.clone())), asked);
        assert_eq!(stage.known(&root, "a"), Knowledge::Expired);
        root.merge_one("a", Some(Some(info)), Instant::now());
        assert_eq!(stage.known(&root, "a"), Knowledge::Present);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_directory_that_is_renamed_hears_of_its_new_path() {
        let stage = Stage::new();
        let root = stage.names.root().clone();
        stage.origin.insert("old/a", "x");
        stage.origin.insert("new/a", "x");
        stage.say(0, &[]);
        let Ok(super::super::Node::Dir(dir)) = stage.names.lookup(&root, "old").await else {
            panic!("no directory");
        };
        root.move_dir("old", &root, "new");
        stage.names.lookup(&dir, "a").await.unwrap();
        stage.say(1, &[("old/a", false)]);
        assert_eq!(stage.known(&dir, "a"), Knowledge::Present);
        stage.say(2, &[("new/a", false)]);
        assert_eq!(stage.known(&dir, "a"), Knowledge::Expired);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_written_is_announced_and_what_is_refused_is_not() {
        use crate::origin::{Condition, UploadBody, WriteIntent};
        let mut stage = Stage::new();
        let origin = stage.names.origin.clone();
        let write = WriteIntent { condition: Condition::Absent, writer: "w".into() };
        origin.put("a", UploadBody::empty(), &write).await.unwrap();
        origin.put("a", UploadBody::empty(), &write).await.unwrap_err();
        origin.delete("a", &Condition::Always).await.unwrap();
        let bucket = stage.bucket();
        let mut said = || stage.written.changes.try_recv().ok();
        let change = |gone| Some(Change { bucket: bucket.clone(), key: "a".into(), gone });
        assert_eq!([said(), said(), said()], [change(false), change(true), None]);
    }
}
