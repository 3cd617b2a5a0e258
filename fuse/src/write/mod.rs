//! Writing: into a staging file on NVMe, from there in parts to the origin.
//!
//! Order of gates and locks, outermost first: directories' gates ([`gates`]), files' gates, then
//! locks of memory: a draft's, a directory's state. No lock is held while bytes move, and no gate
//! while the kernel or the mounter is told something.

mod body;
mod clean;
pub mod draft;
mod finish;
mod gates;
mod layout;
pub mod leftovers;
mod lines;
pub mod names;
pub mod pace;
pub mod parts;
pub mod rename;
mod rename_dir;
pub mod renaming;
mod store;
#[cfg(test)]
mod tests;
mod upload;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use tokio::runtime::Handle;

use crate::cache::{NoRoom, Share, StagingFile};
use crate::metrics::Metrics;
use crate::model::key::BadName;
use crate::model::version::VersionKey;
use crate::namespace::dir::Dir;
use crate::namespace::file::FileNode;
use crate::namespace::{LookupError, Namespace};
use crate::origin::{Condition, OriginError};
use draft::{Author, Beginning, Draft, LiveUploads, Owner, Spares};
use gates::DirGates;
use pace::Pace;
use parts::PartPlan;
use rename_dir::RenameRate;
use renaming::RenameRecord;

/// Writes for one mount.
pub struct Writer {
    pub(crate) names: Arc<Namespace>,
    metrics: Arc<Metrics>,
    runtime: Handle,
    plan: PartPlan,
    /// Parts under way, over all files of the mount.
    pace: Pace,
    /// Whether the endpoint copies ranges of objects, as far as is known.
    copies: AtomicBool,
    spares: Arc<Spares>,
    live: Arc<LiveUploads>,
    rename_rate: RenameRate,
    /// What it may take of the cache's disks.
    share: Arc<Share>,
    /// Files under change, by nodeid.
    drafts: Mutex<HashMap<u64, Arc<Draft>>>,
}

impl Writer {
    /// `part_bytes` is the size of the first parts of an upload; `live` knows those of all mounts; `share`
    /// is what it may take of the cache's disks.
    pub fn new(
        names: Arc<Namespace>,
        metrics: Arc<Metrics>,
        runtime: Handle,
        part_bytes: u64,
        live: Arc<LiveUploads>,
        share: Arc<Share>,
    ) -> Arc<Self> {
        Arc::new(Self {
            names,
            metrics,
            runtime,
            plan: PartPlan::new(part_bytes),
            pace: Pace::new(),
            copies: AtomicBool::new(true),
            spares: Arc::default(),
            live,
            rename_rate: RenameRate::default(),
            share,
            drafts: Mutex::default(),
        })
    }

    /// Keeps the names of a directory, and of those above it, from being moved away while the
    /// result lives.
    ///
    /// # Errors
    /// [`WriteError::Busy`] where one of them is being renamed, and that takes too long.
    pub(crate) async fn enter(&self, dir: &Arc<Dir>) -> Result<DirGates, WriteError> {
        DirGates::take(&[dir], None).await
    }

    /// A file for the bytes of a change.
    ///
    /// # Errors
    /// What the cache disk reports; ENOSPC while `lost/` is full: what could not be stored is then
    /// more than anybody looks after.
    pub async fn stage(&self, preference: &[u8]) -> Result<StagingFile, WriteError> {
        if self.names.cache.lost_is_full(&self.share, self.names.bucket()).await {
            tracing::error!(
                "no file is written while lost/ holds as much as --lost-max allows: see what is \
                 there with `weir lost list`, then `weir lost restore` or `weir lost rm`"
            );
            return Err(std::io::Error::from(Errno::NOSPC).into());
        }
        let disk = self.names.cache.staging_disk(preference);
        Ok(disk.calls().in_place(|may| disk.create(may, Some(self.share.clone()))).await?)
    }

    /// Begins a change of a file, whose bytes come into `staging`. From here on the name is this
    /// node's. Whoever asks has entered its directory.
    pub fn begin(
        &self,
        node: &Arc<FileNode>,
        staging: StagingFile,
        beginning: Beginning,
    ) -> Arc<Draft> {
        let (author, spares) = (self.author(), self.spares.clone());
        let draft = Draft::new(node.clone(), staging, self.plan, beginning, author, spares);
        self.drafts().insert(node.ino, draft.clone());
        let (dir, name) = node.place();
        dir.begin_writing(&name, node);
        node.set_size(0);
        draft
    }

    /// The change that a node's file is under.
    pub fn draft(&self, ino: u64) -> Option<Arc<Draft>> {
        self.drafts().get(&ino).cloned()
    }

    /// Files under change that have a writer.
    pub fn open_drafts(&self) -> Vec<Arc<Draft>> {
        self.drafts().values().filter(|draft| draft.has_writer()).cloned().collect()
    }

    /// All files under change.
    pub fn all_drafts(&self) -> Vec<Arc<Draft>> {
        self.drafts().values().cloned().collect()
    }

    fn owner(&self) -> Owner {
        Owner {
            bucket: self.names.bucket().as_str().to_owned(),
            identity: self.names.settings.access.identity.clone(),
        }
    }

    /// Whose what earlier runs left may be: it is this mount's to work off.
    fn owners(&self) -> Vec<Owner> {
        let former = self.names.settings.access.former.iter();
        let before = former.map(|identity| Owner { identity: identity.clone(), ..self.owner() });
        [self.owner()].into_iter().chain(before).collect()
    }

    fn author(&self) -> Author {
        let mount = self.names.settings.mount.clone();
        Author { owner: self.owner(), mount, tenant: self.share.tenant().to_owned() }
    }

    /// The record of a rename of these objects: what is moved, where to, what it replaces there.
    async fn note_rename<'a>(
        &self,
        objects: impl Iterator<Item = (&'a VersionKey, &'a str, &'a Condition)>,
    ) -> RenameRecord {
        RenameRecord::begin(self.names.cache.record_disk(), self.owner(), objects).await
    }

    fn drafts(&self) -> MutexGuard<'_, HashMap<u64, Arc<Draft>>> {
        self.drafts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A text that no other writer uses.
fn new_nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Why a change failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The origin refused or did not answer.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The staging file on the cache disk failed.
    #[error("staging file: {0}")]
    Staging(#[from] std::io::Error),
    /// The cache's disk has no room for more.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The name exists already.
    #[error("it exists already")]
    Exists,
    /// There is no such name.
    #[error("no such file or directory")]
    Absent,
    /// A directory that is not empty.
    #[error("the directory is not empty")]
    NotEmpty,
    /// A directory where a file was expected.
    #[error("it is a directory")]
    IsDir,
    /// A file where a directory was expected.
    #[error("it is not a directory")]
    NotDir,
    /// Being changed by somebody on this node.
    #[error("it is being changed by somebody else")]
    Busy,
    /// Writing to it has ended.
    #[error("writing to it has ended")]
    Ended,
    /// A directory that takes too long to be renamed.
    #[error("a directory of so many or so large objects is not renamed; copy it instead")]
    TooMuch,
    /// A name that no file can have.
    #[error("{0}")]
    BadName(BadName),
    /// Larger than an object can be.
    #[error("larger than an S3 object can be")]
    TooLarge,
}

impl WriteError {
    /// Whether somebody else was faster.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Exists | Self::Origin(OriginError::Conflict))
    }

    /// Whether the request may have had an effect, or may have one a little later.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Origin(error) if error.is_transient())
    }

    /// The errno that a process sees.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Origin(error) => error.errno(),
            Self::Staging(error) => {
                error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
            }
            Self::NoRoom(_) => Errno::NOSPC,
            Self::Exists => Errno::EXIST,
            Self::Absent => Errno::NOENT,
            Self::NotEmpty => Errno::NOTEMPTY,
            Self::IsDir => Errno::ISDIR,
            Self::NotDir => Errno::NOTDIR,
            Self::Busy => Errno::BUSY,
            Self::Ended => Errno::IO,
            // mv then copies by itself.
            Self::TooMuch => Errno::XDEV,
            Self::BadName(BadName::TooLong | BadName::KeyTooLong) => Errno::NAMETOOLONG,
            Self::BadName(_) => Errno::INVAL,
            Self::TooLarge => Errno::FBIG,
        }
    }
}

impl From<LookupError> for WriteError {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Absent => Self::Absent,
            LookupError::BadName(reason) => Self::BadName(reason),
            LookupError::Origin(error) => Self::Origin(error),
        }
    }
}
