//! Futures polled by hand.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// How one poll ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Polled {
    Done,
    /// Not done, but it can be polled on.
    Stepped,
    /// It waits for somebody else.
    Waits,
}

/// A future in the hand of a test. Dropping it drops the future where it stands.
pub(super) struct Hand<T> {
    future: Option<Pin<Box<dyn Future<Output = T>>>>,
    output: Option<T>,
    woken: Arc<Flag>,
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl<T> Hand<T> {
    pub(super) fn new(future: impl Future<Output = T> + 'static) -> Self {
        Self { future: Some(Box::pin(future)), output: None, woken: Arc::default() }
    }

    pub(super) fn poll(&mut self) -> Polled {
        let Some(future) = &mut self.future else { return Polled::Done };
        self.woken.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(self.woken.clone());
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => {
                self.output = Some(output);
                self.future = None;
                Polled::Done
            }
            Poll::Pending if self.is_woken() => Polled::Stepped,
            Poll::Pending => Polled::Waits,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.future.is_none()
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::SeqCst)
    }

    /// Polls until it is done. Where it waits, `other` goes on until it is woken.
    ///
    /// # Panics
    /// Where neither gets on: they wait for each other, or for a time.
    pub(super) fn run<U>(&mut self, mut other: Option<&mut Hand<U>>) {
        loop {
            match self.poll() {
                Polled::Done => return,
                Polled::Stepped => {}
                Polled::Waits => {
                    while !self.is_woken() {
                        let went_on = other.as_mut().map(|other| other.poll());
                        let gets_on = went_on.is_some_and(|how| how != Polled::Waits);
                        let over = other.as_ref().is_none_or(|other| other.is_done());
                        assert!((gets_on && !over) || self.is_woken(), "nobody gets on");
                    }
                }
            }
        }
    }

    /// What it came to.
    pub(super) fn output(self) -> T {
        self.output.expect("it was polled to its end")
    }
}

/// Polls a future to its end, alone.
pub(super) fn drive<T>(future: impl Future<Output = T> + 'static) -> T {
    let mut hand = Hand::new(future);
    hand.run(None::<&mut Hand<()>>);
    hand.output()
}
