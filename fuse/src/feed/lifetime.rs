//! For how long an answer of the origin's is taken as true.

use std::time::{Duration, Instant};

/// When a feed lives: all changes that were made since its beginning have been heard of, until its end but
/// for what is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Since when nothing was missed.
    pub since: Instant,
    /// Up to when that is so if nothing more comes.
    pub until: Instant,
}

/// When something was heard of a name.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Marked {
    /// Of itself.
    pub own: Option<Instant>,
    /// Of a key deeper below, by which a directory may have come or gone.
    pub implied: Option<Instant>,
}

/// What is implied by deeper keys is asked for no more often than so, where names live as long: who writes
/// below a directory all the time is not to make every look at those above it a question.
pub const IMPLIED_EVERY: Duration = Duration::from_secs(1);

/// How long answers are taken as true.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetime {
    /// In any case, where nothing is heard.
    pub short: Duration,
    /// While a feed lives.
    pub long: Duration,
    /// When it does.
    pub span: Option<Span>,
}

impl Lifetime {
    /// Where no feed is.
    pub fn plain(short: Duration) -> Self {
        Self { short, long: short, span: None }
    }

    /// How long the answer to a question that was asked at `asked` is still taken as true. An answer from
    /// before a lapse never lives long again: what was said meanwhile is not known.
    pub fn left(&self, asked: Instant, marked: Marked, now: Instant) -> Duration {
        let age = now.saturating_duration_since(asked);
        let after = |mark: Option<Instant>| mark.is_some_and(|at| at >= asked);
        let implied = after(marked.implied) && age >= IMPLIED_EVERY.min(self.short);
        if after(marked.own) || implied {
            return Duration::ZERO;
        }
        let lives = self.span.is_some_and(|span| span.since <= asked && now <= span.until);
        let long = if lives { self.long } else { Duration::ZERO };
        self.short.max(long).saturating_sub(age)
    }

    /// Whether it is.
    pub fn is_fresh(&self, asked: Instant, marked: Marked, now: Instant) -> bool {
        !self.left(asked, marked, now).is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(2);
    const LONG: Duration = Duration::from_secs(300);

    #[test]
    fn an_answer_lives_long_only_while_the_feed_lived_all_along() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let span = Span { since: at(10), until: at(100) };
        let lifetime = Lifetime { short: SHORT, long: LONG, span: Some(span) };
        let left = |asked, now| lifetime.left(at(asked), Marked::default(), at(now)).as_secs();
        assert_eq!(left(10, 50), 260);
        assert_eq!(left(9, 10), 1, "from before it lived");
        assert_eq!(left(9, 50), 0);
        assert_eq!(left(10, 101), 0, "nothing more was heard");
        assert_eq!(left(100, 101), 1);
        let none = Lifetime { span: None, ..lifetime };
        assert!(!none.is_fresh(at(10), Marked::default(), at(12)));
        assert!(none.is_fresh(at(10), Marked::default(), at(11)));
    }

    #[test]
    fn what_is_marked_is_as_if_never_asked_and_what_is_implied_after_a_second() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let span = Span { since: at(0), until: at(100_000) };
        let lifetime = Lifetime { short: SHORT, long: LONG, span: Some(span) };
        let own = |ms| Marked { own: Some(at(ms)), implied: None };
        let implied = |ms| Marked { own: None, implied: Some(at(ms)) };
        assert!(lifetime.is_fresh(at(5), own(4), at(6)));
        for mark in [5, 6] {
            assert!(!lifetime.is_fresh(at(5), own(mark), at(6)), "{mark}");
            assert!(lifetime.is_fresh(at(5), implied(mark), at(1004)), "{mark}");
            assert!(!lifetime.is_fresh(at(5), implied(mark), at(1005)), "{mark}");
        }
        let minimal = Lifetime { short: Duration::ZERO, ..lifetime };
        assert!(!minimal.is_fresh(at(5), implied(5), at(5)));
        assert!(minimal.is_fresh(at(5), Marked::default(), at(5)));
    }
}
