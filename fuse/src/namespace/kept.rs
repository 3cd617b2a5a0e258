//! Listings kept in the index: names that are shown while the origin does not answer, and what they
//! say about whom it has allowed what.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::dir::Dir;
use super::listing::{self, Listing};
use super::memory::NAME_BYTES;
use super::{AccessSettings, Namespace, NamespaceSettings};
use crate::blocking::MayBlock;
use crate::cache::NodeCache;
use crate::cache::records::ListingRow;
use crate::model::ttl::MetadataTtl;
use crate::model::version::BucketId;
use crate::origin::OriginError;

/// Listings with more names are not kept.
const KEPT_MAX: usize = 200_000;
/// A listing that does not change is put into the index this often, for its age.
const KEPT_EVERY: Duration = Duration::from_secs(60);
/// What the origin listed longer ago proves nothing.
const PROOF_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

impl Namespace {
    /// Keeps a listing that the origin gave.
    pub(super) fn keep(&self, dir: &Dir, listing: &Listing, fetched: SystemTime) {
        if listing.entries.len() <= KEPT_MAX
            && dir.is_worth_keeping(listing.fingerprint(), KEPT_EVERY)
        {
            let name = self.name_of(&self.settings.access.identity, dir);
            self.cache.put_listing(name, Some(listing.to_row(fetched)));
        }
    }

    /// Takes over the listing kept in the index, if none is known and it is young enough or
    /// `any_age` will do. Says whether it did.
    pub(super) async fn load_kept(&self, dir: &Arc<Dir>, any_age: bool) -> bool {
        if dir.listed_at().is_some() || !(any_age || self.cache.knows_all_changes()) {
            return false;
        }
        self.cache.at_main(|may| self.load_from_index(may, dir, any_age)).await
    }

    fn load_from_index(&self, may: &MayBlock, dir: &Arc<Dir>, any_age: bool) -> bool {
        let mut kept = self.kept_names(dir).into_iter();
        let Some(row) = kept.find_map(|name| self.cache.listing(may, &name)) else { return false };
        if row.entries.len() as u64 * NAME_BYTES > self.memory.dir_max() {
            return false;
        }
        let (listing, age) = Listing::from_row(row);
        // What is true for as long as the mount lives is asked for anew by the next mount.
        let lasts = self.settings.ttl != MetadataTtl::Indefinite && age < self.ttl();
        if !lasts && !any_age {
            return false;
        }
        let Some(started) = Instant::now().checked_sub(age) else { return false };
        dir.merge_kept(listing, started)
    }

    /// Forgets the listing kept in the index, because something was changed here.
    pub fn drop_kept(&self, dir: &Dir) {
        dir.forget_kept();
        for name in self.kept_names(dir) {
            self.cache.put_listing(name, None);
        }
    }

    /// Notes that the origin did not allow what was asked of a directory, if it did not.
    pub(super) fn note_refusal(&self, dir: &Dir, error: &OriginError) {
        if !error.is_denial() {
            return;
        }
        self.drop_kept(dir);
        note_account_refused(&self.cache, self.bucket(), &self.settings.access.identity, error);
    }

    /// What it is kept as, and was before keys were replaced: names, too, are for those whose
    /// credentials showed them.
    fn kept_names(&self, dir: &Dir) -> Vec<Vec<u8>> {
        let AccessSettings { identity, former, .. } = &self.settings.access;
        [identity].into_iter().chain(former).map(|identity| self.name_of(identity, dir)).collect()
    }

    fn name_of(&self, identity: &str, dir: &Dir) -> Vec<u8> {
        kept_name(identity, self.bucket(), dir.prefix().as_str())
    }
}

fn kept_name(identity: &str, bucket: &BucketId, prefix: &str) -> Vec<u8> {
    [identity, bucket.as_str(), prefix].join("\u{1f}").into_bytes()
}

/// What is kept of an identity beside its listings, as one without names: when it was so. No
/// directory's listing is kept under such a name: a prefix is empty or ends in a slash.
#[derive(Clone, Copy)]
enum Mark {
    /// The origin refused the credentials as such.
    Refused,
    /// It refused an object that was brought with them.
    Narrowed,
}

impl Mark {
    fn name(self, identity: &str, bucket: &BucketId) -> Vec<u8> {
        kept_name(
            identity,
            bucket,
            match self {
                Self::Refused => "refused",
                Self::Narrowed => "narrowed",
            },
        )
    }

    fn put(self, cache: &NodeCache, bucket: &BucketId, identity: &str) {
        let now = Listing::default().to_row(SystemTime::now());
        cache.put_listing(self.name(identity, bucket), Some(now));
    }

    fn row(
        self,
        may: &MayBlock,
        cache: &NodeCache,
        bucket: &BucketId,
        identity: &str,
    ) -> Option<ListingRow> {
        cache.listing(may, &self.name(identity, bucket))
    }
}

fn note_account_refused(cache: &NodeCache, bucket: &BucketId, identity: &str, error: &OriginError) {
    if error.is_about_account() || matches!(error, OriginError::NoSuchBucket) {
        Mark::Refused.put(cache, bucket, identity);
    }
}

/// Whether the origin's last word, as far as it is known here, is that these very credentials may
/// see what such a mount shows: its names are kept, as the origin listed them to this identity, or to
/// one that it has replaced, within 30 days.
pub(crate) async fn is_allowed(
    cache: &NodeCache,
    bucket: &BucketId,
    settings: &NamespaceSettings,
) -> bool {
    let identity = &settings.access.identity;
    // Not what the settings say of earlier names: those were not proven.
    let Some(former) = cache.former_of(bucket, identity).await else { return false };
    let names: Vec<&String> = [identity].into_iter().chain(&former).collect();
    let prefix = settings.prefix.as_str();
    cache.at_main(|may| is_listed_to(may, cache, bucket, &names, prefix)).await
}

/// Whether what is kept says so of one who has these names.
fn is_listed_to(
    may: &MayBlock,
    cache: &NodeCache,
    bucket: &BucketId,
    names: &[&String],
    prefix: &str,
) -> bool {
    let marked = |mark: Mark| {
        let rows = names.iter().filter_map(|name| mark.row(may, cache, bucket, name));
        rows.map(|row| row.fetched_ms).max()
    };
    if marked(Mark::Narrowed).is_some() {
        return false;
    }
    let refused = marked(Mark::Refused);
    let allows = |row: ListingRow| {
        listing::age(&row) < PROOF_MAX && refused.is_none_or(|at| at < row.fetched_ms)
    };
    let listed = |name| cache.listing(may, &kept_name(name, bucket, prefix));
    names.iter().any(|name| listed(name).is_some_and(allows))
}

/// Notes what the origin said when it was asked for one object, of all that somebody brought.
pub(crate) fn note_proof(
    cache: &NodeCache,
    bucket: &BucketId,
    access: &AccessSettings,
    proof: &Result<(), OriginError>,
) {
    match proof {
        Ok(()) => [&access.identity]
            .into_iter()
            .chain(&access.former)
            .for_each(|name| cache.put_listing(Mark::Narrowed.name(name, bucket), None)),
        Err(error) if matches!(error, OriginError::Denied(_)) && !error.is_archived() => {
            Mark::Narrowed.put(cache, bucket, &access.identity);
        }
        Err(_) => {}
    }
}

/// Notes what the origin said to somebody who was about to mount: where it refused him, what it
/// allowed him before proves nothing any more.
pub(crate) async fn note_refusal(
    cache: &Arc<NodeCache>,
    bucket: &BucketId,
    settings: &NamespaceSettings,
    error: &OriginError,
) {
    if !error.is_denial() {
        return;
    }
    let identity = &settings.access.identity;
    let (of, prefix) = (bucket.clone(), settings.prefix.clone());
    let forget = move |cache: &NodeCache, name: &str| {
        cache.put_listing(kept_name(name, &of, prefix.as_str()), None);
    };
    forget(cache, identity);
    note_account_refused(cache, bucket, identity, error);
    let what = kept_name(identity, bucket, settings.prefix.as_str());
    cache.with_former(bucket, identity, &what, forget).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocking::MAY;
    use crate::cache::{CacheSettings, Signer};
    use crate::metrics::Metrics;
    use crate::model::key::DirPrefix;

    const DAY_MS: i64 = 24 * 3600 * 1000;

    struct Stage {
        cache: Arc<NodeCache>,
        bucket: BucketId,
        runtime: tokio::runtime::Runtime,
        _folder: tempfile::TempDir,
    }

    impl Stage {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let settings = CacheSettings::one(folder.path(), u64::MAX, 0);
            let cache = NodeCache::open(MAY, &settings, Arc::new(Metrics::new().unwrap())).unwrap();
            let runtime = tokio::runtime::Runtime::new().unwrap();
            Self { cache, bucket: BucketId::new("http://s3", "b"), runtime, _folder: folder }
        }

        fn enter(&self, identity: &str, replaces: &[String]) {
            let (identity, replaces) = (identity.to_owned(), replaces.to_owned());
            let signer = Signer { identity, former: replaces.clone(), replaces };
            drop(self.runtime.block_on(self.cache.enter(&self.bucket, signer)));
        }

        /// The origin lists the root to somebody, so many milliseconds before now.
        fn list(&self, identity: &str, ago: i64) {
            let mut row = Listing::default().to_row(SystemTime::now());
            row.fetched_ms = row.fetched_ms.saturating_add_signed(-ago);
            self.cache.put_listing(kept_name(identity, &self.bucket, ""), Some(row));
        }

        fn refuse(&self, identity: &str, code: &str) {
            let error = OriginError::Denied(code.to_owned());
            self.refuse_for(&of(identity), &error);
        }

        fn refuse_for(&self, settings: &NamespaceSettings, error: &OriginError) {
            let noted = note_refusal(&self.cache, &self.bucket, settings, error);
            self.runtime.block_on(noted);
        }

        fn prove(&self, identity: &str, proof: Result<(), OriginError>) {
            note_proof(&self.cache, &self.bucket, &of(identity).access, &proof);
        }

        fn allows(&self, identity: &str) -> bool {
            self.allows_to(&of(identity))
        }

        fn allows_to(&self, settings: &NamespaceSettings) -> bool {
            self.runtime.block_on(is_allowed(&self.cache, &self.bucket, settings))
        }
    }

    fn of(identity: &str) -> NamespaceSettings {
        let access = AccessSettings { identity: identity.to_owned(), ..AccessSettings::default() };
        NamespaceSettings { access, ..NamespaceSettings::default() }
    }

    #[test]
    fn whom_the_origin_has_listed_it_to_may_begin_without_it() {
        let stage = Stage::new();
        stage.list("one", 0);
        assert!(!stage.allows("one"), "he has not used the bucket");
        stage.enter("one", &[]);
        assert!(stage.allows("one"));
        stage.enter("two", &[]);
        assert!(!stage.allows("two"), "it was listed to somebody else");
        let below = NamespaceSettings { prefix: DirPrefix::parse("p").unwrap(), ..of("one") };
        assert!(!stage.allows_to(&below), "that is another prefix");
        stage.list("one", 31 * DAY_MS);
        assert!(!stage.allows("one"), "that was long ago");
        stage.list("one", 29 * DAY_MS);
        assert!(stage.allows("one"));
    }

    #[test]
    fn what_was_listed_to_earlier_keys_counts_only_once_they_were_replaced() {
        let stage = Stage::new();
        stage.enter("one", &[]);
        stage.list("one", 0);
        let mut claims = of("two");
        claims.access.former = vec!["one".to_owned()];
        claims.access.formerly = Some("one".to_owned());
        assert!(!stage.allows_to(&claims));
        stage.enter("two", &["one".to_owned()]);
        assert!(stage.allows("two"));
        assert!(!stage.allows("one"), "his keys were replaced");
    }

    #[test]
    fn whom_it_has_refused_may_not_begin_until_it_allows_him_again() {
        let stage = Stage::new();
        stage.enter("one", &[]);
        // What may be listed below this prefix.
        stage.list("one", 1000);
        stage.refuse("one", "AccessDenied");
        assert!(!stage.allows("one"));
        stage.list("one", 0);
        assert!(stage.allows("one"));
        // The credentials as such, with whatever was listed to them before.
        let below = NamespaceSettings { prefix: DirPrefix::parse("p").unwrap(), ..of("one") };
        let error = OriginError::Denied("InvalidAccessKeyId".into());
        stage.refuse_for(&below, &error);
        stage.list("one", 1000);
        assert!(!stage.allows("one"));
        stage.list("one", -1000);
        assert!(stage.allows("one"));
        // An object that they brought.
        let denied = || Err(OriginError::Denied("AccessDenied".into()));
        stage.prove("one", denied());
        stage.prove("one", Err(OriginError::TimedOut));
        stage.list("one", -1000);
        assert!(!stage.allows("one"));
        stage.prove("one", Ok(()));
        assert!(stage.allows("one"));
        stage.prove("one", denied());
        stage.enter("two", &["one".to_owned()]);
        assert!(!stage.allows("two"), "nor who has taken his place");
    }

    #[test]
    fn a_disk_that_answers_late_forgets_whom_the_origin_has_refused() {
        let stage = Stage::new();
        let later = NamespaceSettings {
            access: AccessSettings { former: vec!["one".to_owned()], ..of("two").access },
            ..of("two")
        };
        stage.enter("one", &[]);
        stage.list("one", 0);
        stage.enter("two", &["one".to_owned()]);
        assert!(stage.allows_to(&later));
        let disk = stage.cache.record_disk();
        let turns: Vec<_> = std::iter::from_fn(|| disk.calls().try_take()).collect();
        stage.refuse("two", "AccessDenied");
        drop(turns);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while stage.allows_to(&later) {
            assert!(
                std::time::Instant::now() < until,
                "what was listed to the keys before is kept"
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
