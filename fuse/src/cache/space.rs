//! How much the cache holds, and how much more it may.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::dir::CacheDir;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// How long a look at the file system's free space is believed, less what was written since.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Limits and use of a cache directory.
pub struct Space {
    max_size: u64,
    min_free: u64,
    used: AtomicU64,
    look: Mutex<Look>,
}

struct Look {
    at: Option<Instant>,
    free: u64,
    /// Set aside for what is being fetched.
    reserved: u64,
}

impl Space {
    /// `max_size` bounds what the cache holds, `min_free` what it leaves free; both in bytes.
    pub fn new(max_size: u64, min_free: u64) -> Self {
        let look = Look { at: None, free: 0, reserved: 0 };
        Self { max_size, min_free, used: AtomicU64::new(0), look: Mutex::new(look) }
    }

    /// Bytes held.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The bound on bytes held.
    pub fn max_size(&self) -> u64 {
        self.max_size
    }

    /// Notes bytes as held.
    pub fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes bytes as given back.
    pub fn subtract(&self, bytes: u64) {
        // Never below zero, whatever was counted before.
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            Some(used.saturating_sub(bytes))
        });
    }

    /// Bytes that may be added within both limits.
    pub fn available(&self, dir: &CacheDir) -> u64 {
        let mut look = self.look();
        self.look_if_old(&mut look, dir);
        let held = self.used().saturating_add(look.reserved);
        self.max_size.saturating_sub(held).min(look.free.saturating_sub(self.min_free))
    }

    fn look_if_old(&self, look: &mut Look, dir: &CacheDir) {
        if look.at.is_none_or(|at| at.elapsed() > LOOK_EVERY) {
            look.free = dir.free_bytes().unwrap_or(0).saturating_sub(look.reserved);
            look.at = Some(Instant::now());
        }
    }

    /// Sets `bytes` aside if both limits are then still kept.
    pub fn reserve(&self, dir: &CacheDir, bytes: u64) -> bool {
        let mut look = self.look();
        self.look_if_old(&mut look, dir);
        let all = self.used().saturating_add(look.reserved).saturating_add(bytes);
        let fits = all <= self.max_size && look.free >= self.min_free.saturating_add(bytes);
        if fits {
            look.free -= bytes;
            look.reserved += bytes;
        }
        fits
    }

    /// Gives back what was set aside.
    pub fn unreserve(&self, bytes: u64) {
        let mut look = self.look();
        look.reserved = look.reserved.saturating_sub(bytes);
    }

    /// Looks at the disk again at the next question, as after an eviction.
    pub fn look_again(&self) {
        self.look().at = None;
    }

    fn look(&self) -> MutexGuard<'_, Look> {
        self.look.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
