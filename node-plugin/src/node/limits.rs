//! How many sessions a node has at most, and how many of them pods of one namespace: each takes
//! threads, descriptors and memory, and the scheduler does not count inline volumes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use weir_csi::Error;

/// What a node was told of its sessions.
pub(super) struct Limits {
    /// How long kubelet is told to wait for bytes that are not stored.
    pub(super) unpublish_deadline: Duration,
    /// How many there may be.
    pub(super) sessions: SessionLimits,
}

/// How many sessions there may be. 0: any number.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionLimits {
    /// On the node.
    pub(super) node: usize,
    /// Of the pods of a namespace.
    pub(super) namespace: usize,
}

/// The limits, and the sessions that are being made, with their namespaces.
pub(super) struct Places {
    limits: SessionLimits,
    taken: Mutex<HashMap<String, String>>,
}

/// The place of a session that is being made.
pub(super) struct TakenPlace<'a> {
    places: &'a Places,
    id: String,
}

impl Places {
    pub(super) fn new(limits: SessionLimits) -> Self {
        Self { limits, taken: Mutex::default() }
    }

    /// Takes a place for a session that a pod of this namespace wants. `served` are those that
    /// there are, each with the namespaces of its pods.
    ///
    /// # Errors
    /// [`Error::Exhausted`] where there is none.
    pub(super) fn take(
        &self,
        id: &str,
        namespace: &str,
        served: impl FnOnce() -> HashMap<String, Vec<String>>,
    ) -> Result<TakenPlace<'_>, Error> {
        let mut taken = self.taken();
        let mut all = served();
        for (id, of) in taken.iter() {
            all.entry(id.clone()).or_insert_with(|| vec![of.clone()]);
        }
        all.remove(id);
        let reached = |limit: usize, count: usize| limit > 0 && count >= limit;
        if reached(self.limits.node, all.len()) {
            return Err(Error::Exhausted(format!(
                "this node has {} sessions, which is its limit (node.maxSessions): place the pod on \
                 another node, or raise the limit",
                all.len()
            )));
        }
        let of_namespace = all.values().filter(|of| of.iter().any(|of| of == namespace)).count();
        if reached(self.limits.namespace, of_namespace) {
            return Err(Error::Exhausted(format!(
                "pods of namespace {namespace} have {of_namespace} sessions on this node, which is \
                 the limit (node.maxSessionsPerNamespace): let pods share a PersistentVolume, place \
                 the pod on another node, or raise the limit"
            )));
        }
        taken.insert(id.to_owned(), namespace.to_owned());
        Ok(TakenPlace { places: self, id: id.to_owned() })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TakenPlace<'_> {
    fn drop(&mut self) {
        self.places.taken().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(sessions: &[(&str, &str)]) -> HashMap<String, Vec<String>> {
        let of = |(id, of): &(&str, &str)| ((*id).to_owned(), vec![(*of).to_owned()]);
        sessions.iter().map(of).collect()
    }

    fn take<'a>(places: &'a Places, id: &str, of: &str) -> Result<TakenPlace<'a>, Error> {
        places.take(id, of, || served(&[("1", "a"), ("2", "a"), ("3", "b")]))
    }

    #[test]
    fn a_namespace_and_a_node_have_no_more_than_their_limits() {
        let places = Places::new(SessionLimits { node: 5, namespace: 3 });
        let first = take(&places, "4", "a").unwrap();
        let refused = take(&places, "5", "a").err();
        let told = refused.as_ref().map(ToString::to_string).unwrap_or_default();
        assert!(matches!(refused, Some(Error::Exhausted(_))), "{told}");
        assert!(told.contains("namespace a") && told.contains("maxSessionsPerNamespace"), "{told}");
        let second = take(&places, "5", "b").unwrap();
        let full = take(&places, "6", "c").err().map(|full| full.to_string()).unwrap_or_default();
        assert!(full.contains("node.maxSessions)"), "{full}");
        // What is being made is there once, and its place is free again where that failed.
        drop((first, second));
        let again = take(&places, "3", "b").unwrap();
        take(&places, "4", "a").unwrap();
        drop(again);
    }

    #[test]
    fn without_limits_there_is_a_place_for_everybody() {
        let places = Places::new(SessionLimits { node: 0, namespace: 0 });
        take(&places, "4", "a").unwrap();
    }
}
