//! Waiting between tries: exponential, capped, with full jitter.
//!
//! Full jitter is the variant that the AWS architecture blog ("Exponential Backoff And Jitter")
//! found to finish the same work with the fewest calls.

use std::time::Duration;

use rand::Rng;

/// Tries for a body that ended early or a part that failed, after what the SDK itself retried.
pub const BODY_TRIES: u32 = 4;

const BASE: Duration = Duration::from_millis(50);
const CAP: Duration = Duration::from_secs(3);

/// How long to wait before try number `attempt` (the first retry is 1).
pub fn backoff(attempt: u32) -> Duration {
    let ceiling = BASE.saturating_mul(1 << attempt.min(10)).min(CAP);
    ceiling.mul_f64(rand::rng().random_range(0.1..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_under_the_cap() {
        for attempt in 1..40 {
            let wait = backoff(attempt);
            assert!(wait > Duration::ZERO && wait <= CAP, "{attempt}: {wait:?}");
        }
    }
}
