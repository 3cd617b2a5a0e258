//! Waiting between tries: exponential, capped, with full jitter.
//!
//! Full jitter is the variant that the AWS architecture blog ("Exponential Backoff And Jitter")
//! found to finish the same work with the fewest calls.

use std::time::Duration;

use rand::Rng;

use super::OriginError;

/// Tries for a body that ended early, after what the SDK itself retried.
pub const BODY_TRIES: u32 = 4;
/// Tries for an upload, which the SDK does not send again by itself.
const UPLOAD_TRIES: u32 = 8;
/// Tries for an upload that did not move: each takes half a minute.
const STALLED_TRIES: u32 = 3;

const BASE: Duration = Duration::from_millis(50);
const CAP: Duration = Duration::from_secs(3);

/// How long to wait before try number `attempt` (the first retry is 1).
pub fn backoff(attempt: u32) -> Duration {
    let ceiling = BASE.saturating_mul(1 << attempt.min(10)).min(CAP);
    ceiling.mul_f64(rand::rng().random_range(0.1..=1.0))
}

/// Whether an upload, or the completion of one, is to be sent again after it failed for the
/// `tries`th time.
pub fn upload_again(error: &OriginError, tries: u32) -> bool {
    match error {
        OriginError::TimedOut => tries < STALLED_TRIES,
        error => error.is_transient() && tries < UPLOAD_TRIES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_is_sent_again_where_that_may_help_and_not_for_ever() {
        let slow_down = OriginError::Unavailable("SlowDown".into());
        assert!(upload_again(&slow_down, 1) && !upload_again(&slow_down, UPLOAD_TRIES));
        assert!(upload_again(&OriginError::TimedOut, 1));
        assert!(!upload_again(&OriginError::TimedOut, STALLED_TRIES));
        assert!(!upload_again(&OriginError::Conflict, 1));
    }

    #[test]
    fn waits_grow_and_stay_under_the_cap() {
        for attempt in 1..40 {
            let wait = backoff(attempt);
            assert!(wait > Duration::ZERO && wait <= CAP, "{attempt}: {wait:?}");
        }
    }
}
