//! The sessions of the node by id, and the targets that show them.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedMutexGuard, watch};
use weir_csi::Error;
use weir_csi::request::{Publish, TargetPath, VolumeId};
use weir_fuse::engine::Engine;

use super::ending::{self, Next};
use super::place::Place;
use super::pod_gpus::PodGpus;
use super::record::{Published, Record, Request};
use super::session::{Maker, STORE_PATIENCE, Served};
use super::sts::Sts;
use super::volume::{Defaults, Volume, subject};
use crate::kubernetes::events::{Announcer, Note, Severity, Subject};
use crate::mounter::client::Mounter;
use crate::mounter::protocol::{Bind, Deposit};

/// Held while a session is made, shown, hidden or ended.
type Slot = Arc<tokio::sync::Mutex<Option<Arc<Served>>>>;

/// All sessions. Lock order: a slot, then the maps.
pub(super) struct Sessions {
    maker: Maker,
    defaults: Defaults,
    slots: Mutex<HashMap<String, Slot>>,
    served: Mutex<HashMap<String, Arc<Served>>>,
    targets: Mutex<HashMap<PathBuf, String>>,
    announcer: Announcer,
    nearness: Nearness,
    changed: Notify,
    /// Whether the process is about to end.
    pub(super) leaving: watch::Sender<bool>,
    /// How long kubelet is told to wait for bytes that are not stored.
    unpublish_deadline: Duration,
}

/// What is known of places.
pub(super) struct Nearness {
    pub(super) place: Arc<Place>,
    pub(super) pods: Arc<PodGpus>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    pub(super) fn new(
        engine: Arc<Engine>,
        mounter: Arc<Mounter>,
        defaults: Defaults,
        sts: Sts,
        announcer: Announcer,
        nearness: Nearness,
        unpublish_deadline: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            maker: Maker { engine, mounter, sts },
            defaults,
            slots: Mutex::default(),
            served: Mutex::default(),
            targets: Mutex::default(),
            announcer,
            nearness,
            changed: Notify::new(),
            leaving: watch::Sender::new(false),
            unpublish_deadline,
        })
    }

    /// Waits until something is shown or taken away.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes the slot of a session.
    async fn slot(&self, id: &str) -> OwnedMutexGuard<Option<Arc<Served>>> {
        loop {
            let slot = lock(&self.slots).entry(id.to_owned()).or_default().clone();
            let held = slot.clone().lock_owned().await;
            // Whoever ended the session before has removed its slot.
            if lock(&self.slots).get(id).is_some_and(|now| Arc::ptr_eq(now, &slot)) {
                return held;
            }
        }
    }

    /// The session that a target shows.
    pub(super) fn at(&self, target: &Path) -> Option<Arc<Served>> {
        let id = lock(&self.targets).get(target).cloned()?;
        lock(&self.served).get(&id).cloned()
    }

    /// Shows a volume at a target; a repeat refreshes its credentials.
    ///
    /// # Errors
    /// What is wrong, as the volume's user can mend it.
    pub(super) async fn publish(&self, publish: &Publish) -> Result<(), Error> {
        let done = self.try_publish(publish).await;
        if let Err(error) = &done {
            // The pod hears of it from kubelet.
            self.announcer.say(Note {
                severity: Severity::Warning,
                reason: "MountFailed",
                text: error.to_string(),
                about: subject(publish),
                tell_pod: false,
                once: false,
            });
        }
        done
    }

    async fn try_publish(&self, publish: &Publish) -> Result<(), Error> {
        let volume = Volume::parse(publish, &self.defaults)?;
        let target = publish.target.as_path().to_owned();
        if publish.capability.mode.single && self.is_elsewhere(&publish.volume_id, &target) {
            let text = "is published to another pod of this node, and its access mode allows one";
            return Err(Error::Precondition(format!("volume {} {text}", publish.volume_id)));
        }
        let id = match lock(&self.targets).get(&target) {
            Some(id) => id.clone(),
            None => volume.session_id(&publish.target.to_string()),
        };
        let mut held = self.slot(&id).await;
        if let Some(served) = held.take_if(|served| served.has_ended()) {
            self.forget(&served).await;
        }
        let published = Published {
            volume_id: publish.volume_id.as_str().to_owned(),
            read_only: volume.read_only,
            shape: volume.shape.clone(),
            subject: volume.subject.clone(),
        };
        if let Some(served) = held.clone() {
            let known = served.targets().into_iter().find(|(path, _)| *path == target);
            if let Some((_, before)) = known {
                if before != published {
                    return Err(Error::Exists(format!(
                        "{} shows {} in another way; unpublish it first",
                        publish.target, before.volume_id
                    )));
                }
                if served.refresh(&volume, Request::of(publish)) {
                    self.keep(&served);
                }
                return Ok(());
            }
        }
        let served = match held.clone() {
            Some(served) => {
                served.refresh(&volume, Request::of(publish));
                served
            }
            None => {
                let made = self.maker.make(&id, &volume, Request::of(publish)).await?;
                let made = Arc::new(made);
                *held = Some(made.clone());
                lock(&self.served).insert(id.clone(), made.clone());
                made
            }
        };
        self.show(&served, target, published, publish).await.inspect_err(|_| {
            tracing::warn!(session = id, "nothing is shown");
        })?;
        Ok(())
    }

    /// Clears away what is left of a session whose connection is gone. The pods that had it see
    /// errors until they start again; new ones get a new session.
    async fn forget(&self, served: &Served) {
        tracing::warn!(session = served.id, "its connection is gone; it is mounted anew");
        for (target, _) in served.targets() {
            lock(&self.targets).remove(&target);
        }
        lock(&self.served).remove(&served.id);
        let until = Instant::now() + STORE_PATIENCE;
        if let Err(error) = served.end(&self.maker.mounter, until).await {
            tracing::warn!(session = served.id, %error, "not unmounted");
        }
    }

    /// Whether a volume is published at another target.
    fn is_elsewhere(&self, id: &VolumeId, target: &Path) -> bool {
        let all = self.all();
        let mut published = all.iter().flat_map(|served| served.targets());
        published.any(|(path, of)| path != target && of.volume_id == id.as_str())
    }

    async fn show(
        &self,
        served: &Arc<Served>,
        target: PathBuf,
        published: Published,
        publish: &Publish,
    ) -> Result<(), Error> {
        let bind = Bind {
            session: served.id.clone(),
            target: target.clone(),
            read_only: published.read_only,
        };
        let mounter = &self.maker.mounter;
        let shown = tokio::task::block_in_place(|| {
            // What an earlier mount left at the target would be hidden, not gone.
            mounter.unbind(&target)?;
            mounter.bind(bind)
        });
        shown.map_err(|e| Error::Internal(format!("showing {}: {e}", publish.target)))?;
        lock(&self.targets).insert(target.clone(), served.id.clone());
        self.prefer_near_disks(served.clone(), published.subject.clone());
        // Of the volume, not of each of its pods.
        let about = Subject { volume: published.subject.volume.clone(), ..Subject::default() };
        self.announcer.say(Note {
            severity: Severity::Normal,
            reason: "Mounted",
            text: format!("{} is shown to pods of this node", served.source()),
            about,
            tell_pod: false,
            once: true,
        });
        served.shown(target, published);
        self.keep(served);
        self.changed.notify_one();
        Ok(())
    }

    /// Finds out which disks of the cache are near to a pod's GPUs, behind.
    fn prefer_near_disks(&self, served: Arc<Served>, subject: Subject) {
        let (place, pods) = (self.nearness.place.clone(), self.nearness.pods.clone());
        tokio::spawn(async move {
            let Some(topology) = place.topology() else { return };
            if let Some(preference) = pods.preference(&subject, &topology).await {
                tracing::debug!(session = served.id, ?preference, "disks by nearness");
                served.prefer(preference);
            }
        });
    }

    fn keep(&self, served: &Served) {
        let kept = tokio::task::block_in_place(|| served.keep(&self.maker.mounter));
        if let Err(error) = kept {
            tracing::error!(session = served.id, %error, "the mounter does not know of a change");
        }
    }

    /// Takes a volume away from a target.
    ///
    /// # Errors
    /// What the mounter reports.
    pub(super) async fn unpublish(&self, target: &TargetPath) -> Result<(), Error> {
        let path = target.as_path();
        let internal = |e| Error::Internal(format!("removing {target}: {e}"));
        let unbind = || self.maker.mounter.unbind(path).map_err(internal);
        let Some(id) = lock(&self.targets).get(path).cloned() else {
            // Of an earlier run, or never there.
            return tokio::task::block_in_place(unbind);
        };
        let mut held = self.slot(&id).await;
        tokio::task::block_in_place(unbind)?;
        let Some(served) = held.clone() else {
            lock(&self.targets).remove(path);
            return Ok(());
        };
        self.changed.notify_one();
        if served.hidden(path) {
            // The target stays known until this is over: kubelet asks again.
            self.end(&served).await?;
            *held = None;
            lock(&self.served).remove(&id);
            lock(&self.slots).remove(&id);
        } else {
            self.keep(&served);
        }
        lock(&self.targets).remove(path);
        Ok(())
    }

    /// Ends a session that is shown nowhere any more, once its bytes are stored or the deadline
    /// for that is over.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while bytes are not stored; else what the mounter reports.
    async fn end(&self, served: &Served) -> Result<(), Error> {
        let patience = self.unpublish_deadline;
        let unstored = tokio::select! {
            unstored = served.store_all(served.ending.call_until(patience)) => unstored,
            () = self.leaving() => {
                return Err(Error::Unavailable("the node plugin is about to end".into()));
            }
        };
        if served.ending.next(&unstored, patience) == Next::Again {
            return Err(Error::Unavailable(ending::not_yet(served.source(), &unstored)));
        }
        let until = Instant::now() + STORE_PATIENCE;
        let unstored = served.end(&self.maker.mounter, until).await;
        let unstored = unstored
            .map_err(|e| Error::Internal(format!("unmounting {}: {e}", served.source())))?;
        if !unstored.is_empty() {
            self.announcer.say(served.ending.note(served.source(), &unstored));
        }
        Ok(())
    }

    /// The session that shows this volume at this path.
    ///
    /// # Errors
    /// [`Error::NotFound`] when none does.
    pub(super) fn find(&self, id: &VolumeId, path: &TargetPath) -> Result<Arc<Served>, Error> {
        let absent = || Error::NotFound(format!("volume {id} is not published at {path}"));
        let served = self.at(path.as_path()).ok_or_else(absent)?;
        let of = served.targets().into_iter().find(|(target, _)| target == path.as_path());
        match of {
            Some((_, published)) if published.volume_id == id.as_str() => Ok(served),
            _ => Err(absent()),
        }
    }

    /// Serves what earlier runs of the node left. One session that cannot be served does not
    /// keep the others waiting.
    pub(super) fn adopt(&self) {
        let deposits = match self.maker.mounter.list() {
            Ok(deposits) => deposits,
            Err(error) => {
                tracing::warn!(%error, "nothing is known of earlier sessions");
                return;
            }
        };
        let shown = self.maker.mounter.mounts().ok();
        let shown: Option<HashSet<PathBuf>> =
            shown.map(|all| all.into_iter().map(|shown| shown.target).collect());
        for deposit in deposits {
            let id = deposit.session.clone();
            let adopted =
                tokio::runtime::Handle::current().block_on(self.adopt_one(deposit, shown.as_ref()));
            if let Err(error) = adopted {
                tracing::error!(session = id, %error, "a session could not be taken over");
            }
        }
    }

    async fn adopt_one(
        &self,
        deposit: Deposit,
        shown: Option<&HashSet<PathBuf>>,
    ) -> Result<(), Error> {
        let unreadable = || Error::Internal("its record cannot be read".into());
        let record: Record = serde_json::from_str(&deposit.record).map_err(|_| unreadable())?;
        let publish = record.request.clone().publish()?;
        let volume = Volume::parse(&publish, &self.defaults)?;
        let id = deposit.session.clone();
        let mut held = self.slot(&id).await;
        let served = Arc::new(self.maker.adopt(deposit, record, &volume).await?);
        // Those that were taken away while no node was there.
        let is_gone = |target: &PathBuf| shown.is_some_and(|shown| !shown.contains(target));
        for (target, _) in served.targets() {
            if is_gone(&target) {
                served.hidden(&target);
            } else {
                lock(&self.targets).insert(target, id.clone());
            }
        }
        if served.is_nowhere() {
            tracing::info!(session = id, "shown nowhere any more");
            let ended = served.end(&self.maker.mounter, Instant::now() + STORE_PATIENCE).await;
            return ended.map(|_| ()).map_err(|e| Error::Internal(format!("unmounting: {e}")));
        }
        self.keep(&served);
        lock(&self.served).insert(id, served.clone());
        *held = Some(served);
        Ok(())
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Served>> {
        lock(&self.served).values().cloned().collect()
    }

    /// Tells a mounter without memory about every session.
    pub(super) fn deposit_all(&self) {
        for served in self.all() {
            if let Err(error) = served.keep(&self.maker.mounter) {
                tracing::error!(session = served.id, %error, "not in custody");
            }
        }
    }
}
