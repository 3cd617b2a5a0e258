//! The sessions that earlier runs of the node left: each is served on, or ended. One that is neither
//! would keep its pods waiting for ever, and its volume could not be mounted again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};
use weir_fuse::blocking::aside;
use weir_fuse::cache::ANSWERS;

use super::life::{Live, Message, World};
use super::record::Record;
use super::session::{STORE_PATIENCE, Served};
use super::sessions::{Sessions, lost};
use crate::kubernetes::events::Subject;
use crate::mounter::client::Entry;

/// After this long, from when the mounter has named it, a session is served or its end begins: its
/// pods wait meanwhile.
const WITHIN: Duration = Duration::from_secs(9);
/// How long it is waited for what the mounter keeps of one: the others are to have time left.
const READ_WITHIN: Duration = Duration::from_secs(3);
/// Sessions that are being taken over at once.
const AT_ONCE: usize = 32;
/// One that takes longer waits for something, and others have its turn.
const TURN: Duration = Duration::from_millis(500);
/// After this long all begin whose turn has not come: each is to be given a chance.
const TURNS: Duration = Duration::from_secs(4);
/// How long the mounter and the system may take when all begin at once that a disk has kept waiting.
const REST: Duration = Duration::from_secs(3);
const _: () = assert!(
    TURNS.as_secs() + ANSWERS.as_secs() + REST.as_secs() <= WITHIN.as_secs()
        && READ_WITHIN.as_secs() <= TURNS.as_secs(),
    "a session whose cache's disk is slow is to be served all the same"
);
/// Sessions of which is asked at once where they are shown still: the mounter reads the table of all
/// mounts for each, and is to have time for those that are taken over.
const LOOKS_AT_ONCE: usize = 4;
/// A session whose requests, sent again, have ended so many node plugins is served by no other: the
/// other volumes of the node go on.
const DEATHS_MAX: u8 = 2;
/// How often a mounter that is not there is asked what it keeps.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What is in custody of a session.
struct Kept {
    entry: Entry,
    record: Record,
}

/// Why a session cannot be served, and whom it was shown to.
struct Refusal {
    why: String,
    subjects: Vec<Subject>,
}

/// A session that is neither served nor ended yet.
struct Left {
    /// When the mounter named it.
    named: Instant,
    /// What is to be served, until that begins.
    kept: Option<Result<Kept, Refusal>>,
    /// Namespaces of its pods.
    namespaces: Vec<String>,
}

/// The sessions that are neither served nor ended yet.
pub(super) struct Estate {
    left: watch::Sender<HashMap<String, Left>>,
    turns: Semaphore,
    looks: Semaphore,
}

impl Default for Estate {
    fn default() -> Self {
        let (turns, looks) = (Semaphore::new(AT_ONCE), Semaphore::new(LOOKS_AT_ONCE));
        Self { left: watch::Sender::default(), turns, looks }
    }
}

impl Estate {
    /// Waits until this session is none of them.
    async fn accounted(&self, id: &str) {
        // The sender lives as long as this.
        let _ = self.left.subscribe().wait_for(|left| !left.contains_key(id)).await;
    }

    /// The namespaces of the pods of each.
    pub(super) fn namespaces(&self) -> HashMap<String, Vec<String>> {
        let left = self.left.borrow();
        left.iter().map(|(id, of)| (id.clone(), of.namespaces.clone())).collect()
    }

    /// What is to be served of one, and since when; once.
    fn begin(&self, id: &str) -> Option<(Instant, Result<Kept, Refusal>)> {
        let mut begun = None;
        self.left.send_if_modified(|left| {
            begun = left.get_mut(id).and_then(|of| Some((of.named, of.kept.take()?)));
            // Nobody waits for a beginning.
            false
        });
        begun
    }
}

impl Sessions {
    /// Finds what is in custody, and begins to serve each session or to end it; what comes out is done
    /// once each is one or the other. From now on a target leads to its session, and what is asked of
    /// that waits for this one alone. Without a mounter it waits for one.
    pub(super) async fn begin_adoption(
        self: &Arc<Self>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let names = self.names_in_custody().await;
        let named = Instant::now();
        let read = stream::iter(&names).map(|id| async move {
            let late = || "the mounter does not say what it keeps of it".to_owned();
            let read = timeout_at(named + READ_WITHIN, self.read_custody(id)).await;
            read.unwrap_or_else(|_| Err(Refusal { why: late(), subjects: Vec::new() }))
        });
        let read: Vec<_> = read.buffered(AT_ONCE).collect().await;
        for (id, kept) in names.iter().zip(read) {
            let of = |kept: &Kept| kept.record.targets.clone();
            let targets = kept.as_ref().map(of).unwrap_or_default();
            for (target, published) in &targets {
                self.claims.adopt(target, id, &published.volume_id);
            }
            let namespaces = targets.into_values().map(|shown| shown.subject.namespace).collect();
            let left = Left { named, kept: Some(kept), namespaces };
            self.estate.left.send_modify(|all| drop(all.insert(id.clone(), left)));
        }
        let sent = |id: String| (self.send(&id, Message::Adopt), id);
        let sent: Vec<_> = names.into_iter().map(sent).collect();
        let sessions = self.clone();
        async move {
            let count = sent.len();
            let (sessions, estate) = (&sessions, &sessions.estate);
            let each = sent.into_iter().map(|(answer, id)| async move {
                if answer.await.is_err() {
                    // Its task has panicked, and nothing serves it.
                    sessions.maker.abandon(&id).await;
                }
                estate.left.send_modify(|all| drop(all.remove(&id)));
            });
            join_all(each).await;
            let took = named.elapsed();
            tracing::info!(count, ?took, "the sessions of earlier runs are served or ended");
        }
    }

    async fn names_in_custody(&self) -> Vec<String> {
        loop {
            let mounter = self.maker.mounter.clone();
            match aside(move |may| mounter.sessions(may)).await {
                Ok(names) => return names,
                Err(error) => tracing::warn!(%error, "waiting for the mounter"),
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn read_custody(&self, id: &str) -> Result<Kept, Refusal> {
        let (mounter, name) = (self.maker.mounter.clone(), id.to_owned());
        let entry = aside(move |may| mounter.take(may, &name)).await;
        let read = |entry: Entry| {
            let record =
                entry.record.as_deref().ok_or("its node plugin ended while it was mounted")?;
            let record =
                Record::read(record).map_err(|e| format!("its record cannot be read: {e}"))?;
            Ok(Kept { entry, record })
        };
        let kept = match entry.map_err(|error| error.to_string()).and_then(read) {
            Ok(kept) => kept,
            Err(why) => return Err(Refusal { why, subjects: self.subjects_at_targets(id).await }),
        };
        if kept.entry.deaths >= DEATHS_MAX {
            let why = format!("{} node plugins have ended over its requests", kept.entry.deaths);
            return Err(Refusal { why, subjects: subjects_of(&kept.record) });
        }
        Ok(kept)
    }

    /// Whom a session is shown to, where nothing is known but the paths that kubelet has made. Asked
    /// before its end, and that is not to wait for it.
    async fn subjects_at_targets(&self, id: &str) -> Vec<Subject> {
        let (mounter, name) = (self.maker.mounter.clone(), id.to_owned());
        let asked = timeout(TURN, aside(move |may| mounter.targets(may, &name))).await;
        let shown = asked.unwrap_or_else(|_| Ok(Vec::new())).unwrap_or_default();
        let subject = |target: &PathBuf| Subject {
            volume: Subject::volume_of(target, false),
            ..Subject::default()
        };
        shown.iter().map(subject).collect()
    }

    /// Waits until the session that a target belongs to is served or ended, where an earlier run left
    /// it.
    pub(super) async fn accounted_at(&self, target: &Path) {
        if let Some(id) = self.claims.session_at(target) {
            self.estate.accounted(&id).await;
        }
    }

    /// Serves what is in custody of a session, or ends it.
    pub(super) async fn adopt_or_end(&self, id: &str) -> Option<Arc<Served>> {
        let (named, kept) = self.estate.begin(id)?;
        let targets: Vec<PathBuf> =
            kept.iter().flat_map(|kept| kept.record.targets.keys().cloned()).collect();
        let adopted = tokio::select! {
            adopted = self.adopt_in_turn(id, named, kept) => adopted,
            // It stays in custody for the next run: nothing else may be done to it.
            () = self.leaving() => std::future::pending().await,
        };
        let served = match adopted {
            Ok(served) => {
                // What is done to all that are served is done to it, too, from now on.
                self.served().insert(id.to_owned(), served.clone());
                let left = self.drop_targets_taken_away(served).await;
                if left.is_none() {
                    self.served().remove(id);
                }
                left
            }
            Err(refusal) => {
                self.give_up(id, refusal).await;
                None
            }
        };
        let shown = served.as_ref().map(|served| served.targets()).unwrap_or_default();
        let gone = targets.iter().filter(|target| !shown.iter().any(|(at, _)| at == *target));
        gone.for_each(|target| self.claims.release(target));
        served
    }

    async fn adopt_in_turn(
        &self,
        id: &str,
        named: Instant,
        kept: Result<Kept, Refusal>,
    ) -> Result<Arc<Served>, Refusal> {
        let Kept { entry, record } = kept?;
        let subjects = subjects_of(&record);
        let adopting = async {
            let turn = timeout_at(named + TURNS, self.estate.turns.acquire()).await;
            let mut adopting = Box::pin(self.maker.adopt(id, entry, record));
            let adopted = timeout(TURN, &mut adopting).await;
            drop(turn);
            match adopted {
                Ok(adopted) => adopted,
                Err(_) => adopting.await,
            }
        };
        let why = match timeout_at(named + WITHIN, adopting).await {
            Ok(Ok(served)) => return Ok(Arc::new(served)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it took more than {} s", WITHIN.as_secs()),
        };
        Err(Refusal { why, subjects })
    }

    /// Notes where a session is shown no more, since it was taken away while no node was there. One that
    /// is shown nowhere ends.
    async fn drop_targets_taken_away(&self, served: Arc<Served>) -> Option<Arc<Served>> {
        let look = self.estate.looks.acquire().await;
        let (mounter, id) = (self.maker.mounter.clone(), served.id.clone());
        let shown = match aside(move |may| mounter.targets(may, &id)).await {
            Ok(shown) => shown,
            Err(error) => {
                let session = &served.id;
                tracing::warn!(session, %error, "it is not known where it is shown still");
                return Some(served);
            }
        };
        drop(look);
        let targets = served.targets();
        let gone: Vec<_> = targets.iter().filter(|(target, _)| !shown.contains(target)).collect();
        for (target, _) in &gone {
            served.hidden(target);
        }
        if served.targets().is_empty() {
            tracing::info!(session = served.id, "shown nowhere any more");
            let until = Instant::now() + STORE_PATIENCE;
            if let Err(error) = served.end(&self.maker.mounter, until.into_std()).await {
                let refusal = Refusal { why: error.to_string(), subjects: Vec::new() };
                self.give_up(&served.id, refusal).await;
            }
            return None;
        }
        if !gone.is_empty() {
            self.keep_if_possible(&served.id, &served).await;
        }
        Some(served)
    }

    /// Ends a session that cannot be served: whoever waits for it gets an error now, and the next
    /// publish mounts it anew.
    async fn give_up(&self, id: &str, refusal: Refusal) {
        let Refusal { why, subjects } = refusal;
        tracing::error!(session = id, why, "a session cannot be served on; its connection ends");
        self.maker.abandon(id).await;
        for subject in subjects {
            self.announcer.say(lost(subject, &why));
        }
    }
}

fn subjects_of(record: &Record) -> Vec<Subject> {
    record.targets.values().map(|published| published.subject.clone()).collect()
}
