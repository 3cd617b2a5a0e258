//! Whether a disk works.

use std::io;
use std::path::Path;
use std::sync::PoisonError;

use rustix::io::Errno;

use crate::sync::Mutex;

/// Failures in a row after which a disk counts as failing: one may be a bad block.
const FAILURES: u32 = 3;

/// What a disk's calls came to.
#[derive(Default)]
pub struct DiskHealth {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    in_a_row: u32,
    problem: Option<String>,
}

impl DiskHealth {
    /// Notes how a call ended. A disk that is full is no failing one.
    /// Says whether the disk fails, where that is new.
    pub(super) fn note(&self, dir: &Path, done: Result<(), &io::Error>) -> Option<bool> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(error) = done else {
            let failed = std::mem::take(&mut *state).problem.is_some();
            return failed.then_some(false);
        };
        if !is_of_the_disk(error) {
            return None;
        }
        state.in_a_row += 1;
        if state.in_a_row != FAILURES {
            return None;
        }
        let dir = dir.display();
        tracing::error!(%dir, %error, "the cache's disk fails");
        state.problem = Some(format!("the cache's disk at {dir} fails: {error}"));
        Some(true)
    }

    /// What is wrong, if anything is.
    pub fn problem(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).problem.clone()
    }
}

fn is_of_the_disk(error: &io::Error) -> bool {
    let failing = [Errno::IO, Errno::ROFS, Errno::NODEV, Errno::NXIO, Errno::UCLEAN];
    error.raw_os_error().is_some_and(|raw| failing.contains(&Errno::from_raw_os_error(raw)))
}
