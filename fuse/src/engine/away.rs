//! Mounts that begin while their origin is away: who may, and how long nobody asks it.

use std::sync::{Arc, Weak};

use super::{Engine, Session};
use crate::model::version::BucketId;
use crate::namespace::NamespaceSettings;
use crate::namespace::health::HOLD_OFF;
use crate::namespace::kept;
use crate::origin::OriginError;

/// What an origin says that was away.
#[derive(Debug)]
pub enum Answer {
    /// It lists what the mount shows.
    Allowed,
    /// It refuses that.
    Refused(OriginError),
}

impl Engine {
    /// Whether the cache can show a mount with these settings without its origin: this very identity
    /// has used the bucket, and what the origin listed to it of the prefix, within 30 days and not
    /// refused since, is kept. Reads the index.
    pub async fn can_begin_away(&self, bucket: &BucketId, names: &NamespaceSettings) -> bool {
        kept::is_allowed(&self.cache, bucket, names).await
    }

    /// Notes what the origin said to somebody who was about to mount: whom it refuses may not begin
    /// without it either, until it allows him to list again.
    pub async fn note_refusal(
        &self,
        bucket: &BucketId,
        names: &NamespaceSettings,
        error: &OriginError,
    ) {
        kept::note_refusal(&self.cache, bucket, names, error).await;
    }
}

impl Session {
    /// Begins by what is remembered: nobody waits for the origin where that will do, until `answer`
    /// comes, which is dropped with the session. Where it is a refusal, each object is asked for from
    /// then on.
    pub fn begin_away(self: &Arc<Self>, answer: impl Future<Output = Answer> + Send + 'static) {
        self.names.health.failed();
        let session = Arc::downgrade(self);
        self.engine.runtime.spawn(async move {
            let answer = tokio::select! {
                answer = answer => answer,
                () = hold_off(&session) => return,
            };
            let Some(session) = session.upgrade() else { return };
            if let Answer::Refused(error) = answer {
                tracing::warn!(%error, "the origin answers, and refuses the credentials of a mount");
                session.narrow(&error).await;
            }
            session.names.health.answered();
        });
    }

    /// Shows only what the origin allows, object by object, since it has refused the mount; then has the
    /// disks forget that it listed it, which may take a while.
    async fn narrow(&self, error: &OriginError) {
        self.access.narrow();
        self.engine.note_refusal(self.names.bucket(), &self.settings.names, error).await;
    }

    /// Notes what the origin said when it was asked for one object, of all: whom it refuses may not
    /// begin without it until it allows him one again.
    pub(super) fn note_proof(&self, proof: &Result<(), OriginError>) {
        let access = &self.settings.names.access;
        kept::note_proof(&self.engine.cache, self.names.bucket(), access, proof);
    }
}

/// Keeps others from asking the origin where something is remembered, for as long as the session
/// lives.
async fn hold_off(session: &Weak<Session>) {
    while let Some(session) = session.upgrade() {
        session.names.health.failed();
        drop(session);
        tokio::time::sleep(HOLD_OFF / 2).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::blocking::MAY;
    use crate::cache::{CacheSettings, NodeCache};
    use crate::engine::SessionSettings;
    use crate::engine::access::Proof;
    use crate::engine::owner::Proc;
    use crate::metrics::Metrics;
    use crate::model::version::{ETag, Version, VersionKey};
    use crate::namespace::AccessSettings;
    use crate::origin::Origin;
    use crate::origin::memory::MemoryOrigin;

    #[tokio::test]
    async fn whom_the_origin_refuses_is_shown_nothing_more_however_long_a_disk_takes_to_note_it() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let settings = CacheSettings::one(folder.path(), u64::MAX, 0);
        let cache = NodeCache::open(MAY, &settings, metrics.clone()).unwrap();
        let runtime = tokio::runtime::Handle::current();
        let engine =
            Engine::new(MAY, cache, 1 << 21, metrics, runtime, 1 << 20, Arc::new(Proc)).unwrap();
        let origin = Arc::new(MemoryOrigin::new("b"));
        let version = Version { etag: ETag::new("e").unwrap(), size: 1 };
        let bucket = origin.bucket_id().clone();
        let shown = VersionKey { bucket, key: "key".into(), version };
        let access = AccessSettings { identity: "one".into(), ..AccessSettings::default() };
        let names = NamespaceSettings { access, ..NamespaceSettings::default() };
        let settings = SessionSettings { names, ..SessionSettings::default() };
        let session = Session::new(engine.clone(), origin, settings, "").await;
        let proof = || session.access.proof(&shown);
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while proof() != Proof::Held {
            assert!(std::time::Instant::now() < until, "the disk never says that he is alone");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let disk = engine.cache.record_disk();
        let turns: Vec<_> = std::iter::from_fn(|| disk.calls().try_take()).collect();
        let refused = OriginError::Denied("AccessDenied".into());
        let mut noted = Box::pin(session.narrow(&refused));
        assert!(
            tokio::time::timeout(Duration::ZERO, &mut noted).await.is_err(),
            "the disk is asked"
        );
        assert_eq!(proof(), Proof::Needed);
        drop(turns);
        noted.await;
        drop(session);
        engine.cache.close(MAY);
    }
}
