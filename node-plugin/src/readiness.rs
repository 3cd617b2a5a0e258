//! Whether this process can serve: one answer, for kubelet's probe, for CSI's and for the WeirNode.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Something that becomes true, and may cease to be.
#[derive(Clone, Default)]
pub(crate) struct Flag(Arc<AtomicBool>);

impl Flag {
    /// Says what is so from now on.
    pub(crate) fn set(&self, so: bool) {
        self.0.store(so, Ordering::Release);
    }

    /// Whether it is so now.
    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Flags, each with what its absence means. Without any, always ready.
#[derive(Clone, Default)]
pub(crate) struct Readiness(Arc<Vec<(&'static str, Flag)>>);

impl Readiness {
    /// Of flags, the first needed first.
    pub(crate) fn new(flags: Vec<(&'static str, Flag)>) -> Self {
        Self(Arc::new(flags))
    }

    /// Why nothing can be served now; `None` when it can.
    pub(crate) fn lack(&self) -> Option<&'static str> {
        self.0.iter().find(|(_, flag)| !flag.get()).map(|(lack, _)| *lack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_lack_is_told() {
        let (first, second) = (Flag::default(), Flag::default());
        let readiness = Readiness::new(vec![("a", first.clone()), ("b", second.clone())]);
        assert_eq!(readiness.lack(), Some("a"));
        first.set(true);
        assert_eq!(readiness.lack(), Some("b"));
        second.set(true);
        assert_eq!(readiness.lack(), None);
        first.set(false);
        assert_eq!(readiness.lack(), Some("a"));
    }
}
