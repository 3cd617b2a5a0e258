//! Writing: into a staging file on NVMe, from there in parts to the origin.
//!
//! Lock order, outermost first: a staging file's commit gate (asynchronous), its state, a
//! directory's state. No lock is held while bytes move.

pub mod names;
pub mod pace;
pub mod parts;
pub mod rename;
pub mod staging;
pub mod upload;

use std::sync::Arc;

use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::buffers::Buffers;
use crate::metrics::Metrics;
use crate::model::key::BadName;
use crate::namespace::{LookupError, Namespace};
use crate::origin::OriginError;
use parts::PartPlan;

/// Parts stored at once, over all files of a mount.
const PARTS_AT_ONCE: usize = 8;

/// Writes for one mount.
pub struct Writer {
    pub(crate) names: Arc<Namespace>,
    buffers: Arc<Buffers>,
    metrics: Arc<Metrics>,
    runtime: Handle,
    plan: PartPlan,
    slots: Semaphore,
}

impl Writer {
    /// `part_bytes` is the size of the first parts of an upload.
    pub fn new(
        names: Arc<Namespace>,
        buffers: Arc<Buffers>,
        metrics: Arc<Metrics>,
        runtime: Handle,
        part_bytes: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            names,
            buffers,
            metrics,
            runtime,
            plan: PartPlan::new(part_bytes),
            slots: Semaphore::new(PARTS_AT_ONCE),
        })
    }

    /// How uploads are divided.
    pub fn plan(&self) -> &PartPlan {
        &self.plan
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
    /// Being written by somebody on this node.
    #[error("it is being written")]
    Busy,
    /// A directory with more keys than a rename copies.
    #[error("a directory of more than {0} objects is not renamed; copy it instead")]
    TooMany(usize),
    /// A name that no file can have.
    #[error("{0}")]
    BadName(BadName),
    /// Larger than an object can be.
    #[error("larger than an S3 object can be")]
    TooLarge,
    /// Known, but not supported.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}

impl WriteError {
    /// Whether somebody else was faster.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Exists | Self::Origin(OriginError::Conflict))
    }

    /// The errno that a process sees.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Origin(error) => error.errno(),
            Self::Staging(error) => {
                error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
            }
            Self::Exists => Errno::EXIST,
            Self::Absent => Errno::NOENT,
            Self::NotEmpty => Errno::NOTEMPTY,
            Self::IsDir => Errno::ISDIR,
            Self::NotDir => Errno::NOTDIR,
            Self::Busy => Errno::BUSY,
            // mv then copies by itself.
            Self::TooMany(_) => Errno::XDEV,
            Self::BadName(BadName::TooLong | BadName::KeyTooLong) => Errno::NAMETOOLONG,
            Self::BadName(_) => Errno::INVAL,
            Self::TooLarge => Errno::FBIG,
            Self::Unsupported(_) => Errno::OPNOTSUPP,
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
