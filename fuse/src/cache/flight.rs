//! Fetches under way, so that a range is fetched once whatever number of readers wait for it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock, PoisonError};

use tokio::sync::Notify;

use crate::buffers::Block;
use crate::origin::{Origin, OriginError};
use crate::sync::{Mutex, MutexGuard};

/// With whose credentials the origin is asked. Two that are in use at once differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AskerId(usize);

impl AskerId {
    /// Whoever asks this origin.
    pub fn of(origin: &Arc<dyn Origin>) -> Self {
        Self(Arc::as_ptr(origin).cast::<()>().addr())
    }
}

/// One fetch of a run of blocks.
pub struct Flight {
    range: Range<u32>,
    asker: AskerId,
    /// End of the blocks that somebody waited for when it began.
    wanted: u32,
    landed: Mutex<BTreeMap<u32, Block>>,
    outcome: OnceLock<Result<(), OriginError>>,
}

impl Flight {
    /// The blocks that it fetches.
    pub fn range(&self) -> Range<u32> {
        self.range.clone()
    }

    /// Who asks the origin.
    pub fn asker(&self) -> AskerId {
        self.asker
    }

    /// End of the blocks that somebody waited for when it began.
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    /// A block that has arrived.
    pub fn block(&self, block: u32) -> Option<Block> {
        self.landed.lock().unwrap_or_else(PoisonError::into_inner).get(&block).cloned()
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Result<(), OriginError>> {
        self.outcome.get()
    }
}

/// The flights of one version.
#[derive(Default)]
pub struct Flights {
    /// By first block; ranges do not overlap.
    under_way: Mutex<BTreeMap<u32, Arc<Flight>>>,
    changed: Notify,
}

impl Flights {
    /// The flight that fetches `block`.
    pub fn find(&self, block: u32) -> Option<Arc<Flight>> {
        let flights = self.lock();
        let (_, flight) = flights.range(..=block).next_back()?;
        flight.range.contains(&block).then(|| flight.clone())
    }

    /// Begins flights for those runs in `wanted` that are neither under way nor, by `held`,
    /// there already. No run is longer than `longest`; `limit` bounds their number. Somebody
    /// waits for the blocks before `waited_for`.
    pub fn begin(
        &self,
        asker: AskerId,
        wanted: Range<u32>,
        waited_for: u32,
        longest: u32,
        limit: usize,
        held: impl Fn(u32) -> bool,
    ) -> Vec<Arc<Flight>> {
        let mut flights = self.lock();
        let mut begun = Vec::new();
        let mut at = wanted.start;
        while at < wanted.end && begun.len() < limit {
            if let Some((_, flight)) = flights.range(..=at).next_back()
                && flight.range.contains(&at)
            {
                at = flight.range.end;
                continue;
            }
            if held(at) {
                at += 1;
                continue;
            }
            let bound = flights.range(at..).next().map_or(wanted.end, |(first, _)| *first);
            let bound = bound.min(wanted.end).min(at.saturating_add(longest.max(1)));
            let end = (at + 1..bound).find(|b| held(*b)).unwrap_or(bound);
            let flight = Arc::new(Flight {
                range: at..end,
                asker,
                wanted: waited_for.clamp(at, end),
                landed: Mutex::default(),
                outcome: OnceLock::new(),
            });
            flights.insert(at, flight.clone());
            begun.push(flight);
            at = end;
        }
        begun
    }

    /// Notes that consecutive blocks have arrived.
    pub fn landed(&self, flight: &Flight, first: u32, data: &[Block]) {
        let mut landed = flight.landed.lock().unwrap_or_else(PoisonError::into_inner);
        landed.extend((first..).zip(data.iter().cloned()));
        drop(landed);
        self.changed.notify_waiters();
    }

    /// Ends a flight.
    pub fn end(&self, flight: &Flight, outcome: Result<(), OriginError>) {
        let _ = flight.outcome.set(outcome);
        self.lock().remove(&flight.range.start);
        self.changed.notify_waiters();
    }

    /// A wait for the next change; to be enabled before the state is looked at.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Flight>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_never_overlap_and_skip_what_is_held() {
        let (flights, asker) = (Flights::default(), AskerId(1));
        let ranges = |begun: Vec<Arc<Flight>>| begun.iter().map(|f| f.range()).collect::<Vec<_>>();
        assert_eq!(ranges(flights.begin(asker, 4..8, 0, 100, 9, |_| false)), vec![4_u32..8; 1]);
        let begun = flights.begin(asker, 0..20, 0, 6, 9, |b| b == 1 || b == 10);
        assert_eq!(ranges(begun), [0..1, 2..4, 8..10, 11..17, 17..20]);
        assert_eq!(ranges(flights.begin(asker, 0..20, 0, 6, 9, |b| b == 1 || b == 10)), []);
        let flight = flights.find(9).unwrap();
        assert_eq!(flight.range(), 8..10);
        flights.end(&flight, Ok(()));
        assert!(flights.find(9).is_none());
        assert_eq!(ranges(flights.begin(asker, 8..12, 0, 1, 1, |_| false)), vec![8_u32..9; 1]);
    }
}
