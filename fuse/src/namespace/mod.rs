//! Names: which files and directories there are, as far as the origin and local writes tell.
//!
//! Lock order, outermost first: [`dir::Dir`]'s listing gate (asynchronous), a directory's state,
//! a file node's state, the inode table. Two directories' states are never held at once.

pub mod dir;
pub mod file;
mod freshness;
pub mod health;
pub mod hidden;
pub mod inode;
pub(crate) mod kept;
pub mod listing;
pub mod memory;
pub mod pages;
pub mod refresh;
pub mod stream;
pub mod walk;

pub use inode::Node;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cache::NodeCache;
use crate::feed::hearing::BucketHearing;
use crate::model::key::{self, DirPrefix};
use crate::model::ttl::MetadataTtl;
use crate::model::version::{BucketId, VersionKey};
use crate::origin::{Origin, OriginError};
use dir::{Dir, Knowledge};
use file::FileNode;
use health::Health;
use hidden::HiddenKeys;
use inode::InodeTable;
use memory::NameMemory;
use refresh::Question;

/// How a mount shows its bucket.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct NamespaceSettings {
    /// What of the bucket is shown.
    pub prefix: DirPrefix,
    /// How long metadata is taken as true.
    pub ttl: MetadataTtl,
    /// How long the absence of a name is taken as true.
    pub negative_ttl: MetadataTtl,
    /// Nodeids and handles are numbered from here on: above those that an earlier engine gave
    /// the kernel for the same mount ([`first_ino`]).
    pub first_ino: u64,
    /// Names the mount for all engines that serve it, one after the other, and no other mount ever;
    /// empty where no other engine will.
    pub mount: String,
    /// Whose credentials are used.
    pub access: AccessSettings,
    /// Whether what the process hears of changes is about this bucket.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub feed: bool,
}

impl NamespaceSettings {
    /// How long the origin's word counts that an object may be read.
    pub fn permission_lifetime(&self) -> Duration {
        match self.access.each_object {
            true => self.ttl.duration(),
            false => Duration::from_secs(self.access.lifetime_s),
        }
    }
}

/// With whose credentials a mount speaks to its origin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct AccessSettings {
    /// Names them: equal for mounts that may see the same. Not a secret.
    pub identity: String,
    /// What those that they have replaced were named.
    pub former: Vec<String>,
    /// What releases before named the same ones.
    pub formerly: Option<String>,
    /// Whether each object is asked for, also where nobody else uses the bucket.
    #[serde(alias = "revocable")]
    pub each_object: bool,
    /// How long the origin's word counts, in seconds: a permission that is taken away ends then.
    pub lifetime_s: u64,
}

impl Default for AccessSettings {
    fn default() -> Self {
        Self {
            identity: String::new(),
            former: Vec::new(),
            formerly: None,
            each_object: false,
            lifetime_s: 900,
        }
    }
}

/// Where an engine begins to number that has this many before it on the same mount.
pub fn first_ino(generation: u16) -> u64 {
    // Nobody opens 2^44 files between two restarts.
    u64::from(generation) << 44
}

/// The names of one mount.
pub struct Namespace {
    /// Where they come from.
    pub origin: Arc<dyn Origin>,
    pub(crate) cache: Arc<NodeCache>,
    /// How they are shown.
    pub settings: NamespaceSettings,
    /// What the kernel knows.
    pub inodes: Arc<InodeTable>,
    /// Whether the origin answers.
    pub health: Health,
    pub(crate) hidden: HiddenKeys,
    memory: Arc<NameMemory>,
    root: Arc<Dir>,
    /// What is heard of changes.
    hearing: Option<BucketHearing>,
}

/// Why a name cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// There is no such name.
    #[error("no such file or directory")]
    Absent,
    /// No file can have this name.
    #[error("{0}")]
    BadName(key::BadName),
    /// The origin could not be asked, and nothing is remembered.
    #[error(transparent)]
    Origin(#[from] OriginError),
}

impl Namespace {
    /// An empty view of what `origin` holds.
    pub fn new(
        origin: Arc<dyn Origin>,
        cache: Arc<NodeCache>,
        memory: Arc<NameMemory>,
        hidden: HiddenKeys,
        settings: NamespaceSettings,
        hearing: Option<BucketHearing>,
    ) -> Arc<Self> {
        let root = Dir::root(settings.prefix.clone(), memory.clone());
        let inodes = InodeTable::new(Node::Dir(root.clone()), settings.first_ino, memory.clone());
        let health = Health::default();
        Arc::new(Self { origin, cache, settings, inodes, health, hidden, memory, root, hearing })
    }

    /// The root directory.
    pub fn root(&self) -> &Arc<Dir> {
        &self.root
    }

    /// Identity of the bucket.
    pub fn bucket(&self) -> &BucketId {
        self.origin.bucket_id()
    }

    /// What a log line calls the mount, where a process has several.
    pub(crate) fn session(&self) -> Option<&str> {
        Some(&*self.settings.mount).filter(|mount| !mount.is_empty())
    }

    /// Lifetime of names, as the kernel is told.
    pub fn ttl(&self) -> Duration {
        self.settings.ttl.duration()
    }

    /// How long a change by somebody else may go unseen at the most.
    pub fn staleness(&self) -> Duration {
        let short = self.ttl().max(self.settings.negative_ttl.duration());
        let hearing = self.hearing.as_ref();
        hearing.map_or(short, |hearing| hearing.staleness(short, Instant::now()))
    }

    /// The identity of the bytes that `node` shows, if it shows any that the origin holds.
    pub fn version_key(&self, node: &FileNode) -> Option<VersionKey> {
        let version = node.version()?;
        Some(VersionKey { bucket: self.bucket().clone(), key: node.key().into(), version })
    }

    /// Answers from what is known, without waiting; `None` when the origin must be asked.
    pub fn lookup_now(&self, dir: &Arc<Dir>, name: &str) -> Option<Result<Node, LookupError>> {
        if let Err(reason) = key::check_name(name) {
            return Some(Err(match reason {
                key::BadName::TooLong => LookupError::BadName(reason),
                _ => LookupError::Absent,
            }));
        }
        let now = Instant::now();
        match dir.known(name, &self.freshness(now)) {
            Knowledge::Present => self.present(dir, name),
            Knowledge::Absent => Some(Err(LookupError::Absent)),
            Knowledge::Expired | Knowledge::Unknown => None,
        }
    }

    /// Answers, asking the origin where needed.
    ///
    /// # Errors
    /// [`LookupError`].
    pub async fn lookup(&self, dir: &Arc<Dir>, name: &str) -> Result<Node, LookupError> {
        if let Some(answer) = self.lookup_now(dir, name) {
            return answer;
        }
        let look = || (self.present(dir, name), dir.has(name));
        match self.ask(dir, name, Question::Cheap, look).await? {
            (Some(answer), _) => answer,
            // Known from a listing without tags: HEAD tells the version.
            (None, true) => self.lookup_by_head(dir, name).await,
            (None, false) => Err(LookupError::Absent),
        }
    }

    async fn lookup_by_head(&self, dir: &Arc<Dir>, name: &str) -> Result<Node, LookupError> {
        let answer = self.ask(dir, name, Question::Head, || self.present(dir, name)).await?;
        answer.unwrap_or(Err(LookupError::Absent))
    }

    /// What the directory's state shows under this name, however old. `None`: nothing, or a file
    /// whose version is not known yet.
    pub fn present(&self, dir: &Arc<Dir>, name: &str) -> Option<Result<Node, LookupError>> {
        let found = dir.found(
            name,
            |dir, name, info| FileNode::new(self.inodes.next_ino(), dir.clone(), name, info),
            || self.inodes.next_ino(),
        )?;
        Some(Ok(found))
    }

    /// Whether `node` still is what its name shows, asking the origin where needed.
    ///
    /// # Errors
    /// What the origin reports, unless the last known state may be used.
    pub async fn is_current(&self, node: &Arc<FileNode>) -> Result<bool, OriginError> {
        if let Some(current) = self.is_current_now(node) {
            return Ok(current);
        }
        let (dir, name) = node.place();
        self.ask(&dir, &name, Question::Cheap, || dir.shows(&name, node)).await
    }

    /// As [`Namespace::lookup`], but the origin is asked whatever is known.
    ///
    /// # Errors
    /// [`LookupError`].
    #[cfg(test)]
    pub(crate) async fn lookup_at_origin(
        &self,
        dir: &Arc<Dir>,
        name: &str,
    ) -> Result<Node, LookupError> {
        key::check_name(name).map_err(LookupError::BadName)?;
        self.lookup_by_head(dir, name).await
    }

    /// As [`Namespace::is_current`], but the origin is asked whatever is known.
    ///
    /// # Errors
    /// What the origin reports, unless the last known state may be used.
    pub async fn is_current_at_origin(&self, node: &Arc<FileNode>) -> Result<bool, OriginError> {
        let (dir, name) = node.place();
        self.ask(&dir, &name, Question::Head, || dir.shows(&name, node)).await
    }

    /// Like [`Namespace::is_current`]; `None` when the origin must be asked.
    pub fn is_current_now(&self, node: &Arc<FileNode>) -> Option<bool> {
        let (dir, name) = node.place();
        match dir.known(&name, &self.freshness(Instant::now())) {
            Knowledge::Present => Some(dir.shows(&name, node)),
            Knowledge::Absent => Some(false),
            Knowledge::Expired | Knowledge::Unknown => None,
        }
    }

    /// How long the kernel may take a name for true: what is left of its lifetime.
    pub fn kernel_ttl(&self, dir: &Arc<Dir>, name: &str) -> Duration {
        let left = dir.left(name, &self.freshness(Instant::now()));
        left.map_or(self.ttl(), |left| left.min(self.ttl()))
    }
}
