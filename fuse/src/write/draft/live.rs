//! The uploads of this process. Others of the same keys are of processes that have died.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;

use crate::origin::PendingUpload;

/// Uploads that are under way in this process, over all its mounts: whoever aborts what a dead
/// process left under a key, and knows no id, spares them.
#[derive(Default)]
pub struct LiveUploads {
    state: Mutex<State>,
    answered: Notify,
}

#[derive(Default)]
struct State {
    ids: HashSet<String>,
    /// How many are asked for and have no id yet, by key.
    asked: HashMap<String, usize>,
}

/// One of them, from before it is asked for until it is dropped.
pub(in crate::write) struct LiveUpload {
    uploads: Arc<LiveUploads>,
    key: String,
    id: OnceLock<String>,
}

impl LiveUploads {
    /// Notes that an upload of `key` is asked for.
    pub(in crate::write) fn ask(self: &Arc<Self>, key: &str) -> LiveUpload {
        *self.state().asked.entry(key.to_owned()).or_default() += 1;
        LiveUpload { uploads: self.clone(), key: key.to_owned(), id: OnceLock::new() }
    }

    /// Those of a listing of `key` that are of no mount of this process. One that was asked for
    /// before may be among them by an id that has not come back yet: that is waited for.
    pub(in crate::write) async fn others(
        &self,
        key: &str,
        mut listed: Vec<PendingUpload>,
    ) -> Vec<PendingUpload> {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if !self.state().asked.contains_key(key) {
                break;
            }
            answered.await;
        }
        let state = self.state();
        listed.retain(|upload| !state.ids.contains(&upload.id));
        listed
    }

    fn answer(&self, key: &str, id: Option<&str>) {
        let mut state = self.state();
        state.ids.extend(id.map(str::to_owned));
        if let Some(asked) = state.asked.get_mut(key) {
            *asked -= 1;
            if *asked == 0 {
                state.asked.remove(key);
            }
        }
        drop(state);
        self.answered.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LiveUpload {
    /// Notes its id, once.
    pub(in crate::write) fn begun(&self, id: &str) {
        if self.id.set(id.to_owned()).is_ok() {
            self.uploads.answer(&self.key, Some(id));
        }
    }
}

impl Drop for LiveUpload {
    fn drop(&mut self) {
        match self.id.get() {
            Some(id) => drop(self.uploads.state().ids.remove(id)),
            None => self.uploads.answer(&self.key, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn listed() -> Vec<PendingUpload> {
        ["mine", "theirs"]
            .map(|id| PendingUpload { id: id.into(), begun: SystemTime::now() })
            .into()
    }

    #[tokio::test]
    async fn an_upload_of_this_process_is_none_of_others_also_before_its_id_is_known() {
        let uploads = Arc::new(LiveUploads::default());
        let (mine, elsewhere) = (uploads.ask("k"), uploads.ask("other"));
        let others = uploads.others("k", listed());
        tokio::pin!(others);
        tokio::select! {
            biased;
            _ = &mut others => panic!("it may be any of them"),
            () = tokio::task::yield_now() => {}
        }
        mine.begun("mine");
        let of = |found: Vec<PendingUpload>| found.into_iter().map(|found| found.id).collect();
        let found: Vec<String> = of(others.await);
        assert_eq!(found, ["theirs"]);
        drop((mine, elsewhere, uploads.ask("k")));
        let found: Vec<String> = of(uploads.others("k", listed()).await);
        assert_eq!(found, ["mine", "theirs"]);
        assert!(uploads.state().ids.is_empty() && uploads.state().asked.is_empty());
    }
}
