//! What is known of an endpoint, and for how long it is believed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::model::version::BucketId;
use crate::origin::condition::ConditionKind;

/// How long an answer is believed: endpoints are upgraded.
const BELIEVED: Duration = Duration::from_secs(7 * 24 * 3600);

/// What an endpoint is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Question {
    /// Whether it obeys a condition.
    Condition(ConditionKind),
    /// Whether it refuses a body whose CRC32C is wrong.
    Checksums,
}

/// What it was found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It obeys.
    Obeyed,
    /// It obeys where the tag comes without its quotes, and refuses the right tag with them.
    ObeyedBare,
    /// It takes the header and ignores it.
    Ignored,
    /// It refuses requests that carry the header.
    Refused,
}

impl Verdict {
    /// Whether a request may rely on the header alone.
    pub fn is_obeyed(self) -> bool {
        matches!(self, Self::Obeyed | Self::ObeyedBare)
    }
}

/// Where verdicts are kept from one mount to the next, by bucket. Losing them costs a few
/// requests.
pub trait Verdicts: Send + Sync + 'static {
    /// What was stored last.
    fn load(&self, bucket: &BucketId) -> Option<Vec<u8>>;

    /// Keeps this in place of what was there.
    fn store(&self, bucket: &BucketId, bytes: Vec<u8>);
}

/// Keeps verdicts for as long as the process lives.
#[derive(Default)]
pub struct MemoryVerdicts(Mutex<HashMap<BucketId, Vec<u8>>>);

impl Verdicts for MemoryVerdicts {
    fn load(&self, bucket: &BucketId) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(bucket).cloned()
    }

    fn store(&self, bucket: &BucketId, bytes: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(bucket.clone(), bytes);
    }
}

/// The verdicts on one bucket's endpoint, each with its time in seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known(BTreeMap<Question, (Verdict, u64)>);

impl Known {
    /// What was kept; nothing where it cannot be read.
    pub(super) fn load(verdicts: &dyn Verdicts, bucket: &BucketId) -> Self {
        let bytes = verdicts.load(bucket).unwrap_or_default();
        postcard::from_bytes(&bytes).unwrap_or_default()
    }

    pub(super) fn store(&self, verdicts: &dyn Verdicts, bucket: &BucketId) {
        match postcard::to_allocvec(self) {
            Ok(bytes) => verdicts.store(bucket, bytes),
            Err(error) => tracing::debug!(%error, "verdicts are not kept"),
        }
    }

    pub(super) fn note(&mut self, question: Question, verdict: Verdict, now: SystemTime) {
        self.0.insert(question, (verdict, seconds(now)));
    }

    /// A verdict and its age, unless that is too old, or of a time to come.
    pub(super) fn get(&self, question: Question, now: SystemTime) -> Option<(Verdict, Duration)> {
        let (verdict, at) = self.0.get(&question)?;
        let age = Duration::from_secs(seconds(now).checked_sub(*at)?);
        (age < BELIEVED).then_some((*verdict, age))
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_kept_and_believed_for_a_week() {
        let bucket = BucketId::new("e", "b");
        let verdicts = MemoryVerdicts::default();
        let question = Question::Condition(ConditionKind::PutMatches);
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut known = Known::load(&verdicts, &bucket);
        assert_eq!(known, Known::default());
        known.note(question, Verdict::Ignored, then);
        known.store(&verdicts, &bucket);
        let known = Known::load(&verdicts, &bucket);
        let at = |days: u64| known.get(question, then + Duration::from_secs(days * 24 * 3600));
        assert_eq!(at(6).unwrap().0, Verdict::Ignored);
        assert_eq!(at(7), None);
        assert_eq!(known.get(Question::Checksums, then), None);
        assert_eq!(known.get(question, SystemTime::UNIX_EPOCH), None);
        verdicts.store(&bucket, vec![0xff; 3]);
        assert_eq!(Known::load(&verdicts, &bucket), Known::default());
    }
}
