//! Backing ids: one per version, pooled for a while after the last close.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::kernel::KernelPort;
use crate::cache::CachedVersion;
use crate::cache::node::Pressure;

/// How long an unused id is kept.
const KEPT: Duration = Duration::from_secs(30);
/// Most ids kept; each holds a file open in the kernel.
const POOL_MAX: usize = 512;

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
#[derive(Default)]
pub struct BackingPool {
    port: OnceLock<Arc<dyn KernelPort>>,
    entries: Mutex<HashMap<u64, (Arc<Backing>, Instant)>>,
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

    /// The id of a trusted version; the same for all its opens.
    ///
    /// # Errors
    /// What the kernel or the cache file reports; then the version is served by the daemon.
    pub fn get(&self, version: &Arc<CachedVersion>) -> io::Result<Arc<Backing>> {
        let port = self.port.get().ok_or(io::ErrorKind::Unsupported)?;
        let mut entries = self.entries();
        if let Some((backing, used)) = entries.get_mut(&version.id) {
            *used = Instant::now();
            return Ok(backing.clone());
        }
        let file = version.open_for_passthrough()?;
        let id = port.open_backing(&file)?;
        let backing = Arc::new(Backing { id, _version: version.clone(), port: port.clone() });
        if entries.len() >= POOL_MAX {
            Self::drop_idle(&mut entries, Duration::ZERO);
        }
        entries.insert(version.id, (backing.clone(), Instant::now()));
        Ok(backing)
    }

    /// Gives back ids that were not used for a while.
    pub fn sweep(&self) {
        Self::drop_idle(&mut self.entries(), KEPT);
    }

    /// Gives back all ids, as at the end of the session.
    pub fn clear(&self) {
        self.entries().clear();
    }

    fn drop_idle(entries: &mut HashMap<u64, (Arc<Backing>, Instant)>, kept: Duration) {
        entries
            .retain(|_, (backing, used)| Arc::strong_count(backing) > 1 || used.elapsed() < kept);
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<u64, (Arc<Backing>, Instant)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pressure for BackingPool {
    fn relieve(&self) {
        Self::drop_idle(&mut self.entries(), Duration::ZERO);
    }
}
