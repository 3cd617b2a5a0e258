//! Whether what is cached of an object may be shown. The origin is asked for a byte of the very
//! version: a server may tell somebody of an object (HEAD) whose bytes it gives, or decrypts, for
//! others alone.

use std::sync::Arc;

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

/// Why a file may be shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Permission {
    /// The origin gave a byte of it.
    Given,
    /// It shows nothing that anybody else brought.
    Own,
}

impl Session {
    /// What is cached is shown to those who could have fetched it.
    pub(super) async fn check_access(self: &Arc<Self>, call: &OpenCall<'_>) -> Result<(), Errno> {
        if call.request == Request::Truncate || self.proof(call.node) != Proof::Needed {
            return Ok(());
        }
        self.prove(call.node).await.map(drop).map_err(|error| error.errno())
    }

    /// What is to be done before what is cached of a file is shown; what is to be done beside it is
    /// begun.
    pub(super) fn proof(self: &Arc<Self>, node: &Arc<FileNode>) -> Proof {
        let Some(shown) = self.names.version_key(node) else { return Proof::Held };
        let proof = self.access.proof(&shown);
        if proof == Proof::Due {
            let (session, node) = (self.clone(), node.clone());
            self.engine.runtime.spawn(async move {
                let proof = match session.prove(&node).await {
                    Ok(Permission::Own) => return session.access.ask_again_soon(),
                    Ok(Permission::Given) => Ok(()),
                    Err(error) => Err(error),
                };
                session.access.note_proof(session.names.bucket(), &proof);
                session.note_proof(&proof);
            });
        }
        proof
    }

    /// Asks the origin whether these credentials may read what a file shows. Where it has another
    /// version by now, names are asked for again, and that one is shown in the place of this: a
    /// permission for the one is none for the other.
    async fn prove(&self, node: &Arc<FileNode>) -> Result<Permission, OriginError> {
        for _ in 0..ASKED_MAX {
            // Nothing is stored yet, so nothing is shown that somebody else brought.
            let Some(shown) = self.names.version_key(node) else { return Ok(Permission::Own) };
            match self.access.heed(&shown, self.ask_for(&shown).await) {
                Err(OriginError::Changed) if self.is_written_here(node) => {
                    return Ok(Permission::Own);
                }
                Err(OriginError::Changed) => {}
                Err(error) => return Err(error),
                Ok(()) if shown.version.size == 0 => return Ok(Permission::Own),
                Ok(()) => return Ok(Permission::Given),
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
        self.engine.reader.allows(origin, shown).await
    }

    /// Whether a file is under change through this mount: all that it shows was written here.
    fn is_written_here(&self, node: &Arc<FileNode>) -> bool {
        let (dir, name) = node.place();
        dir.is_writing(&name) && dir.shows(&name, node)
    }
}
