//! The Kubernetes API server, from inside a cluster.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference, PersistentVolume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use lru::LruCache;
use serde_json::json;
use weir_fuse::metrics::Metrics;

use super::events::{Herald, Note};
use super::rate::Rate;
use crate::csi::DRIVER;

/// Longest text of an Event that the API server takes, in bytes.
const TEXT_MAX: usize = 1024;
/// Events that are remembered, so that a repeat counts them up.
const SERIES_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// An Event that was written.
struct Written {
    name: String,
    count: i32,
}

/// By the object's kind, name and uid, and the reason.
type Series = LruCache<(String, &'static str), Written>;

/// Writes Events: one for each object and reason, which repeats count up, and not more than
/// [`Rate`] allows.
pub(crate) struct Events {
    client: Client,
    node: String,
    rate: Mutex<Rate>,
    series: Mutex<Series>,
    counted: Arc<Metrics>,
}

impl Events {
    /// In the name of a node's plugin.
    pub(crate) fn new(client: Client, node: &str, counted: Arc<Metrics>) -> Self {
        Self {
            client,
            node: node.to_owned(),
            rate: Mutex::new(Rate::new(Instant::now())),
            series: Mutex::new(LruCache::new(SERIES_MAX)),
            counted,
        }
    }

    /// Whether an Event about this object may be written now. Asked before anything is read for
    /// its sake.
    fn may_tell(&self, object: &str) -> bool {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let may = rate.take(object, Instant::now());
        if !may {
            self.counted.events_dropped.inc();
        }
        may
    }

    /// The Node itself.
    async fn own_node(&self) -> Option<ObjectReference> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = nodes.get(&self.node).await;
        let node = node.inspect_err(|error| tracing::debug!(%error, "Node not read")).ok()?;
        Some(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(self.node.clone()),
            uid: node.metadata.uid,
            ..Default::default()
        })
    }

    /// The PersistentVolume and its claim. Asked for each time: a volume that was made anew has
    /// its name, and another uid.
    async fn volume(&self, name: &str) -> Vec<ObjectReference> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let volume = match volumes.get(name).await {
            Ok(volume) => volume,
            Err(error) => {
                tracing::debug!(%error, name, "PersistentVolume not read");
                return Vec::new();
            }
        };
        let mut objects = vec![ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("PersistentVolume".into()),
            name: Some(name.to_owned()),
            uid: volume.metadata.uid,
            ..Default::default()
        }];
        let claim = volume.spec.and_then(|spec| spec.claim_ref);
        if let Some(claim) = claim.filter(|_| self.may_tell(&format!("claim of {name}"))) {
            objects.push(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                ..claim
            });
        }
        objects
    }

    async fn write(&self, note: &Note, object: ObjectReference) {
        // Where an object has no namespace, `kubectl describe` looks in this one.
        let namespace = object.namespace.clone().unwrap_or_else(|| "default".into());
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let mut text = note.text.clone();
        if text.len() > TEXT_MAX {
            text.truncate(text.floor_char_boundary(TEXT_MAX));
        }
        let part = |of: &Option<String>| of.clone().unwrap_or_default();
        let named = [&object.kind, &object.name, &object.uid].map(part).join(" ");
        let key = (named, note.reason);
        if self.count_up(&events, &key, &text).await {
            return;
        }
        let event = self.event(note, object, text, namespace);
        match events.create(&PostParams::default(), &event).await {
            Ok(made) => {
                let name = made.metadata.name.unwrap_or_default();
                self.series().put(key, Written { name, count: 1 });
            }
            Err(error) => tracing::warn!(%error, reason = note.reason, "event not written"),
        }
    }

    /// Says again what an Event says that is there; false if none is.
    async fn count_up(
        &self,
        events: &Api<Event>,
        key: &(String, &'static str),
        text: &str,
    ) -> bool {
        let Some(before) = self.series().pop(key) else { return false };
        let count = before.count.saturating_add(1);
        let patch =
            json!({"count": count, "lastTimestamp": Time(Timestamp::now()), "message": text});
        let patched =
            events.patch(&before.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        match patched {
            // An API server keeps Events for an hour.
            Err(kube::Error::Api(status)) if status.code == 404 => return false,
            Err(error) => tracing::warn!(%error, reason = key.1, "event not counted up"),
            Ok(_) => {}
        }
        self.series().put(key.clone(), Written { name: before.name, count });
        true
    }

    fn series(&self) -> std::sync::MutexGuard<'_, Series> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(
        &self,
        note: &Note,
        object: ObjectReference,
        text: String,
        namespace: String,
    ) -> Event {
        let now = Timestamp::now();
        Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}.", object.name.as_deref().unwrap_or("weir"))),
                namespace: Some(namespace),
                ..Default::default()
            },
            type_: Some(note.severity.as_str().into()),
            reason: Some(note.reason.into()),
            message: Some(text),
            involved_object: object,
            source: Some(EventSource {
                component: Some(DRIVER.into()),
                host: Some(self.node.clone()),
            }),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            event_time: Some(MicroTime(now)),
            action: Some(note.reason.into()),
            reporting_component: Some(DRIVER.into()),
            reporting_instance: Some(self.node.clone()),
            count: Some(1),
            ..Default::default()
        }
    }
}

#[async_trait]
impl Herald for Events {
    async fn tell(&self, note: Note) {
        let about = &note.about;
        let mut objects = match &about.volume {
            Some(name) if self.may_tell(&format!("volume {name}")) => self.volume(name).await,
            _ => Vec::new(),
        };
        if about.on_node && self.may_tell("node") {
            objects.extend(self.own_node().await);
        }
        let tells_pod = note.tell_pod && !about.pod_uid.is_empty();
        if tells_pod && self.may_tell(&format!("pod {}", about.pod_uid)) {
            objects.push(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(about.pod.clone()),
                namespace: Some(about.namespace.clone()),
                uid: Some(about.pod_uid.clone()),
                ..Default::default()
            });
        }
        for object in objects {
            self.write(&note, object).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use hyper::{Method, Request, Response, StatusCode};
    use kube::client::Body;

    use super::*;
    use crate::kubernetes::events::{Announcer, Severity, Subject};

    /// Methods and bodies of requests.
    type Asked = Arc<Mutex<Vec<(Method, serde_json::Value)>>>;

    /// An API server that makes Events, and what it was asked.
    fn server(forgets: bool) -> (Client, Asked) {
        let asked = Asked::default();
        let kept = asked.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let kept = kept.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                let is_patch = head.method == Method::PATCH;
                kept.lock().unwrap().push((head.method, body));
                let (status, answer) = match is_patch && forgets {
                    true => (StatusCode::NOT_FOUND, json!({"status": "Failure", "code": 404})),
                    false => (
                        StatusCode::OK,
                        json!({"metadata": {"name": "made"}, "involvedObject": {}}),
                    ),
                };
                let answer = Response::builder()
                    .status(status)
                    .body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, Infallible>(answer.unwrap())
            }
        });
        (Client::new(service, "default"), asked)
    }

    fn note(text: &str) -> Note {
        Note {
            severity: Severity::Warning,
            reason: "MountFailed",
            text: text.into(),
            about: Subject { pod: "p".into(), pod_uid: "u".into(), ..Subject::default() },
            tell_pod: true,
            once: false,
        }
    }

    #[tokio::test]
    async fn a_repeat_counts_the_event_up() {
        let (client, asked) = server(false);
        let counted = Arc::new(Metrics::new().unwrap());
        let events = Events::new(client, "node1", counted.clone());
        for text in ["request 1 failed", "request 2 failed", "request 3 failed"] {
            events.tell(note(text)).await;
        }
        let asked = asked.lock().unwrap().clone();
        let methods: Vec<_> = asked.iter().map(|(method, _)| method.as_str()).collect();
        assert_eq!(methods, ["POST", "PATCH", "PATCH"]);
        assert_eq!(asked[2].1["count"], 3);
        assert_eq!(asked[2].1["message"], "request 3 failed");
        assert_eq!(counted.events_dropped.get(), 0);
    }

    #[tokio::test]
    async fn an_event_that_is_gone_is_written_anew() {
        let (client, asked) = server(true);
        let events = Events::new(client, "node1", Arc::new(Metrics::new().unwrap()));
        for _ in 0..2 {
            events.tell(note("failed")).await;
        }
        let asked = asked.lock().unwrap();
        let methods: Vec<_> = asked.iter().map(|(method, _)| method.as_str()).collect();
        assert_eq!(methods, ["POST", "PATCH", "POST"]);
    }

    #[tokio::test]
    async fn a_request_that_is_never_answered_keeps_no_other_event_from_being_written() {
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: Request<Body>| {
            let told = told.clone();
            async move {
                let body = request.into_body().collect_bytes().await.unwrap();
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                told.send(body["message"].as_str().unwrap().to_owned()).unwrap();
                match body["message"] == "first" {
                    true => std::future::pending().await,
                    false => {
                        let answer = json!({"metadata": {"name": "made"}, "involvedObject": {}});
                        let body = Body::from(answer.to_string().into_bytes());
                        Ok::<_, Infallible>(Response::new(body))
                    }
                }
            }
        });
        let counted = Arc::new(Metrics::new().unwrap());
        let events = Events::new(Client::new(service, "default"), "node1", counted.clone());
        let announcer = Announcer::patient_for(Duration::from_millis(1), events, counted.clone());
        announcer.say(note("first"));
        announcer.say(note("second"));
        assert_eq!(heard.recv().await.unwrap(), "first");
        let second = tokio::time::timeout(Duration::from_secs(60), heard.recv()).await;
        assert_eq!(second.unwrap().unwrap(), "second");
        assert!(counted.events_dropped.get() >= 1);
    }

    #[tokio::test]
    async fn what_is_too_much_is_dropped_and_counted() {
        let (client, asked) = server(false);
        let counted = Arc::new(Metrics::new().unwrap());
        let events = Events::new(client, "node1", counted.clone());
        for _ in 0..200 {
            events.tell(note("failed")).await;
        }
        // The object's bucket, whatever time this takes: one more in five minutes.
        assert_eq!(asked.lock().unwrap().len(), 25);
        assert_eq!(counted.events_dropped.get(), 175);
    }
}
