//! How many lines of a kind are logged: pods and origins decide what goes wrong, and how often. A kind
//! is a place in the code and, where a line names it, the mount or bucket that the line is about: who
//! has used up his lines leaves others theirs.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines of a kind that may be logged at once.
const LINES_MAX: u32 = 100;
/// Most kinds that are told apart by what their lines are about; others of a place are one kind.
const KINDS_MAX: usize = 4096;
/// How long it takes until one more may be.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// How often it is told how many were left out.
pub(super) const TOLD_EVERY: Duration = Duration::from_secs(60);

/// How many lines of each kind may still be logged. Who asks for debug has them all.
#[derive(Clone, Default)]
pub(super) struct LineBudget(Arc<Mutex<Spent>>);

#[derive(Default)]
struct Spent {
    kinds: HashMap<(Identifier, About), Kind>,
    hasher: RandomState,
    left_out: u64,
}

/// What a line is about: the hash of it, or 0.
type About = u64;

/// Looks for what a line is about among its fields.
struct Fields<'a> {
    hasher: &'a RandomState,
    about: About,
}

impl Fields<'_> {
    fn note(&mut self, field: &Field, value: impl FnOnce() -> String) {
        if matches!(field.name(), "session" | "bucket") {
            self.about = self.hasher.hash_one(value());
        }
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field, || value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.note(field, || format!("{value:?}"));
    }
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

    /// Lines that were added since the last were.
    fn added(&self, now: Instant) -> u32 {
        let since = now.saturating_duration_since(self.filled);
        u32::try_from(since.as_secs() / LINE_EVERY.as_secs()).unwrap_or(u32::MAX)
    }

    /// Whether it has as many lines as a new one.
    fn is_full(&self, now: Instant) -> bool {
        self.left.saturating_add(self.added(now)) >= LINES_MAX
    }

    /// Takes a line, if there is one.
    fn take(&mut self, now: Instant) -> bool {
        let more = self.added(now);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(LINES_MAX);
            self.filled = now;
        }
        let is_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_left
    }
}

impl Spent {
    /// The kind of a line; those of mounts that are gone make place.
    fn kind_of(&mut self, place: Identifier, about: About, now: Instant) -> (Identifier, About) {
        let kind = (place.clone(), about);
        if about == 0 || self.kinds.contains_key(&kind) {
            return kind;
        }
        if self.kinds.len() >= KINDS_MAX {
            self.kinds.retain(|_, kind| !kind.is_full(now));
        }
        if self.kinds.len() >= KINDS_MAX { (place, 0) } else { kind }
    }
}

impl LineBudget {
    /// Lines that were left out since this was asked last.
    pub(super) fn left_out(&self) -> u64 {
        std::mem::take(&mut self.spent().left_out)
    }

    fn allows(&self, event: &Event<'_>, now: Instant) -> bool {
        let of = event.metadata();
        if *of.level() > Level::INFO {
            return true;
        }
        let mut spent = self.spent();
        let about = {
            let mut fields = Fields { hasher: &spent.hasher, about: 0 };
            event.record(&mut fields);
            fields.about
        };
        let kind = spent.kind_of(of.callsite(), about, now);
        let allowed = spent.kinds.entry(kind).or_insert_with(|| Kind::new(now)).take(now);
        spent.left_out += u64::from(!allowed);
        allowed
    }

    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for LineBudget {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.allows(event, Instant::now())
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

    /// A budget to which no time passes.
    struct Stopped(LineBudget, Instant);

    impl<S: Subscriber> Layer<S> for Stopped {
        fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
            self.0.allows(event, self.1)
        }
    }

    fn stopped(budget: &LineBudget) -> Stopped {
        Stopped(budget.clone(), Instant::now())
    }

    #[test]
    fn lines_of_a_kind_are_bounded_and_others_are_still_told() {
        let (budget, counts) = (LineBudget::default(), Arc::new(Mutex::new(HashMap::new())));
        let count = Count(counts.clone());
        let subscriber = tracing_subscriber::registry().with(count).with(stopped(&budget));
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..10_000 {
                tracing::warn!(n, "a pod does this again and again");
                tracing::debug!(n, "whoever asks for it has all");
            }
            tracing::error!("something else");
        });
        let counts = counts.lock().unwrap();
        let count = |level| counts.get(&level).copied().unwrap_or_default();
        assert_eq!(count(Level::WARN), u64::from(LINES_MAX));
        assert_eq!((count(Level::ERROR), count(Level::DEBUG)), (1, 10_000));
        assert_eq!(budget.left_out() + count(Level::WARN), 10_000);
        assert_eq!(budget.left_out(), 0);
    }

    #[test]
    fn who_has_used_up_his_lines_leaves_others_theirs() {
        let (budget, counts) = (LineBudget::default(), Arc::new(Mutex::new(HashMap::new())));
        let count = Count(counts.clone());
        let subscriber = tracing_subscriber::registry().with(count).with(stopped(&budget));
        let failed = |session: &str, n: usize| tracing::warn!(session, n, "a read fails");
        tracing::subscriber::with_default(subscriber, || {
            (0..1000).for_each(|n| failed("one that fails all the time", n));
            let before = counts.lock().unwrap()[&Level::WARN];
            failed("another", 0);
            assert_eq!(counts.lock().unwrap()[&Level::WARN], before + 1);
            // However many there are, they are remembered in a bounded number of kinds.
            (0..3 * KINDS_MAX).for_each(|n| failed(&n.to_string(), n));
            assert!(budget.spent().kinds.len() <= KINDS_MAX + 1);
        });
        let counted = counts.lock().unwrap()[&Level::WARN];
        assert_eq!(counted + budget.left_out(), 1001 + 3 * KINDS_MAX as u64);
        // One of each kind; those beyond are one kind of their own.
        assert!(counted < (KINDS_MAX as u64) + 2 * u64::from(LINES_MAX) + 2, "{counted}");
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
