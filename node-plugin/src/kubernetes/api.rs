//! The Kubernetes API server, from inside a cluster.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference, PersistentVolume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

use super::events::{Herald, Note};
use crate::csi::DRIVER;

/// Longest text of an Event that the API server takes, in bytes.
const TEXT_MAX: usize = 1024;

/// Writes Events.
pub(crate) struct Events {
    client: Client,
    node: String,
}

impl Events {
    /// In the name of a node's plugin.
    pub(crate) fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned() }
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
        if let Some(claim) = volume.spec.and_then(|spec| spec.claim_ref) {
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
        let now = Timestamp::now();
        let mut text = note.text.clone();
        if text.len() > TEXT_MAX {
            text.truncate(text.floor_char_boundary(TEXT_MAX));
        }
        let event = Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}.", object.name.as_deref().unwrap_or("weir"))),
                namespace: Some(namespace.clone()),
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
        };
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Err(error) = events.create(&PostParams::default(), &event).await {
            tracing::warn!(%error, reason = note.reason, "event not written");
        }
    }
}

#[async_trait]
impl Herald for Events {
    async fn tell(&self, note: Note) {
        let mut objects = match &note.about.volume {
            Some(name) => self.volume(name).await,
            None => Vec::new(),
        };
        let about = &note.about;
        if about.on_node {
            objects.extend(self.own_node().await);
        }
        if note.tell_pod && !about.pod_uid.is_empty() {
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
