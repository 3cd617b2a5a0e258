//! Questions that many wait for, and one asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::timeout;

/// How long an answer is waited for.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long what was not answered is not asked again.
const UNANSWERED_AGAIN: Duration = Duration::from_secs(1);

/// A question that is asked at most once in a while.
pub(super) struct Lately {
    /// How long what was answered is not asked again.
    again: Duration,
    last: Arc<Mutex<Option<Last>>>,
}

#[derive(Clone, Copy)]
struct Last {
    at: Instant,
    /// Whether the answer was yes; `None` where there was none.
    answer: Option<bool>,
}

impl Lately {
    /// Was never asked.
    pub(super) fn new(again: Duration) -> Self {
        Self { again, last: Arc::default() }
    }

    /// Asks, unless that was done not long ago; who comes meanwhile waits for the same answer. It is
    /// waited for though nobody does any more: it is for those, too, who come next. Returns whether
    /// there was a yes since `since`.
    pub(super) async fn ask(
        &self,
        since: Instant,
        question: impl Future<Output = Option<bool>> + Send + 'static,
    ) -> bool {
        let mut last = self.last.clone().lock_owned().await;
        if let Some(Last { at, answer }) = *last {
            let again = if answer.is_some() { self.again } else { UNANSWERED_AGAIN };
            if at.elapsed() < again {
                return answer == Some(true) && at >= since;
            }
        }
        let asked = tokio::spawn(async move {
            let answer = timeout(DEADLINE, question).await.ok().flatten();
            *last = Some(Last { at: Instant::now(), answer });
            answer == Some(true)
        });
        asked.await.unwrap_or(false)
    }

    /// As if it had just been asked.
    #[cfg(test)]
    pub(super) fn asked_now(again: Duration) -> Self {
        let last = Last { at: Instant::now(), answer: Some(true) };
        Self { again, last: Arc::new(Mutex::new(Some(last))) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    /// Counts how often it is asked, and answers once it may.
    #[derive(Clone, Default)]
    struct Asked {
        count: Arc<AtomicU64>,
        may: Arc<Notify>,
    }

    impl Asked {
        fn question(&self) -> impl Future<Output = Option<bool>> + Send + 'static {
            let asked = self.clone();
            async move {
                asked.count.fetch_add(1, Ordering::Relaxed);
                asked.may.notified().await;
                Some(true)
            }
        }

        fn count(&self) -> u64 {
            self.count.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn who_comes_while_it_is_asked_has_the_same_answer() {
        let (lately, asked, began) = (Lately::new(LONG), Asked::default(), Instant::now());
        let mut all = join_all((0..8).map(|_| lately.ask(began, asked.question()))).boxed();
        assert!((&mut all).now_or_never().is_none(), "somebody does not wait");
        asked.may.notify_one();
        assert_eq!((all.await, asked.count()), (vec![true; 8], 1));
        // What was found missing after the answer the answer does not help.
        assert!(!lately.ask(Instant::now(), asked.question()).await);
        assert_eq!(asked.count(), 1);
    }

    #[tokio::test]
    async fn it_is_asked_to_its_end_though_who_asked_goes_away() {
        let (lately, asked, began) = (Lately::new(LONG), Asked::default(), Instant::now());
        assert!(lately.ask(began, asked.question()).now_or_never().is_none());
        asked.may.notify_one();
        assert!(lately.ask(began, asked.question()).await);
        assert_eq!(asked.count(), 1);
    }

    #[tokio::test]
    async fn what_was_not_answered_is_asked_again() {
        let (lately, began) = (Lately::new(LONG), Instant::now());
        assert!(!lately.ask(began, async { None }).await);
        tokio::time::sleep(UNANSWERED_AGAIN).await;
        assert!(lately.ask(began, async { Some(true) }).await);
    }
}
