//! Whether what is cached of an object may be shown. The origin is asked for a byte of the very version: a server may
//! tell somebody of an object (HEAD) whose bytes it gives, or decrypts, for others alone.

use std::sync::Arc;

use futures_util::StreamExt;
use rustix::io::Errno;

use super::access::Proof;
use super::admission::Request;
use super::open::OpenCall;
use super::session::Session;
use crate::model::version::VersionKey;
use crate::namespace::file::FileNode;
use crate::origin::OriginError;

/// How often a file is asked for that is stored anew here meanwhile.
const ASKED_MAX: u32 = 4;

impl Session {
    /// What is cached is shown to those who could have fetched it.
    pub(super) async fn check_access(self: &Arc<Self>, call: &OpenCall<'_>) -> Result<(), Errno> {
        if call.request == Request::Truncate || self.proof(call.node) != Proof::Needed {
            return Ok(());
        }
        self.prove(call.node).await.map_err(|error| error.errno())
    }

    /// What is to be done before what is cached of a file is shown; what is to be done beside it is
    /// begun.
    pub(super) fn proof(self: &Arc<Self>, node: &Arc<FileNode>) -> Proof {
        if node.version().is_none() {
            return Proof::Held;
        }
        let proof = self.access.proof(&node.key(), self.names.ttl());
        if proof == Proof::Due {
            let (session, node) = (self.clone(), node.clone());
            self.engine.runtime.spawn(async move {
                let proof = session.prove(&node).await;
                session.access.note_proof(session.names.bucket(), &proof);
                session.note_proof(&proof);
            });
        }
        proof
    }

    /// Asks the origin whether these credentials may read what a file shows. Where it has another version by now, names
    /// are asked for again, and that one is shown in the place of this: a permission for the one is none for the other.
    async fn prove(&self, node: &Arc<FileNode>) -> Result<(), OriginError> {
        for _ in 0..ASKED_MAX {
            // Nothing is stored yet, so nothing is shown that somebody else brought.
            let Some(shown) = self.names.version_key(node) else { return Ok(()) };
            match self.access.heed(&shown.key, self.ask_for(&shown).await) {
                Err(OriginError::Changed) if self.is_written_here(node) => return Ok(()),
                Err(OriginError::Changed) => {}
                answer => return answer,
            }
            let is_current = self.names.is_current_at_origin(node).await?;
            if !is_current || self.names.version_key(node).as_ref() == Some(&shown) {
                break;
            }
        }
        Err(OriginError::Changed)
    }

    async fn ask_for(&self, shown: &VersionKey) -> Result<(), OriginError> {
        let origin = &*self.names.origin;
        if shown.version.size == 0 {
            return origin.head(&shown.key).await.map(drop);
        }
        let mut body = self.engine.reader.body(origin, shown, 0..1).await?;
        // The answer has begun, so it is a yes. Taken to its end, its connection serves others.
        while body.pieces.next().await.is_some() {}
        Ok(())
    }

    /// Whether a file is under change through this mount: all that it shows was written here.
    fn is_written_here(&self, node: &Arc<FileNode>) -> bool {
        let (dir, name) = node.place();
        dir.is_writing(&name) && dir.shows(&name, node)
    }
}
