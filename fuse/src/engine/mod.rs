//! Sessions: what FUSE asks, answered by namespace, reader and writer. No type of fuser's is
//! named here.
//!
//! Lock order, outermost first: [`modes::Modes`], the backing pool, handles. None is held while
//! the origin is asked.

mod access;
mod admission;
mod ahead;
mod allowed;
mod away;
pub mod backing;
pub mod end;
mod expiry;
pub mod handles;
pub mod io;
pub mod kernel;
pub mod modes;
pub mod names;
pub mod open;
mod open_write;
pub mod owner;
mod permission;
mod region_evictions;
pub mod resent;
mod reservations;
mod retries;
pub mod session;
pub mod status;
mod verdicts;
pub mod xattr;

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::blocking::{MayBlock, WaitingThreads};
use crate::buffers::Buffers;
use crate::cache::NodeCache;
use crate::feed::hearing::{BucketHearing, Hearing};
use crate::metrics::Metrics;
use crate::model::attr::Ownership;
use crate::model::version::BucketId;
use crate::namespace::NamespaceSettings;
use crate::namespace::memory::NameMemory;
use crate::origin::conditional::Verdicts;
use crate::origin::region::EvictionLog;
use crate::origin::s3::{answers_held, limit_answers};
use crate::read::Reader;
use crate::write::draft::LiveUploads;
use crate::write::leftovers::Leftovers;
use allowed::Permissions;
use owner::Processes;
use region_evictions::KeptEvictions;
use verdicts::KeptVerdicts;

pub use away::Answer;
pub use session::Session;

/// What all mounts of a node share.
pub struct Engine {
    /// The node cache.
    pub cache: Arc<NodeCache>,
    /// Memory for bytes on their way.
    pub buffers: Arc<Buffers>,
    /// Memory for names.
    pub name_memory: Arc<NameMemory>,
    /// Memory for the origin's answers, in bytes.
    answers_total: u64,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    pub(crate) reader: Arc<Reader>,
    pub(crate) runtime: Handle,
    /// Threads that wait for disks and for the mounter, for all sessions.
    pub(crate) waiting: WaitingThreads,
    pub(crate) processes: Arc<dyn Processes>,
    /// What earlier runs were writing when they ended.
    pub(crate) leftovers: Leftovers,
    pub(crate) verdicts: Arc<dyn Verdicts>,
    /// What regions are to forget.
    pub region_evictions: Arc<dyn EvictionLog>,
    /// What this run sends by parts.
    pub(crate) live_uploads: Arc<LiveUploads>,
    /// What its mounts remember of what origins have allowed.
    pub(crate) permissions: Arc<Permissions>,
    /// What is heard of changes that others make.
    hearing: OnceLock<Arc<Hearing>>,
}

impl Engine {
    /// `memory` is the limit of what others decide about, in bytes: half of it for bytes on their
    /// way, half for names and for the origin's answers. `read_part` is the most bytes that one GET asks for; `processes` knows
    /// who sends requests.
    ///
    /// # Errors
    /// That no thread can be started.
    pub fn new(
        may: &MayBlock,
        cache: Arc<NodeCache>,
        memory: u64,
        metrics: Arc<Metrics>,
        runtime: Handle,
        read_part: u64,
        processes: Arc<dyn Processes>,
    ) -> std::io::Result<Arc<Self>> {
        let buffers = Buffers::new(memory / 2);
        let reader = Reader::new(
            cache.clone(),
            buffers.clone(),
            metrics.clone(),
            runtime.clone(),
            read_part,
        );
        let leftovers = Leftovers::of(may, &cache);
        let answers_total = limit_answers(memory);
        let verdicts = Arc::new(KeptVerdicts::new(cache.clone()));
        let region_evictions = KeptEvictions::new(cache.clone(), leftovers.keys());
        runtime.spawn(show_health(Arc::downgrade(&cache)));
        let waiting = WaitingThreads::new("weir-waits", cache.threads())?;
        Ok(Arc::new(Self {
            cache,
            buffers,
            name_memory: NameMemory::new((memory / 2).saturating_sub(answers_total)),
            answers_total,
            metrics,
            reader,
            runtime,
            waiting,
            processes,
            leftovers,
            verdicts,
            region_evictions: Arc::new(region_evictions),
            live_uploads: Arc::default(),
            permissions: Arc::default(),
            hearing: OnceLock::new(),
        }))
    }

    /// Mounts that are made from now on, and whose settings say so, know what is heard here.
    pub fn follow(&self, hearing: Arc<Hearing>) {
        let _ = self.hearing.set(hearing);
    }

    /// What is heard of a bucket, for mounts with these settings.
    fn hearing_of(&self, bucket: &BucketId, names: &NamespaceSettings) -> Option<BucketHearing> {
        let hearing = self.hearing.get().filter(|_| names.feed)?;
        Some(hearing.of_bucket(bucket.name()))
    }

    /// Bytes taken of the memory for what others decide about.
    pub fn memory_used(&self) -> u64 {
        self.buffers.used() + self.name_memory.used() + answers_held()
    }

    /// The limit of that, in bytes.
    pub fn memory_total(&self) -> u64 {
        self.buffers.total() + self.name_memory.total() + self.answers_total
    }
}

/// Makes the metrics follow what the cache's disks do not answer, for as long as it is there.
async fn show_health(cache: Weak<NodeCache>) {
    const EVERY: Duration = Duration::from_secs(5);
    while let Some(cache) = cache.upgrade() {
        cache.show_health();
        drop(cache);
        tokio::time::sleep(EVERY).await;
    }
}

/// Objects up to this size are fetched whole by open, ahead of somebody who walks a directory,
/// and never change their nodeid because of an open.
pub const SMALL_MAX: u64 = crate::model::blocks::BLOCK;

/// Objects smaller than this are not read by passthrough: an inode that is would have to give
/// way to a new one when somebody opens the name for writing, and all opens of a lock file must
/// meet in one inode. Lock files hold a process id or a host name, if anything.
pub const PASSTHROUGH_MIN: u64 = 4096;

/// How one mount behaves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionSettings {
    /// What is shown, and for how long it is true.
    pub names: NamespaceSettings,
    /// Owner and modes of everything shown.
    pub ownership: Ownership,
    /// Refuse every change.
    pub read_only: bool,
    /// Let the kernel read complete versions by itself.
    pub passthrough: bool,
    /// Size of the first parts of an upload, in bytes.
    pub write_part: u64,
}

/// What a mount has where nothing else is said.
impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            names: NamespaceSettings::default(),
            ownership: Ownership::default(),
            read_only: false,
            passthrough: true,
            write_part: 8 << 20,
        }
    }
}
