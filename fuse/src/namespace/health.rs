//! Whether the origin answers. While it does not, what is remembered is shown at once, however
//! old, instead of after a deadline each time.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::unpoisoned;

/// How long after a failure the origin is not asked again where an answer is remembered.
pub const HOLD_OFF: Duration = Duration::from_secs(5);

/// A circuit breaker.
#[derive(Default)]
pub struct Health {
    down_until: Mutex<Option<Instant>>,
}

impl Health {
    /// Whether the origin failed just now.
    pub fn is_down(&self) -> bool {
        let down = unpoisoned(self.down_until.lock());
        down.is_some_and(|until| Instant::now() < until)
    }

    /// Notes a failure; says whether it is the first of an outage.
    pub fn failed(&self) -> bool {
        let mut down = unpoisoned(self.down_until.lock());
        down.replace(Instant::now() + HOLD_OFF).is_none()
    }

    /// Notes an answer; says whether an outage ends with it.
    pub fn answered(&self) -> bool {
        let mut down = unpoisoned(self.down_until.lock());
        down.take().is_some()
    }
}
