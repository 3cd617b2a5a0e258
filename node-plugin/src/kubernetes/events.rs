//! Events: what an operator must know, where `kubectl describe` shows it, and not too often.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lru::LruCache;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use weir_fuse::metrics::Metrics;

/// How long the same thing about the same volume is not said again.
const AGAIN_AFTER: Duration = Duration::from_secs(300);
/// Notes that may wait; more are dropped, and counted.
const WAITING_MAX: usize = 256;
/// How long bringing one may take: those that wait must not wait for ever.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// Things that are remembered as said.
const SAID_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// Whether somebody must do something.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Severity {
    /// All is well.
    Normal,
    /// Something is wrong.
    Warning,
}

impl Severity {
    /// As an Event's `type`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Where a volume is used: what is known of it without asking the API server.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Subject {
    /// Name of the PersistentVolume; `None` for an inline volume.
    pub(crate) volume: Option<String>,
    /// Namespace of the pod.
    pub(crate) namespace: String,
    /// Name of the pod.
    pub(crate) pod: String,
    /// Uid of the pod.
    pub(crate) pod_uid: String,
    /// Whether it is about the node as a whole.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) on_node: bool,
}

impl Subject {
    /// The node as a whole.
    pub(crate) fn node() -> Self {
        Self { on_node: true, ..Self::default() }
    }

    /// The name of the PersistentVolume is part of kubelet's path:
    /// `pods/UID/volumes/kubernetes.io~csi/NAME/mount`.
    pub(crate) fn volume_of(target: &Path, inline: bool) -> Option<String> {
        let mut parts = target.components().rev().map(|part| part.as_os_str());
        let (mount, name, plugin) = (parts.next()?, parts.next()?, parts.next()?);
        let known = mount == "mount" && plugin == "kubernetes.io~csi" && !inline;
        known.then(|| name.to_string_lossy().into_owned())
    }
}

/// Something to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Note {
    pub(crate) severity: Severity,
    /// One word in CamelCase.
    pub(crate) reason: &'static str,
    /// A sentence. The same twice is a repeat, so nothing that changes by itself, as a number of
    /// bytes, belongs into what is said while something lasts.
    pub(crate) text: String,
    pub(crate) about: Subject,
    /// Whether the pod hears of it, too: not what kubelet tells it anyway.
    pub(crate) tell_pod: bool,
    /// Whether it is said once for as long as the process lives, not again after a while.
    pub(crate) once: bool,
}

/// Brings notes to people. The real one writes Events; the one for tests remembers.
#[async_trait]
pub(crate) trait Herald: Send + Sync + 'static {
    /// Brings one.
    async fn tell(&self, note: Note);
}

type Said = LruCache<(Subject, &'static str, String), Instant>;

/// Takes notes, without waiting, and drops repeats.
#[derive(Clone)]
pub(crate) struct Announcer {
    sender: Option<(mpsc::Sender<Note>, Arc<Metrics>)>,
    said: Arc<Mutex<Said>>,
}

impl Announcer {
    /// One that tells nobody, as outside a cluster.
    pub(crate) fn silent() -> Self {
        Self { sender: None, said: Arc::new(Mutex::new(LruCache::new(SAID_MAX))) }
    }

    /// One whose notes `herald` brings; `counted` counts those that it cannot.
    pub(crate) fn new(herald: impl Herald, counted: Arc<Metrics>) -> Self {
        Self::patient_for(TOLD_WITHIN, herald, counted)
    }

    /// As [`Announcer::new`], with so much time for each.
    pub(super) fn patient_for(
        patience: Duration,
        herald: impl Herald,
        counted: Arc<Metrics>,
    ) -> Self {
        let (sender, mut notes) = mpsc::channel::<Note>(WAITING_MAX);
        let dropped = counted.clone();
        tokio::spawn(async move {
            while let Some(note) = notes.recv().await {
                let reason = note.reason;
                if tokio::time::timeout(patience, herald.tell(note)).await.is_err() {
                    tracing::warn!(
                        reason,
                        "an Event is not written: the API server does not answer"
                    );
                    dropped.events_dropped.inc();
                }
            }
        });
        Self { sender: Some((sender, counted)), ..Self::silent() }
    }

    /// Says something, unless it was said a short while ago.
    pub(crate) fn say(&self, note: Note) {
        self.say_at(note, Instant::now());
    }

    /// Whether something was said for this reason a short while ago, in whichever words.
    pub(crate) fn has_said_lately(&self, about: &Subject, reason: &str) -> bool {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().any(|((subject, of, _), at)| {
            subject == about && *of == reason && at.elapsed() < AGAIN_AFTER
        })
    }

    fn say_at(&self, note: Note, now: Instant) {
        let Some((sender, counted)) = &self.sender else { return };
        let key = (note.about.clone(), note.reason, note.text.clone());
        {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            let is_repeat =
                |at: &Instant| note.once || now.saturating_duration_since(*at) < AGAIN_AFTER;
            if said.get(&key).is_some_and(is_repeat) {
                return;
            }
            said.put(key, now);
        }
        if sender.try_send(note).is_err() {
            counted.events_dropped.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Remembers(mpsc::UnboundedSender<Note>);

    #[async_trait]
    impl Herald for Remembers {
        async fn tell(&self, note: Note) {
            let _ = self.0.send(note);
        }
    }

    fn announcer() -> (Announcer, mpsc::UnboundedReceiver<Note>) {
        let (sender, told) = mpsc::unbounded_channel();
        let counted = Arc::new(Metrics::new().unwrap());
        (Announcer::new(Remembers(sender), counted), told)
    }

    fn note(text: &str) -> Note {
        Note {
            severity: Severity::Warning,
            reason: "OriginRefuses",
            text: text.into(),
            about: Subject::default(),
            tell_pod: true,
            once: false,
        }
    }

    #[tokio::test]
    async fn a_repeat_is_said_after_a_while_or_never() {
        let (announcer, mut told) = announcer();
        let start = Instant::now();
        let once = Note { once: true, ..note("once") };
        for at in [start, start + AGAIN_AFTER / 2, start + AGAIN_AFTER] {
            announcer.say_at(note("again"), at);
            announcer.say_at(once.clone(), at);
        }
        drop(announcer);
        let mut texts = Vec::new();
        while let Some(note) = told.recv().await {
            texts.push(note.text);
        }
        assert_eq!(texts, ["again", "once", "again"]);
    }

    #[tokio::test]
    async fn the_same_is_said_once() {
        let (announcer, mut told) = announcer();
        assert!(!announcer.has_said_lately(&Subject::default(), "OriginRefuses"));
        for text in ["a", "a", "b", "a"] {
            announcer.say(note(text));
        }
        assert!(announcer.has_said_lately(&Subject::default(), "OriginRefuses"));
        assert!(!announcer.has_said_lately(&Subject::node(), "OriginRefuses"));
        assert!(!announcer.has_said_lately(&Subject::default(), "MountLost"));
        drop(announcer);
        assert_eq!(told.recv().await.unwrap().text, "a");
        assert_eq!(told.recv().await.unwrap().text, "b");
        assert!(told.recv().await.is_none());
    }

    #[test]
    fn the_volume_is_named_by_kubelets_path() {
        let path = Path::new("/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/assets/mount");
        assert_eq!(Subject::volume_of(path, false).as_deref(), Some("assets"));
        assert_eq!(Subject::volume_of(path, true), None);
        assert_eq!(Subject::volume_of(Path::new("/tmp/mount"), false), None);
    }
}
