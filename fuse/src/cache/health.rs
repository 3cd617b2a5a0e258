//! Whether a disk works, and the index on it.

use std::io;
use std::path::Path;
use std::sync::PoisonError;

use rustix::io::Errno;

use crate::sync::Mutex;

/// Failures in a row after which a disk counts as failing: one may be a bad block.
const FAILURES: u32 = 3;

/// What a disk's calls came to, and the index's commits.
#[derive(Default)]
pub struct DiskHealth {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    in_a_row: u32,
    problem: Option<String>,
    of_index: Option<String>,
}

impl DiskHealth {
    /// Notes how a call ended. A disk that is full is no failing one.
    /// Says whether that changes what is wrong.
    pub(super) fn note(&self, dir: &Path, done: Result<(), &io::Error>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(error) = done else {
            state.in_a_row = 0;
            return state.problem.take().is_some();
        };
        if !is_of_the_disk(error) {
            return false;
        }
        state.in_a_row += 1;
        if state.in_a_row != FAILURES {
            return false;
        }
        let dir = dir.display();
        tracing::error!(%dir, %error, "the cache's disk fails");
        state.problem = Some(format!("the cache's disk at {dir} fails: {error}"));
        true
    }

    /// Notes why the index takes nothing or, with `None`, that it does. Says whether that changes
    /// what is wrong.
    pub(super) fn note_index(&self, problem: Option<String>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut state.of_index, problem);
        before.is_some() != state.of_index.is_some()
    }

    /// Whether nothing is wrong.
    pub(super) fn works(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.problem.is_none() && state.of_index.is_none()
    }

    /// What is wrong, if anything is.
    pub fn problem(&self) -> Option<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.problem.clone().or_else(|| state.of_index.clone())
    }
}

fn is_of_the_disk(error: &io::Error) -> bool {
    let failing = [Errno::IO, Errno::ROFS, Errno::NODEV, Errno::NXIO, Errno::UCLEAN];
    error.raw_os_error().is_some_and(|raw| failing.contains(&Errno::from_raw_os_error(raw)))
}
