//! What is said to the mounter by those who must not wait for it: whoever drops a backing id, or
//! has answered a request.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::protocol::Request;

/// Notices that wait, beyond which those are left out that can be.
const FEW: usize = 1024;

/// What is to be said, in order.
#[derive(Default)]
pub(super) struct Notices {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    /// Whether one is under way.
    is_busy: bool,
}

impl Notices {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one.
    pub(super) fn add(&self, notice: Request) {
        self.queue().waiting.push_back(notice);
        self.changed.notify_all();
    }

    /// Adds one that can be left out, unless many wait.
    pub(super) fn add_if_few(&self, notice: Request) {
        if self.queue().waiting.len() < FEW {
            self.add(notice);
        }
    }

    /// Says one after the other, for ever.
    pub(super) fn run(&self, say: impl Fn(&Request)) -> ! {
        loop {
            let is_idle = |queue: &mut Queue| queue.waiting.is_empty();
            let mut queue = self
                .changed
                .wait_while(self.queue(), is_idle)
                .unwrap_or_else(PoisonError::into_inner);
            let next = queue.waiting.pop_front();
            queue.is_busy = true;
            drop(queue);
            if let Some(notice) = next {
                say(&notice);
            }
            self.queue().is_busy = false;
            self.changed.notify_all();
        }
    }

    /// Waits until all is said, at most so long.
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
    fn all_is_said_in_order_and_it_can_be_waited_for() {
        let notices = Arc::new(Notices::default());
        let (sender, said) = mpsc::channel();
        let (hold, held) = mpsc::channel::<()>();
        let run = notices.clone();
        std::thread::spawn(move || {
            run.run(|notice| {
                let _ = held.recv();
                let _ = sender.send(notice.clone());
            })
        });
        let all = [1, 2].map(|id| Request::CloseBacking { session: "a".into(), id });
        all.iter().for_each(|notice| notices.add(notice.clone()));
        // Nobody is held up by who is not there.
        notices.settle(Duration::from_millis(1));
        assert!(said.try_recv().is_err());
        hold.send(()).unwrap();
        hold.send(()).unwrap();
        notices.settle(Duration::from_secs(60));
        assert_eq!(said.try_iter().collect::<Vec<_>>(), all);
    }

    #[test]
    fn of_many_those_are_left_out_that_can_be() {
        let notices = Notices::default();
        let name =
            |n: usize| Request::Expire { session: "a".into(), parent: 1, name: n.to_string() };
        (0..2 * FEW).for_each(|n| notices.add_if_few(name(n)));
        notices.add(Request::CloseBacking { session: "a".into(), id: 1 });
        assert_eq!(notices.queue().waiting.len(), FEW + 1);
    }
}
