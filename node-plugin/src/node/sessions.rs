//! The sessions of the node by id, and the targets that show them.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedMutexGuard, watch};
use weir_csi::Error;
use weir_csi::request::{Publish, TargetPath, VolumeId};
use weir_fuse::engine::Engine;

use super::ending::{self, Next};
use super::exchange::Exchange;
use super::place::Place;
use super::pod_gpus::PodGpus;
use super::record::Published;
use super::session::{Maker, STORE_PATIENCE, Served};
use super::volume::{Defaults, Volume, subject};
use crate::kubernetes::events::{Announcer, Note, Severity, Subject};
use crate::mounter::client::Mounter;
use crate::mounter::protocol::Bind;

/// Held while a session is made, shown, hidden or ended.
type Slot = Arc<tokio::sync::Mutex<Option<Arc<Served>>>>;

/// All sessions. Lock order: a slot, then the maps.
pub(super) struct Sessions {
    pub(super) maker: Maker,
    defaults: Defaults,
    slots: Mutex<HashMap<String, Slot>>,
    pub(super) served: Mutex<HashMap<String, Arc<Served>>>,
    pub(super) targets: Mutex<HashMap<PathBuf, String>>,
    pub(super) announcer: Announcer,
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

pub(super) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    pub(super) fn new(
        engine: Arc<Engine>,
        mounter: Arc<Mounter>,
        defaults: Defaults,
        exchange: Exchange,
        announcer: Announcer,
        nearness: Nearness,
        unpublish_deadline: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            maker: Maker { engine, mounter, exchange },
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
    pub(super) async fn slot(&self, id: &str) -> OwnedMutexGuard<Option<Arc<Served>>> {
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
            None => volume.session_id(&publish.volume_id, &publish.target.to_string()),
        };
        let mut held = self.slot(&id).await;
        if held.as_ref().is_some_and(|served| served.has_ended()) {
            self.clear(&mut held, "its connection has ended").await;
        }
        let published = Published {
            volume_id: publish.volume_id.as_str().to_owned(),
            read_only: volume.read_only,
            subject: volume.subject.clone(),
        };
        if let Some(served) = &*held {
            // Whatever else it asks for: who republishes has newer keys.
            match served.refresh(&volume, &self.maker).await {
                Ok(true) => self.keep(served),
                Ok(false) => {}
                Err(error) => self.say_refused(served, &volume, &error),
            }
            let known = served.targets().into_iter().find(|(path, _)| *path == target);
            if let Some((_, before)) = known {
                return self.published_again(served, &before, &published, &volume);
            }
        }
        let mut served = match held.clone() {
            Some(served) => served,
            None => self.make(&mut held, &id, &volume).await?,
        };
        let mut shown = self.show(&served, &target, published.read_only);
        if shown.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotConnected) {
            self.clear(&mut held, "somebody has unmounted it everywhere").await;
            served = self.make(&mut held, &id, &volume).await?;
            shown = self.show(&served, &target, published.read_only);
        }
        if let Err(error) = shown {
            if served.is_nowhere() {
                self.clear(&mut held, "it could not be shown").await;
            }
            return Err(Error::Internal(format!("showing {}: {error}", publish.target)));
        }
        self.note_shown(&served, target, published);
        Ok(())
    }

    /// Answers a publish at a target that shows the session already.
    fn published_again(
        &self,
        served: &Arc<Served>,
        before: &Published,
        published: &Published,
        volume: &Volume,
    ) -> Result<(), Error> {
        let same = |p: &Published| (p.volume_id.clone(), p.read_only);
        if same(before) != same(published) {
            return Err(Error::Exists(format!(
                "the target shows {} in another way; unpublish it first",
                before.volume_id
            )));
        }
        if served.differs_from(&volume.settings) && served.tell_once() {
            let text = "the volume's settings, or the node's defaults for them, are not those that \
                        it was mounted with; the change takes effect when the pod restarts";
            tracing::info!(session = served.id, text);
            self.announcer.say(Note {
                severity: Severity::Normal,
                reason: "SettingsChanged",
                text: text.into(),
                about: published.subject.clone(),
                tell_pod: true,
                once: false,
            });
        }
        Ok(())
    }

    /// Tells that a session goes on with the keys that it has.
    fn say_refused(&self, served: &Served, volume: &Volume, error: &Error) {
        tracing::warn!(session = served.id, %error, "new keys are not used");
        self.announcer.say(Note {
            severity: Severity::Warning,
            reason: "CredentialsRefused",
            text: format!("new keys are not used, and those before are kept: {error}"),
            about: volume.subject.clone(),
            tell_pod: true,
            once: false,
        });
    }

    async fn make(
        &self,
        held: &mut Option<Arc<Served>>,
        id: &str,
        volume: &Volume,
    ) -> Result<Arc<Served>, Error> {
        let made = Arc::new(self.maker.make(id, volume).await?);
        *held = Some(made.clone());
        lock(&self.served).insert(id.to_owned(), made.clone());
        Ok(made)
    }

    /// Clears a session away that no pod can see any more, or has seen yet. The pods that had it see
    /// errors until they start again; new ones get a new session.
    async fn clear(&self, held: &mut Option<Arc<Served>>, why: &str) {
        let Some(served) = held.take() else { return };
        tracing::warn!(session = served.id, why, "a session is cleared away");
        for (target, published) in served.targets() {
            lock(&self.targets).remove(&target);
            self.announcer.say(lost(published.subject, why));
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

    /// Shows a session at a target.
    fn show(&self, served: &Served, target: &Path, read_only: bool) -> io::Result<()> {
        let session = served.id.clone();
        let bind = Bind { session, target: target.to_owned(), read_only };
        let mounter = &self.maker.mounter;
        tokio::task::block_in_place(|| {
            // What an earlier mount left at the target would be hidden, not gone.
            mounter.unbind(target)?;
            mounter.bind(bind)
        })
    }

    fn note_shown(&self, served: &Arc<Served>, target: PathBuf, published: Published) {
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

    pub(super) fn keep(&self, served: &Served) {
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

/// What pods are told whose mount has ended under them.
pub(super) fn lost(about: Subject, why: &str) -> Note {
    Note {
        severity: Severity::Warning,
        reason: "MountLost",
        text: format!("the volume is gone from the running pod: {why}; restart the pod"),
        about,
        tell_pod: true,
        once: false,
    }
}
