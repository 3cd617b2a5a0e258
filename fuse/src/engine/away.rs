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
                let (bucket, names) = (session.names.bucket(), &session.settings.names);
                session.access.narrow();
                session.engine.note_refusal(bucket, names, &error).await;
            }
            session.names.health.answered();
        });
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
