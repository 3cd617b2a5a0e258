//! Requests that an engine before has left unanswered: any of them may be what has ended it, so it
//! is noted outside of this process while they are under way.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::blocking::MayBlock;
use crate::engine::resent::Delivery;

/// Who outlives this process, and knows whether it has ended over such requests.
pub trait Witness: Send + Sync {
    /// Notes that requests that were sent again are under way, for the `trial`th time. It is known
    /// when this returns.
    fn trial_begins(&self, may: &MayBlock, trial: u64);

    /// Notes, soon, that all of them were answered.
    fn trial_ends(&self, trial: u64);
}

/// The requests of one connection that were sent again and are not answered.
#[derive(Default)]
pub(super) struct Resent {
    witness: OnceLock<Arc<dyn Witness>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    under_way: usize,
    trial: u64,
}

/// One of them, until it is answered.
pub(super) struct UnderWay(Arc<Resent>);

impl Resent {
    /// Tells this witness from now on.
    pub(super) fn tell(&self, witness: Arc<dyn Witness>) {
        let _ = self.witness.set(witness);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request before anything is done for it; `None` for one that is new.
    pub(super) fn begin(self: &Arc<Self>, delivery: Delivery) -> Option<UnderWay> {
        if delivery == Delivery::First {
            return None;
        }
        let witness = self.witness.get()?;
        let mut state = self.state();
        state.under_way += 1;
        if state.under_way == 1 {
            state.trial += 1;
            // Those beside it wait, too: nothing is to be done that nobody has witnessed.
            witness.trial_begins(&MayBlock::own_thread(), state.trial);
        }
        Some(UnderWay(self.clone()))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way -= 1;
        if let (0, Some(witness)) = (state.under_way, self.0.witness.get()) {
            witness.trial_ends(state.trial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Notes(Mutex<Vec<(u64, bool)>>);

    impl Witness for Notes {
        fn trial_begins(&self, _: &MayBlock, trial: u64) {
            self.0.lock().unwrap().push((trial, true));
        }

        fn trial_ends(&self, trial: u64) {
            self.0.lock().unwrap().push((trial, false));
        }
    }

    #[test]
    fn a_trial_lasts_as_long_as_any_request_that_was_sent_again() {
        let (resent, notes) = (Arc::new(Resent::default()), Arc::new(Notes::default()));
        assert!(resent.begin(Delivery::Again).is_none(), "nobody to tell");
        resent.tell(notes.clone());
        assert!(resent.begin(Delivery::First).is_none());
        let (one, two) = (resent.begin(Delivery::Again), resent.begin(Delivery::Again));
        drop(one);
        let three = resent.begin(Delivery::Again);
        drop((two, three));
        drop(resent.begin(Delivery::Again));
        assert_eq!(*notes.0.lock().unwrap(), [(1, true), (1, false), (2, true), (2, false)]);
    }
}
