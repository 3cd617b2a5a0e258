//! The way in for requests, and how it is closed when a process ends whose connection another
//! process will serve on. fuser answers a reply that is dropped with EIO, and goes on taking
//! requests for as long as its threads live; so an orderly end must keep both from happening:
//!
//! 1. [`Door::note_opens`]: all is served; handles that are opened from now on are noted.
//! 2. [`Door::set_opens_aside`]: requests that would open something are left unanswered, for the
//!    next engine, and those who have just opened something read it to its end.
//! 3. [`Door::close`]: each thread answers what it has taken, and takes nothing more.
//! 4. [`Door::shut`]: nothing is answered any more, since what answers is being taken down.
//!
//! What is left unanswered is forgotten, never dropped. The kernel sends it again when the next
//! engine asks for that; a kernel that cannot (before Linux 6.9) gets an answer for everything.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::resent::{Resent, UnderWay, Witness};
use crate::engine::resent::Delivery;

/// Nothing is ending.
const OPEN: u8 = 0;
/// Opens are noted.
const NOTING: u8 = 1;
/// Opens are left to the next engine.
const ASIDE: u8 = 2;
/// Threads stop after the request that they have taken.
const CLOSED: u8 = 3;
/// Nothing is answered.
const SHUT: u8 = 4;

/// How often it is looked whether something has ended.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What a request does, as far as an end must know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RequestKind {
    /// It asks, and can be asked again.
    Ask,
    /// It changes something: an end waits for its answer.
    Change,
    /// It opens something for reading.
    Open,
    /// It opens something, and may change it.
    OpenToChange,
}

/// The way in of one connection.
#[derive(Default)]
pub struct Door {
    state: AtomicU8,
    /// Whether the kernel can send unanswered requests again.
    sends_again: AtomicBool,
    /// Threads in a request, work of theirs that others do, and changes under way.
    under_way: AtomicUsize,
    /// Handles opened since [`Door::note_opens`] that need this engine.
    opened: Mutex<HashSet<u64>>,
    resent: Arc<Resent>,
}

/// A thread of fuser's in a request. Where the door was closed meanwhile the thread ends here,
/// after its answer and before it would take another request.
pub(super) struct Turn<'a>(&'a Door);

/// Something that an end waits for, until it is dropped.
pub(super) struct Counted(Arc<Door>);

/// What goes with a request until it is answered. An end waits for those of changes.
pub(super) struct Pass {
    _change: Option<Counted>,
    _resent: Option<UnderWay>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
        if self.0.state() >= CLOSED {
            stop();
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Ends the work of this thread. It cannot return: fuser would take the next request.
fn stop() -> ! {
    loop {
        std::thread::park();
    }
}

impl Door {
    /// Lets a request in, with its reply; `None` when it is left to the next engine. A thread that
    /// comes when the door is shut stays here.
    pub(super) fn enter<R>(
        self: &Arc<Self>,
        does: RequestKind,
        delivery: Delivery,
        reply: R,
    ) -> Option<(Turn<'_>, Pass, R)> {
        // Counted before the state is read, so that either it is seen here, or this there.
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let state = self.state();
        if state == SHUT && self.sends_again() {
            std::mem::forget(reply);
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            stop();
        }
        let turn = Turn(self);
        let opens = matches!(does, RequestKind::Open | RequestKind::OpenToChange);
        if opens && state >= ASIDE && self.sends_again() {
            std::mem::forget(reply);
            return None;
        }
        let changes = matches!(does, RequestKind::Change | RequestKind::OpenToChange);
        let change = changes.then(|| self.count());
        let pass = Pass { _change: change, _resent: self.resent.begin(delivery) };
        Some((turn, pass, reply))
    }

    /// Counts something that an end waits for.
    pub(super) fn count(self: &Arc<Self>) -> Counted {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        Counted(self.clone())
    }

    /// Gives an answer, unless nothing is answered any more.
    pub(super) fn answer(&self, answer: impl FnOnce()) {
        if self.state() == SHUT && self.sends_again() {
            // It holds the reply.
            std::mem::forget(answer);
        } else {
            answer();
        }
    }

    /// Notes a handle that needs this engine. To be called before the kernel hears of it.
    pub(super) fn opened(&self, fh: u64) {
        if self.state() != OPEN {
            self.handles().insert(fh);
        }
    }

    /// Notes that a handle is gone.
    pub(super) fn released(&self, fh: u64) {
        if self.state() != OPEN {
            self.handles().remove(&fh);
        }
    }

    /// Tells this witness of requests that were sent again.
    pub(super) fn tell(&self, witness: Arc<dyn Witness>) {
        self.resent.tell(witness);
    }

    /// Notes whether the kernel can send unanswered requests again.
    pub(super) fn set_sends_again(&self, sends_again: bool) {
        self.sends_again.store(sends_again, Ordering::SeqCst);
    }

    /// Notes handles that are opened from now on: who opens what is short reads it at once, and
    /// is waited for later.
    pub fn note_opens(&self) {
        self.advance(NOTING);
    }

    /// Leaves requests that open something to the next engine, and waits, until `until`, for those
    /// who have opened something since [`Door::note_opens`]. Says whether they have closed it.
    pub async fn set_opens_aside(&self, until: Instant) -> bool {
        self.advance(ASIDE);
        wait(until, || self.handles().is_empty()).await
    }

    /// Lets every thread answer what it has taken and take nothing more, and waits for changes
    /// under way until `until`. Says whether all were answered.
    pub async fn close(&self, until: Instant) -> bool {
        self.advance(CLOSED);
        wait(until, || self.under_way.load(Ordering::SeqCst) == 0).await
    }

    /// Ends all answers: what answers may be taken down afterwards. Only the end of the process is
    /// to follow.
    pub async fn shut(&self) {
        /// For who was answering at that moment.
        const MOMENT: Duration = Duration::from_millis(200);
        self.advance(SHUT);
        self.close(Instant::now() + MOMENT).await;
    }

    fn advance(&self, state: u8) {
        self.state.fetch_max(state, Ordering::SeqCst);
    }

    fn state(&self) -> u8 {
        self.state.load(Ordering::SeqCst)
    }

    fn sends_again(&self) -> bool {
        self.sends_again.load(Ordering::SeqCst)
    }

    fn handles(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until `is_over`, or until `until`; says whether it is.
async fn wait(until: Instant, is_over: impl Fn() -> bool) -> bool {
    loop {
        if is_over() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A reply that says how it ended.
    struct Reply(mpsc::Sender<&'static str>);

    impl Drop for Reply {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }

    fn door() -> Arc<Door> {
        let door = Arc::new(Door::default());
        door.set_sends_again(true);
        door
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn what_changes_something_is_waited_for_and_what_asks_is_not() {
        let door = door();
        for (does, waits) in [
            (RequestKind::Ask, false),
            (RequestKind::Change, true),
            (RequestKind::Open, false),
            (RequestKind::OpenToChange, true),
        ] {
            let (turn, pass, ()) = door.enter(does, Delivery::First, ()).unwrap();
            drop(turn);
            assert_eq!(door.under_way.load(Ordering::SeqCst) > 0, waits, "{does:?}");
            drop(pass);
        }
        let (turn, pass, ()) = door.enter(RequestKind::Change, Delivery::First, ()).unwrap();
        drop(turn);
        assert!(!door.close(Instant::now()).await);
        drop(pass);
        assert!(door.close(soon()).await);
    }

    #[tokio::test]
    async fn opens_are_left_to_the_next_engine_and_what_is_open_is_waited_for() {
        let (door, (sender, told)) = (door(), mpsc::channel());
        door.opened(1);
        door.note_opens();
        door.opened(2);
        assert!(!door.set_opens_aside(Instant::now()).await);
        for does in [RequestKind::Open, RequestKind::OpenToChange] {
            assert!(door.enter(does, Delivery::First, Reply(sender.clone())).is_none());
        }
        // Neither answered nor dropped, and the thread goes on.
        assert!(told.try_recv().is_err());
        assert!(door.enter(RequestKind::Ask, Delivery::First, ()).is_some());
        door.released(2);
        assert!(door.set_opens_aside(soon()).await);
    }

    #[tokio::test]
    async fn a_thread_answers_what_it_has_taken_and_takes_no_more() {
        let (door, (sender, told)) = (door(), mpsc::channel());
        let thread = {
            let (door, sender) = (door.clone(), sender.clone());
            std::thread::spawn(move || {
                loop {
                    let Some((_turn, _pass, ())) =
                        door.enter(RequestKind::Ask, Delivery::First, ())
                    else {
                        return;
                    };
                    sender.send("answered").unwrap();
                    while door.state() < CLOSED {
                        std::thread::yield_now();
                    }
                }
            })
        };
        assert_eq!(told.recv().unwrap(), "answered");
        assert!(door.close(soon()).await);
        std::thread::sleep(Duration::from_millis(20));
        assert!(told.try_recv().is_err() && !thread.is_finished());
    }

    #[tokio::test]
    async fn after_the_end_nothing_is_answered_and_no_reply_is_dropped() {
        let (door, (sender, told)) = (door(), mpsc::channel());
        let (turn, pass, reply) =
            door.enter(RequestKind::Ask, Delivery::First, Reply(sender.clone())).unwrap();
        drop((turn, pass));
        door.shut().await;
        door.answer(move || drop(reply));
        let late = (door.clone(), Reply(sender));
        std::thread::spawn(move || {
            late.0.enter(RequestKind::Change, Delivery::First, late.1).is_some()
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(told.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_kernel_that_cannot_send_again_is_always_answered() {
        let (door, (sender, told)) = (Arc::new(Door::default()), mpsc::channel());
        door.note_opens();
        door.set_opens_aside(soon()).await;
        door.advance(SHUT);
        let (turn, _pass, reply) =
            door.enter(RequestKind::Open, Delivery::First, Reply(sender)).unwrap();
        door.answer(move || drop(reply));
        // Its end would be this thread's.
        std::mem::forget(turn);
        assert_eq!(told.try_recv(), Ok("dropped"));
    }
}
