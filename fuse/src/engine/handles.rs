//! Open files and directories.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustix::io::Errno;

use super::modes::OpenInode;
use crate::namespace::dir::kernel_cache::DirView;
use crate::namespace::file::FileNode;
use crate::namespace::memory::NameMemory;
use crate::namespace::stream::DirStream;
use crate::read::Source;
use crate::read::window::Window;

/// What an open descriptor is.
pub enum Handle {
    /// A directory.
    Dir(DirView),
    /// A directory that is read page by page.
    DirStream(tokio::sync::Mutex<DirStream>),
    /// A file.
    File(FileHandle),
}

/// An open file.
pub struct FileHandle {
    /// Its node.
    pub node: Arc<FileNode>,
    /// How it is served.
    pub inode: Arc<OpenInode>,
    /// Where stored bytes come from; `None` while nothing of it is stored.
    pub source: Option<Source>,
    /// Follows the reads.
    pub window: Mutex<Window>,
    /// Bytes served by the daemon.
    pub served: AtomicU64,
    /// Who opened it for writing.
    pub writer: Option<Opener>,
}

/// Who opened a file for writing.
pub struct Opener {
    /// The process (tgid); 0 when unknown.
    pub process: u32,
    /// Whether that process has closed it once.
    pub has_closed: AtomicBool,
}

impl Opener {
    /// A process that has just opened it.
    pub(super) fn new(process: u32) -> Self {
        Self { process, has_closed: AtomicBool::new(false) }
    }
}

/// Handles by number.
pub struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    memory: Arc<NameMemory>,
}

impl Handles {
    /// None yet; the numbers that it gives are above `first`. They count towards `memory`.
    pub fn new(first: u64, memory: Arc<NameMemory>) -> Self {
        memory.mount_begins();
        Self { next: AtomicU64::new(first >> 1), open: RwLock::default(), memory }
    }

    /// Whether there may be one more.
    ///
    /// # Errors
    /// ENFILE.
    pub fn check_room(&self) -> Result<(), Errno> {
        if self.memory.has_room_for_handle(self.len()) {
            return Ok(());
        }
        tracing::warn!(
            open = self.len(),
            "an open is refused (ENFILE): open files take as much of --memory-target as they may"
        );
        Err(Errno::NFILE)
    }

    /// Adds a handle; returns its number, which tells for ever whether it was one for writing: a
    /// later engine must not answer the close of a writer that it does not know with success.
    pub fn add(&self, handle: Handle) -> u64 {
        let writes = matches!(&handle, Handle::File(FileHandle { writer: Some(_), .. }));
        let next = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let fh = next << 1 | u64::from(writes);
        self.memory.take_handle();
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(fh, Arc::new(handle));
        fh
    }

    /// Whether a number was given to a handle for writing, by whatever engine.
    pub fn is_writer(fh: u64) -> bool {
        fh & 1 == 1
    }

    /// The handle with this number.
    pub fn get(&self, fh: u64) -> Option<Arc<Handle>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&fh).cloned()
    }

    /// Takes a handle out.
    pub fn remove(&self, fh: u64) -> Option<Arc<Handle>> {
        let gone = self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&fh)?;
        self.memory.give_handles_back(1);
        Some(gone)
    }

    /// The numbers of the handles through which an inode can be written.
    pub fn writers_of(&self, ino: u64) -> Vec<u64> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let is_its = |handle: &Handle| match handle {
            Handle::File(file) => file.node.ino == ino && file.writer.is_some(),
            Handle::Dir(_) | Handle::DirStream(_) => false,
        };
        open.iter().filter(|(_, handle)| is_its(handle)).map(|(fh, _)| *fh).collect()
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

impl Drop for Handles {
    fn drop(&mut self) {
        self.memory.give_handles_back(self.len());
        self.memory.mount_ends();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_mounts_may_each_have_few_handles_where_others_have_many() {
        let memory = NameMemory::new(0);
        (0..1000).for_each(|_| memory.take_handle());
        let mounts: Vec<_> = (0..1000).map(|_| Handles::new(0, memory.clone())).collect();
        assert!(memory.has_room_for_handle(63) && !memory.has_room_for_handle(64));
        drop(mounts);
        assert!(memory.has_room_for_handle(64));
    }
}
