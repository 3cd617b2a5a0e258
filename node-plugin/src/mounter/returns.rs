//! Backing ids on their way back to the kernel: whoever drops one must not wait for the mounter.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Ids given back, each with its session, in order.
#[derive(Default)]
pub(super) struct Returns {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(String, u32)>,
    /// Whether one is under way.
    is_busy: bool,
}

impl Returns {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one.
    pub(super) fn add(&self, session: &str, id: u32) {
        self.queue().waiting.push_back((session.to_owned(), id));
        self.changed.notify_all();
    }

    /// Gives one after the other back, for ever.
    pub(super) fn run(&self, give_back: impl Fn(&str, u32)) -> ! {
        loop {
            let is_idle = |queue: &mut Queue| queue.waiting.is_empty();
            let mut queue = self
                .changed
                .wait_while(self.queue(), is_idle)
                .unwrap_or_else(PoisonError::into_inner);
            let next = queue.waiting.pop_front();
            queue.is_busy = true;
            drop(queue);
            if let Some((session, id)) = next {
                give_back(&session, id);
            }
            self.queue().is_busy = false;
            self.changed.notify_all();
        }
    }

    /// Waits until all are given back, at most so long.
    pub(super) fn settle(&self, patience: Duration) {
        let is_under_way = |queue: &mut Queue| queue.is_busy || !queue.waiting.is_empty();
        let _ = self.changed.wait_timeout_while(self.queue(), patience, is_under_way);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn all_are_given_back_in_order_and_it_can_be_waited_for() {
        let returns = Arc::new(Returns::default());
        let (sender, given) = mpsc::channel();
        let (hold, held) = mpsc::channel::<()>();
        let run = returns.clone();
        std::thread::spawn(move || {
            run.run(|session, id| {
                let _ = held.recv();
                let _ = sender.send((session.to_owned(), id));
            })
        });
        returns.add("a", 1);
        returns.add("b", 2);
        // Nobody is held up by who is not there.
        returns.settle(Duration::from_millis(1));
        assert!(given.try_recv().is_err());
        hold.send(()).unwrap();
        hold.send(()).unwrap();
        returns.settle(Duration::from_secs(60));
        let all: Vec<_> = given.try_iter().collect();
        assert_eq!(all, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    }
}
