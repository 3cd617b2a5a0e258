//! Backing ids: one per version, pooled for a while after the last close.

use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::kernel::KernelPort;
use crate::blocking::MayBlock;
use crate::cache::{CachedVersion, Pressure};

/// How long an unused id is kept.
const KEPT: Duration = Duration::from_secs(30);
/// Most ids kept. Each holds a file open in the kernel, some 2 KiB; an open that finds its id
/// here costs a third less than one that must register it (docs/performance.md).
const POOL_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// Ids given back at once when room is short in the cache.
const RELIEVED: usize = 32;

/// A file that the kernel reads by itself.
pub struct Backing {
    /// Its raw id.
    pub id: u32,
    /// Not evicted while the kernel may read it.
    _version: Arc<CachedVersion>,
    port: Arc<dyn KernelPort>,
}

impl Drop for Backing {
    fn drop(&mut self) {
        self.port.close_backing(self.id);
    }
}

/// The ids of one session.
pub struct BackingPool {
    port: OnceLock<Arc<dyn KernelPort>>,
    registering: Mutex<()>,
    entries: Mutex<LruCache<u64, (Arc<Backing>, Instant)>>,
}

impl Default for BackingPool {
    fn default() -> Self {
        Self {
            port: OnceLock::new(),
            registering: Mutex::default(),
            entries: Mutex::new(LruCache::new(POOL_MAX)),
        }
    }
}

impl BackingPool {
    /// Makes passthrough possible.
    pub fn connect(&self, port: Arc<dyn KernelPort>) {
        let _ = self.port.set(port);
    }

    /// Whether the kernel can read files by itself.
    pub fn is_connected(&self) -> bool {
        self.port.get().is_some()
    }

    /// The id of a version, where it has one.
    pub fn get(&self, version: &CachedVersion) -> Option<Arc<Backing>> {
        let mut entries = self.entries();
        let (backing, used) = entries.get_mut(&version.number)?;
        *used = Instant::now();
        Some(backing.clone())
    }

    /// The id of a trusted version, which gets one if it has none; the same for all its opens.
    ///
    /// # Errors
    /// What the kernel or the cache file reports; then the version is served by the daemon.
    pub fn register(
        &self,
        may: &MayBlock,
        version: &Arc<CachedVersion>,
    ) -> io::Result<Arc<Backing>> {
        let port = self.port.get().ok_or(io::ErrorKind::Unsupported)?;
        // One id for a version: who comes second waits for it.
        let _registering = self.registering.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backing) = self.get(version) {
            return Ok(backing);
        }
        let file = version.open_for_passthrough(may)?;
        let id = port.open_backing(may, &file)?;
        let backing = Arc::new(Backing { id, _version: version.clone(), port: port.clone() });
        // What falls out of the pool lives on in the modes of inodes that have it open.
        self.entries().put(version.number, (backing.clone(), Instant::now()));
        Ok(backing)
    }

    /// Gives back ids that were not used for a while.
    pub fn sweep(&self) {
        Self::drop_idle(&mut self.entries(), KEPT, usize::MAX);
    }

    /// Gives back all ids, as at the end of the session.
    pub fn clear(&self) {
        self.entries().clear();
    }

    /// Drops at most `most` ids that nobody has open, least recently used first; says how many.
    fn drop_idle(
        entries: &mut LruCache<u64, (Arc<Backing>, Instant)>,
        kept: Duration,
        most: usize,
    ) -> usize {
        let idle = |(_, (backing, used)): &(&u64, &(Arc<Backing>, Instant))| {
            Arc::strong_count(backing) == 1 && used.elapsed() >= kept
        };
        let oldest_first = entries.iter().rev();
        let idle: Vec<u64> = oldest_first.filter(idle).take(most).map(|(id, _)| *id).collect();
        idle.iter().for_each(|id| {
            entries.pop(id);
        });
        idle.len()
    }

    fn entries(&self) -> MutexGuard<'_, LruCache<u64, (Arc<Backing>, Instant)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pressure for BackingPool {
    fn relieve(&self) -> bool {
        let given = Self::drop_idle(&mut self.entries(), Duration::ZERO, RELIEVED) > 0;
        if let (true, Some(port)) = (given, self.port.get()) {
            port.settle();
        }
        given
    }
}
