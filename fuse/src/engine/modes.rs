//! In which mode each open inode is served. The kernel refuses a mixture of passthrough and
//! page cache on one inode, so an open joins the present mode while there is one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::backing::Backing;
use crate::write::draft::Draft;

/// How the opens of an inode are served.
#[derive(Clone)]
pub enum Mode {
    /// By the daemon, through the kernel's page cache.
    Streaming,
    /// By the kernel itself.
    Cached(Arc<Backing>),
    /// From the file under change.
    Draft(Arc<Draft>),
}

/// An inode that is open, as its handles see it.
pub struct OpenInode {
    mode: RwLock<Mode>,
}

impl OpenInode {
    /// Its present mode.
    pub fn mode(&self) -> Mode {
        self.mode.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The file under change that its opens see.
    pub fn draft(&self) -> Option<Arc<Draft>> {
        match &*self.mode.read().unwrap_or_else(PoisonError::into_inner) {
            Mode::Draft(draft) => Some(draft.clone()),
            _ => None,
        }
    }

    fn set(&self, mode: Mode) {
        *self.mode.write().unwrap_or_else(PoisonError::into_inner) = mode;
    }
}

struct Entry {
    inode: Arc<OpenInode>,
    opens: u32,
    /// Handles among them through which can be written.
    writable: u32,
}

/// Modes by nodeid.
#[derive(Default)]
pub struct Modes {
    inodes: Mutex<HashMap<u64, Entry>>,
}

/// All modes, locked.
pub struct LockedModes<'a>(MutexGuard<'a, HashMap<u64, Entry>>);

impl Modes {
    /// Locks the modes, so that looking and joining are one step.
    pub fn lock(&self) -> LockedModes<'_> {
        LockedModes(self.inodes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many inodes are open.
    pub fn len(&self) -> usize {
        self.lock().0.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Notes a close. Returns a file under change whose last writer that was.
    pub fn close(&self, ino: u64, writable: bool) -> Option<Arc<Draft>> {
        let mut inodes = self.lock();
        let entry = inodes.0.get_mut(&ino)?;
        entry.opens = entry.opens.saturating_sub(1);
        let mut ended = None;
        if writable {
            entry.writable = entry.writable.saturating_sub(1);
            let draft = entry.inode.draft().filter(|draft| !draft.is_sealed());
            ended = draft.filter(|draft| draft.part());
        }
        inodes.drop_if_closed(ino);
        ended
    }

    /// Notes that what the last writer left has ended.
    pub fn finished(&self, ino: u64) {
        self.lock().drop_if_closed(ino);
    }
}

impl LockedModes<'_> {
    /// The present mode of an inode that is open.
    pub fn present(&self, ino: u64) -> Option<Mode> {
        self.0.get(&ino).map(|entry| entry.inode.mode())
    }

    /// Adds an open; `mode` counts only if there is none yet.
    pub fn join(&mut self, ino: u64, mode: Mode, writable: bool) -> Arc<OpenInode> {
        let new = || Entry {
            inode: Arc::new(OpenInode { mode: RwLock::new(mode) }),
            opens: 0,
            writable: 0,
        };
        let entry = self.0.entry(ino).or_insert_with(new);
        entry.opens += 1;
        entry.writable += u32::from(writable);
        entry.inode.clone()
    }

    /// How many handles can write to an inode.
    pub fn writable(&self, ino: u64) -> u32 {
        self.0.get(&ino).map_or(0, |entry| entry.writable)
    }

    /// Lets all opens of an inode see a file under change. Only where the opens there are go
    /// through the page cache.
    pub fn turn(&mut self, ino: u64, draft: Arc<Draft>) {
        if let Some(entry) = self.0.get_mut(&ino) {
            entry.inode.set(Mode::Draft(draft));
        }
    }

    fn drop_if_closed(&mut self, ino: u64) {
        let closed = self.0.get(&ino).is_some_and(|entry| {
            // Readers join what is being finished; a new writer waits for its end.
            entry.opens == 0 && entry.inode.draft().is_none_or(|draft| !draft.is_finishing())
        });
        if closed {
            self.0.remove(&ino);
        }
    }
}
