//! What is known of an endpoint, and for how long it is believed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::model::version::BucketId;
use crate::origin::condition::ConditionKind;

/// How long an answer is believed, by the clock of the wall: endpoints are upgraded and replaced,
/// and asking again costs a few requests.
const BELIEVED: Duration = Duration::from_secs(24 * 3600);

/// What an endpoint is asked. Kept on disks by the places of its variants, so that new ones go
/// to the end; of [`ConditionKind`] and [`Verdict`], too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Question {
    /// Whether it obeys a condition.
    Condition(ConditionKind),
    /// Whether it refuses a body whose CRC32C is wrong.
    Checksums,
}

/// What it was found to do. New variants go to the end.
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

/// Where verdicts are kept from one mount to the next, by endpoint and bucket. Losing them costs a
/// few requests. Neither call keeps a thread of the runtime from other tasks.
#[async_trait]
pub trait Verdicts: Send + Sync + 'static {
    /// What was stored last.
    async fn load(&self, bucket: &BucketId) -> Option<Vec<u8>>;

    /// Keeps this in place of what was there.
    fn store(&self, bucket: &BucketId, bytes: Vec<u8>);
}

/// Keeps verdicts for as long as the process lives.
#[derive(Default)]
pub struct MemoryVerdicts(Mutex<HashMap<BucketId, Vec<u8>>>);

impl MemoryVerdicts {
    /// As [`Verdicts::load`].
    pub fn known(&self, bucket: &BucketId) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(bucket).cloned()
    }
}

#[async_trait]
impl Verdicts for MemoryVerdicts {
    async fn load(&self, bucket: &BucketId) -> Option<Vec<u8>> {
        self.known(bucket)
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
    pub(super) async fn load(verdicts: &dyn Verdicts, bucket: &BucketId) -> Self {
        Self::read(&verdicts.load(bucket).await.unwrap_or_default())
    }

    fn read(bytes: &[u8]) -> Self {
        postcard::from_bytes(bytes).unwrap_or_default()
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

    /// Adds what is newer in `other`, but for what is of a time to come.
    pub(super) fn add(&mut self, other: Self, now: SystemTime) {
        let now = seconds(now);
        for (question, (verdict, at)) in other.0 {
            let own = self.0.get(&question);
            if at <= now && own.is_none_or(|(_, own)| *own < at || *own > now) {
                self.0.insert(question, (verdict, at));
            }
        }
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
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: Question = Question::Condition(ConditionKind::PutMatches);
    const HOUR: Duration = Duration::from_secs(3600);

    fn then() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    #[tokio::test]
    async fn a_verdict_is_kept_and_believed_for_a_day() {
        let bucket = BucketId::new("e", "b");
        let verdicts = MemoryVerdicts::default();
        let mut known = Known::load(&verdicts, &bucket).await;
        assert_eq!(known, Known::default());
        known.note(QUESTION, Verdict::Ignored, then());
        known.store(&verdicts, &bucket);
        let known = Known::load(&verdicts, &bucket).await;
        let at = |hours: u32| known.get(QUESTION, then() + hours * HOUR);
        assert_eq!(at(23).unwrap(), (Verdict::Ignored, 23 * HOUR));
        assert_eq!(at(24), None);
        assert_eq!(known.get(Question::Checksums, then()), None);
        // The clock went back.
        assert_eq!(known.get(QUESTION, then() - HOUR), None);
        for other in [BucketId::new("e", "c"), BucketId::new("f", "b")] {
            assert_eq!(Known::load(&verdicts, &other).await, Known::default());
        }
        verdicts.store(&bucket, vec![0xff; 3]);
        assert_eq!(Known::load(&verdicts, &bucket).await, Known::default());
    }

    #[test]
    fn of_two_verdicts_the_newer_counts_unless_it_is_of_a_time_to_come() {
        let of = |verdict, at| {
            let mut known = Known::default();
            known.note(QUESTION, verdict, at);
            known
        };
        let sum = |mut own: Known, other, now| {
            own.add(other, now);
            own.get(QUESTION, now).map(|(verdict, _)| verdict)
        };
        let (old, new) = (of(Verdict::Ignored, then()), of(Verdict::Obeyed, then() + HOUR));
        let later = then() + 2 * HOUR;
        assert_eq!(sum(old.clone(), new.clone(), later), Some(Verdict::Obeyed));
        assert_eq!(sum(new.clone(), old.clone(), later), Some(Verdict::Obeyed));
        assert_eq!(sum(Known::default(), old.clone(), later), Some(Verdict::Ignored));
        assert_eq!(sum(old.clone(), new.clone(), then()), Some(Verdict::Ignored));
        assert_eq!(sum(new, old, then()), Some(Verdict::Ignored));
    }

    /// What an earlier release kept is read by this one, and never as something else.
    #[test]
    fn verdicts_are_kept_in_one_form() {
        let mut known = Known::default();
        for (at, kind) in (1..).zip(ConditionKind::ALL) {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
            known.note(Question::Condition(kind), Verdict::Obeyed, at);
        }
        for (question, verdict) in [
            (Question::Condition(ConditionKind::CompleteAbsent), Verdict::ObeyedBare),
            (Question::Condition(ConditionKind::CopySource), Verdict::Ignored),
            (Question::Checksums, Verdict::Refused),
        ] {
            known.note(question, verdict, SystemTime::UNIX_EPOCH + Duration::from_secs(300));
        }
        let kept = [
            10, 0, 0, 0, 1, 0, 1, 0, 2, 0, 2, 1, 172, 2, 0, 3, 0, 4, 0, 4, 0, 5, 0, 5, 0, 6, 0, 6,
            0, 7, 0, 7, 2, 172, 2, 0, 8, 0, 9, 1, 3, 172, 2,
        ];
        assert_eq!(postcard::to_allocvec(&known).unwrap(), kept);
        assert_eq!(postcard::from_bytes::<Known>(&kept).unwrap(), known);
    }
}
