//! In which mode each open inode is served. The kernel refuses a mixture of passthrough and
//! page cache on one inode, so an open joins the present mode while there is one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::backing::Backing;
use crate::write::staging::Staging;

/// How the opens of an inode are served.
#[derive(Clone)]
pub enum Mode {
    /// By the daemon, through the kernel's page cache.
    Streaming,
    /// By the kernel itself.
    Cached(Arc<Backing>),
    /// From the file that is being written.
    Staging(Arc<Staging>),
}

/// The mode of an open inode and its opens.
pub struct OpenInode {
    /// Its mode.
    pub mode: Mode,
    opens: u32,
    writers: u32,
    /// The last writer has closed, and what it wrote is being stored and cached. Readers join
    /// the staging file meanwhile; a new writer waits.
    finishing: bool,
}

/// What a close leaves to do.
pub enum Closed {
    /// Nothing.
    Quiet,
    /// The last writer is gone: the staging file is to be finished.
    LastWriter(Arc<Staging>),
}

/// Modes by nodeid.
#[derive(Default)]
pub struct Modes {
    inodes: Mutex<HashMap<u64, OpenInode>>,
}

/// All modes, locked.
pub struct Locked<'a>(MutexGuard<'a, HashMap<u64, OpenInode>>);

impl Modes {
    /// Locks the modes, so that looking and joining are one step.
    pub fn lock(&self) -> Locked<'_> {
        Locked(self.inodes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The file being written under this nodeid.
    pub fn staging(&self, ino: u64) -> Option<Arc<Staging>> {
        match self.lock().0.get(&ino).map(|open| &open.mode) {
            Some(Mode::Staging(staging)) => Some(staging.clone()),
            _ => None,
        }
    }

    /// How many inodes are open.
    pub fn len(&self) -> usize {
        self.lock().0.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Files that are being written.
    pub fn writing(&self) -> Vec<Arc<Staging>> {
        let staging = |open: &OpenInode| match &open.mode {
            Mode::Staging(staging) if open.writers > 0 => Some(staging.clone()),
            _ => None,
        };
        self.lock().0.values().filter_map(staging).collect()
    }

    /// Notes a close.
    pub fn close(&self, ino: u64, writer: bool) -> Closed {
        let mut inodes = self.lock();
        let Some(open) = inodes.0.get_mut(&ino) else { return Closed::Quiet };
        open.opens = open.opens.saturating_sub(1);
        let mut closed = Closed::Quiet;
        if writer {
            open.writers = open.writers.saturating_sub(1);
            if let (Mode::Staging(staging), 0) = (&open.mode, open.writers) {
                closed = Closed::LastWriter(staging.clone());
                open.finishing = true;
            }
        }
        if open.opens == 0 && !open.finishing {
            inodes.0.remove(&ino);
        }
        closed
    }

    /// Notes that what the last writer left is stored and cached.
    pub fn finished(&self, ino: u64) {
        let mut inodes = self.lock();
        if let Some(open) = inodes.0.get_mut(&ino) {
            open.finishing = false;
            if open.opens == 0 {
                inodes.0.remove(&ino);
            }
        }
    }
}

impl Locked<'_> {
    /// The present mode of an inode that is open.
    pub fn present(&self, ino: u64) -> Option<&Mode> {
        self.0.get(&ino).map(|open| &open.mode)
    }

    /// Whether what the last writer left is still being stored.
    pub fn is_finishing(&self, ino: u64) -> bool {
        self.0.get(&ino).is_some_and(|open| open.finishing)
    }

    /// Whether somebody has the inode open for writing.
    pub fn has_writer(&self, ino: u64) -> bool {
        self.0.get(&ino).is_some_and(|open| open.writers > 0)
    }

    /// Adds an open; `mode` counts only if there is none yet.
    pub fn join(&mut self, ino: u64, mode: Mode, writer: bool) {
        let open =
            self.0.entry(ino).or_insert(OpenInode { mode, opens: 0, writers: 0, finishing: false });
        open.opens += 1;
        open.writers += u32::from(writer);
    }

    /// Adds a writer and lets all opens of the inode see what it writes. Only where the opens
    /// there are go through the page cache.
    pub fn become_staging(&mut self, ino: u64, staging: Arc<Staging>) {
        self.join(ino, Mode::Staging(staging.clone()), true);
        if let Some(open) = self.0.get_mut(&ino) {
            open.mode = Mode::Staging(staging);
        }
    }
}
