//! How many lines of a kind are logged: pods and origins decide what goes wrong, and how often.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines of a kind that may be logged at once.
const LINES_MAX: u32 = 100;
/// How long it takes until one more may be.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// How often it is told how many were left out.
pub(super) const TOLD_EVERY: Duration = Duration::from_secs(60);

/// How many lines of each place in the code may still be logged. Who asks for debug has them all.
#[derive(Clone, Default)]
pub(super) struct LineBudget(Arc<Mutex<Spent>>);

#[derive(Default)]
struct Spent {
    kinds: HashMap<Identifier, Kind>,
    left_out: u64,
}

struct Kind {
    left: u32,
    /// Up to when lines were added.
    filled: Instant,
}

impl Kind {
    fn new(now: Instant) -> Self {
        Self { left: LINES_MAX, filled: now }
    }

    /// Takes a line, if there is one.
    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.filled);
        let more = u32::try_from(since.as_secs() / LINE_EVERY.as_secs()).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(LINES_MAX);
            self.filled = now;
        }
        let is_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_left
    }
}

impl LineBudget {
    /// Lines that were left out since this was asked last.
    pub(super) fn left_out(&self) -> u64 {
        std::mem::take(&mut self.spent().left_out)
    }

    fn allows(&self, of: &Metadata<'_>, now: Instant) -> bool {
        if *of.level() > Level::INFO {
            return true;
        }
        let mut spent = self.spent();
        let allowed = spent.kinds.entry(of.callsite()).or_insert_with(|| Kind::new(now)).take(now);
        spent.left_out += u64::from(!allowed);
        allowed
    }

    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for LineBudget {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.allows(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    struct Count(Arc<Mutex<HashMap<Level, u64>>>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            *self.0.lock().unwrap().entry(*event.metadata().level()).or_default() += 1;
        }
    }

    #[test]
    fn lines_of_a_kind_are_bounded_and_others_are_still_told() {
        let (budget, counts) = (LineBudget::default(), Arc::new(Mutex::new(HashMap::new())));
        let count = Count(counts.clone());
        let subscriber = tracing_subscriber::registry().with(count).with(budget.clone());
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..10_000 {
                tracing::warn!(n, "a pod does this again and again");
                tracing::debug!(n, "whoever asks for it has all");
            }
            tracing::error!("something else");
        });
        let counts = counts.lock().unwrap();
        let count = |level| counts.get(&level).copied().unwrap_or_default();
        assert!((100..1000).contains(&count(Level::WARN)), "{counts:?}");
        assert_eq!((count(Level::ERROR), count(Level::DEBUG)), (1, 10_000));
        assert_eq!(budget.left_out() + count(Level::WARN), 10_000);
        assert_eq!(budget.left_out(), 0);
    }

    #[test]
    fn a_kind_may_have_more_lines_after_a_while() {
        let start = Instant::now();
        let mut kind = Kind::new(start);
        assert!((0..LINES_MAX).all(|_| kind.take(start)));
        assert!(!kind.take(start));
        let later = start + 2 * LINE_EVERY;
        assert!(kind.take(later) && kind.take(later) && !kind.take(later));
        assert!((0..LINES_MAX).all(|_| kind.take(later + Duration::from_secs(100_000))));
    }
}
