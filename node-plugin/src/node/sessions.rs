//! The sessions of the node by id, and the targets that show them.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::sync::{Notify, oneshot, watch};
use weir_csi::Error;
use weir_csi::request::{Publish, TargetPath, VolumeId};
use weir_fuse::blocking::aside_for_mounts;

use super::adoption::Estate;
use super::claims::Claims;
use super::ending::{self, Next};
use super::life::{Live, Message, Reply, Wanted, World};
use super::limits::{Limits, Places};
use super::mailbox::Mailboxes;
use super::place::Place;
use super::pod_gpus::PodGpus;
use super::record::Published;
use super::role;
use super::session::{Maker, STORE_PATIENCE, Served};
use super::showing::{self, Before};
use super::volume::{Defaults, Volume, subject};
use crate::kubernetes::events::{Announcer, Note, Severity, Subject};
use crate::mounter::protocol::Bind;

/// How long a session may take to be mounted, and new credentials to be proven: less than kubelet
/// waits for an answer (two minutes).
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a mounter that is back is waited for to know of all sessions.
const KEPT_WITHIN: Duration = Duration::from_secs(10);

/// All sessions.
pub(super) struct Sessions {
    pub(super) maker: Maker,
    defaults: Defaults,
    mailboxes: Mailboxes<Volume>,
    pub(super) claims: Claims,
    /// What earlier runs left.
    pub(super) estate: Estate,
    served: Mutex<HashMap<String, Arc<Served>>>,
    pub(super) announcer: Announcer,
    nearness: Nearness,
    changed: Notify,
    /// Whether the process is about to end.
    pub(super) leaving: watch::Sender<bool>,
    /// How long kubelet is told to wait for bytes that are not stored.
    unpublish_deadline: Duration,
    places: Places,
}

/// What is known of places.
pub(super) struct Nearness {
    pub(super) place: Arc<Place>,
    pub(super) pods: Arc<PodGpus>,
}

impl Sessions {
    pub(super) fn new(
        maker: Maker,
        defaults: Defaults,
        announcer: Announcer,
        nearness: Nearness,
        limits: Limits,
    ) -> Arc<Self> {
        Arc::new(Self {
            maker,
            defaults,
            mailboxes: Mailboxes::default(),
            claims: Claims::default(),
            estate: Estate::default(),
            served: Mutex::default(),
            announcer,
            nearness,
            changed: Notify::new(),
            leaving: watch::Sender::new(false),
            unpublish_deadline: limits.unpublish_deadline,
            places: Places::new(limits.sessions),
        })
    }

    pub(super) fn served(&self) -> MutexGuard<'_, HashMap<String, Arc<Served>>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is shown or taken away.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Has the task of a session do something, and waits for its answer.
    pub(super) async fn ask(
        self: &Arc<Self>,
        id: &str,
        message: impl FnOnce(Reply) -> Message<Volume>,
    ) -> Result<(), Error> {
        self.try_ask(id, message).await.unwrap_or_else(|| Err(task_ended()))
    }

    /// As [`Sessions::ask`]; `None` where the task has panicked.
    async fn try_ask(
        self: &Arc<Self>,
        id: &str,
        message: impl FnOnce(Reply) -> Message<Volume>,
    ) -> Option<Result<(), Error>> {
        self.send(id, message).await.ok()
    }

    /// Has the task of a session do something, after all that it was sent before. The answer is none
    /// where the task has panicked.
    pub(super) fn send(
        self: &Arc<Self>,
        id: &str,
        message: impl FnOnce(Reply) -> Message<Volume>,
    ) -> oneshot::Receiver<Result<(), Error>> {
        let (reply, answer) = oneshot::channel();
        self.mailboxes.send(self, id, message(reply));
        answer
    }

    /// Shows a volume at a target; a repeat refreshes its credentials.
    ///
    /// # Errors
    /// What is wrong, as the volume's user can mend it.
    pub(super) async fn publish(self: &Arc<Self>, publish: &Publish) -> Result<(), Error> {
        let done = self.try_publish(publish).await;
        if let Err(error) = &done {
            role::forget(publish, &self.defaults);
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

    async fn try_publish(self: &Arc<Self>, publish: &Publish) -> Result<(), Error> {
        let target = publish.target.as_path().to_owned();
        self.accounted_at(&target).await;
        let made = self.at(&target).map(|served| served.settings());
        let annotated = role::annotated(publish, &self.defaults, made.as_ref()).await?;
        let volume = Volume::parse(publish, &self.defaults, annotated)?;
        let id = volume.session_id(&publish.volume_id, &publish.target.to_string());
        let volume_id = publish.volume_id.as_str();
        let single = publish.capability.mode.single;
        let claimed = self.claims.begin(&target, (&id, volume_id), single).ok_or_else(|| {
            let text = "is published to another pod of this node, and its access mode allows one";
            Error::Precondition(format!("volume {volume_id} {text}"))
        })?;
        let published = Published {
            volume_id: volume_id.to_owned(),
            read_only: volume.read_only,
            subject: volume.subject.clone(),
        };
        let wanted = Box::new(Wanted { target: target.clone(), published, volume });
        let done = self.try_ask(&claimed, |reply| Message::Publish(wanted, reply)).await;
        done.unwrap_or_else(|| {
            // It did not come to say so.
            self.claims.end(&target, false);
            Err(task_ended())
        })
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

    /// Tells a pod that it holds a mount which nobody has told it of: it had ended when no node was
    /// there.
    fn say_ended(&self, served: &Served, subject: &Subject) {
        let note = lost(subject.clone(), "the mount that it had has ended");
        if self.announcer.has_said_lately(subject, note.reason) {
            return;
        }
        let (session, reason) = (&served.id, note.reason);
        tracing::warn!(session, reason, pod = subject.pod, "the mount at a target had ended");
        self.announcer.say(note);
    }

    fn say_mounted(&self, served: &Served, subject: &Subject) {
        // Of the volume, not of each of its pods.
        let about = Subject { volume: subject.volume.clone(), ..Subject::default() };
        self.announcer.say(Note {
            severity: Severity::Normal,
            reason: "Mounted",
            text: format!("{} is shown to pods of this node", served.source()),
            about,
            tell_pod: false,
            once: true,
        });
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

    /// Takes a volume away from a target.
    ///
    /// # Errors
    /// What the mounter reports; [`Error::Unavailable`] while bytes are not stored.
    pub(super) async fn unpublish(self: &Arc<Self>, target: &TargetPath) -> Result<(), Error> {
        let path = target.as_path().to_owned();
        match self.claims.session_at(&path) {
            Some(id) => self.ask(&id, |reply| Message::Unpublish(path, reply)).await,
            // Of an earlier run, or never there.
            None => self
                .hide(&path)
                .await
                .map_err(|error| Error::Internal(format!("removing {target}: {error}"))),
        }
    }

    /// The session that a target belongs to, once it is served.
    fn at(&self, target: &Path) -> Option<Arc<Served>> {
        let session = self.claims.session_at(target)?;
        self.served().get(&session).cloned()
    }

    /// The session that shows this volume at this path.
    ///
    /// # Errors
    /// [`Error::NotFound`] when none does.
    pub(super) fn find(&self, id: &VolumeId, path: &TargetPath) -> Result<Arc<Served>, Error> {
        let shows = |served: &Arc<Served>| {
            let targets = served.targets();
            let at = targets.iter().find(|(target, _)| target == path.as_path());
            at.is_some_and(|(_, published)| published.volume_id == id.as_str())
        };
        self.at(path.as_path())
            .filter(shows)
            .ok_or_else(|| Error::NotFound(format!("volume {id} is not published at {path}")))
    }

    /// The namespaces of the pods of each session, those that earlier runs left among them.
    fn namespaces(&self) -> HashMap<String, Vec<String>> {
        let of = |served: &Served| {
            let targets = served.targets();
            targets.iter().map(|(_, shown)| shown.subject.namespace.clone()).collect()
        };
        let mut all = self.estate.namespaces();
        all.extend(self.served().iter().map(|(id, served)| (id.clone(), of(served))));
        all
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Served>> {
        self.served().values().cloned().collect()
    }

    /// Tells a mounter without memory about every session. By their tasks: one that ends meanwhile
    /// must not come into custody after its end.
    pub(super) async fn keep_all(self: &Arc<Self>) {
        let all = self.all();
        let told = join_all(all.iter().map(|served| self.ask(&served.id, Message::Keep)));
        if tokio::time::timeout(KEPT_WITHIN, told).await.is_err() {
            tracing::warn!("some sessions are busy; the mounter hears of them later");
        }
    }
}

#[async_trait]
impl World for Sessions {
    type Session = Served;
    type Volume = Volume;

    async fn make(&self, id: &str, volume: &Volume) -> Result<Arc<Served>, Error> {
        let _place = self.places.take(id, &volume.subject.namespace, || self.namespaces())?;
        match tokio::time::timeout(PATIENCE, self.maker.make(id, volume)).await {
            Ok(made) => made,
            Err(_) => {
                self.maker.abandon(id).await;
                let (source, seconds) = (volume.settings.source(), PATIENCE.as_secs());
                Err(Error::Unavailable(format!("mounting {source} took more than {seconds} s")))
            }
        }
    }

    async fn adopt(&self, id: &str) -> Option<Arc<Served>> {
        self.adopt_or_end(id).await
    }

    async fn refresh(&self, served: &Arc<Served>, volume: &Volume) {
        match tokio::time::timeout(PATIENCE, served.newer(volume, &self.maker)).await {
            Ok(Ok(Some(keys))) => {
                served.take(keys).await;
                self.keep_if_possible(&served.id, served).await;
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => self.say_refused(served, volume, &error),
            Err(_) => {
                let error = Error::Unavailable("the origin does not answer".into());
                self.say_refused(served, volume, &error);
            }
        }
    }

    fn published_again(
        &self,
        served: &Arc<Served>,
        before: &Published,
        wanted: &Wanted<Volume>,
    ) -> Result<(), Error> {
        let published = &wanted.published;
        let same = |p: &Published| (p.volume_id.clone(), p.read_only);
        if same(before) != same(published) {
            return Err(Error::Exists(format!(
                "the target shows {} in another way; unpublish it first",
                before.volume_id
            )));
        }
        if served.differs_from(&wanted.volume.settings) && served.tell_once() {
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

    async fn show(&self, served: &Arc<Served>, wanted: &Wanted<Volume>) -> io::Result<()> {
        let (session, target) = (served.id.clone(), wanted.target.clone());
        let bind = Bind { session, target, read_only: wanted.published.read_only, replace: false };
        let (mounter, known) = (self.maker.mounter.clone(), served.clone());
        let before =
            aside_for_mounts(move |may| showing::show(may, &mounter, &known, &bind)).await?;
        let subject = &wanted.published.subject;
        if before == Before::Ended {
            self.say_ended(served, subject);
        }
        self.prefer_near_disks(served.clone(), subject.clone());
        self.say_mounted(served, subject);
        self.changed.notify_one();
        Ok(())
    }

    async fn hide(&self, target: &Path) -> io::Result<()> {
        let (mounter, target) = (self.maker.mounter.clone(), target.to_owned());
        aside_for_mounts(move |may| mounter.unbind(may, &target)).await?;
        self.changed.notify_one();
        Ok(())
    }

    async fn keep(&self, served: &Arc<Served>) -> io::Result<()> {
        served.keep(&self.maker.mounter).await
    }

    async fn store(&self, served: &Arc<Served>) -> Result<(), Error> {
        let patience = self.unpublish_deadline;
        let unstored = tokio::select! {
            unstored = served.store_all(served.ending.call_until(patience)) => unstored,
            () = self.leaving() => {
                return Err(Error::Unavailable("the node plugin is about to end".into()));
            }
        };
        match served.ending.next(&unstored, patience) {
            Next::Again => Err(Error::Unavailable(ending::not_yet(served.source(), &unstored))),
            Next::Over => Ok(()),
        }
    }

    async fn end(&self, served: &Arc<Served>) -> Result<(), Error> {
        let until = Instant::now() + STORE_PATIENCE;
        let unstored = served.end(&self.maker.mounter, until).await;
        let unstored = unstored
            .map_err(|e| Error::Internal(format!("unmounting {}: {e}", served.source())))?;
        if !unstored.is_empty() {
            self.announcer.say(served.ending.note(served.source(), &unstored));
        }
        Ok(())
    }

    async fn clear(&self, served: &Arc<Served>, why: &str) {
        tracing::warn!(session = served.id, why, "a session is cleared away");
        for (_, published) in served.targets() {
            self.announcer.say(lost(published.subject, why));
        }
        let until = Instant::now() + STORE_PATIENCE;
        if let Err(error) = served.end(&self.maker.mounter, until).await {
            tracing::warn!(session = served.id, %error, "not unmounted");
        }
    }

    fn noted(&self, id: &str) -> Option<Arc<Served>> {
        self.served().get(id).cloned()
    }

    fn note(self: &Arc<Self>, id: &str, served: Option<&Arc<Served>>) {
        let Some(served) = served else {
            self.served().remove(id);
            return;
        };
        self.served().insert(id.to_owned(), served.clone());
        for (target, published) in served.targets() {
            self.claims.adopt(&target, id, &published.volume_id);
        }
        let (ended, sessions, id) = (served.until_ended(), self.clone(), id.to_owned());
        tokio::spawn(async move {
            ended.await;
            sessions.mailboxes.send(&sessions, &id, Message::Lost);
        });
    }

    fn answered(&self, target: &Path, is_shown: bool) {
        self.claims.end(target, is_shown);
    }

    fn released(&self, target: &Path) {
        self.claims.release(target);
    }
}

/// What is said where the task of a session has panicked.
fn task_ended() -> Error {
    Error::Internal("the task of the session has ended; see the node's log".into())
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
