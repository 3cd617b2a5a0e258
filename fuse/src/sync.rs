//! The locks of those parts whose interleavings are tested: the standard library's or, for
//! `tests/interleavings.rs`, shuttle's, which tries orders of threads. And how all locks are
//! taken.

use std::sync::{LockResult, PoisonError};

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, RwLock, atomic};
#[cfg(feature = "shuttle")]
pub(crate) use shuttle::thread;
#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, RwLock, atomic};
#[cfg(not(feature = "shuttle"))]
pub(crate) use std::thread;

/// The guard of a lock, also where an earlier holder panicked: that request got its error, and
/// the others of the mount are to go on.
pub(crate) fn unpoisoned<G>(locked: LockResult<G>) -> G {
    locked.unwrap_or_else(PoisonError::into_inner)
}
