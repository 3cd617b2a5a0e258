//! Open files and directories.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::namespace::dir::kernel_cache::DirView;
use crate::namespace::file::FileNode;
use crate::read::Source;
use crate::read::window::Window;
use crate::write::staging::Staging;

/// What an open descriptor is.
pub enum Handle {
    /// A directory.
    Dir(DirView),
    /// A file open for reading.
    Read(ReadHandle),
    /// A file open for writing.
    Write(WriteHandle),
}

/// A file open for reading.
pub struct ReadHandle {
    /// Its node.
    pub node: Arc<FileNode>,
    /// Where its bytes come from; `None` while nothing of it is stored.
    pub source: Option<Source>,
    /// Follows the reads.
    pub window: Mutex<Window>,
    /// Bytes served by the daemon.
    pub served: AtomicU64,
    /// Whether it was opened for writing, too, over bytes that are there: so far it can only be
    /// emptied through it.
    pub writable: bool,
}

/// A file open for writing.
pub struct WriteHandle {
    /// Its node.
    pub node: Arc<FileNode>,
    /// Where it is written to.
    pub staging: Arc<Staging>,
    /// Process (tgid) that opened it; 0 when unknown.
    pub opener: u32,
    /// Whether that process has closed it once.
    pub opener_closed: AtomicBool,
}

/// Handles by number.
pub struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<Handle>>>,
}

impl Handles {
    /// None yet; the numbers that it gives are above `first`.
    pub fn new(first: u64) -> Self {
        Self { next: AtomicU64::new(first), open: RwLock::default() }
    }

    /// Adds a handle; returns its number.
    pub fn add(&self, handle: Handle) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(fh, Arc::new(handle));
        fh
    }

    /// The handle with this number.
    pub fn get(&self, fh: u64) -> Option<Arc<Handle>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&fh).cloned()
    }

    /// Takes a handle out.
    pub fn remove(&self, fh: u64) -> Option<Arc<Handle>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&fh)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.open.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
