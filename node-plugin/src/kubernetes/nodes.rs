//! A node and what the API server knows of it.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::weirnode::{GROUP, KIND, NodeReport, VERSION, resource};

/// Longest wait for the API server.
const DEADLINE: Duration = Duration::from_secs(5);

/// A node's own objects.
#[async_trait]
pub(crate) trait OwnObjects: Send + Sync + 'static {
    /// Labels of the Node.
    ///
    /// # Errors
    /// What the API server says, for people.
    async fn labels(&self) -> Result<BTreeMap<String, String>, String>;

    /// Writes the WeirNode.
    ///
    /// # Errors
    /// What the API server says, for people.
    async fn report(&self, report: &NodeReport) -> Result<(), String>;
}

/// Those at the API server.
pub(crate) struct ApiObjects {
    client: Client,
    node: String,
}

impl ApiObjects {
    /// Of the node with this name.
    pub(crate) fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned() }
    }

    async fn node(&self) -> Result<Node, String> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        within(nodes.get(&self.node)).await
    }
}

async fn within<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the API server did not answer in {DEADLINE:?}")),
    }
}

#[async_trait]
impl OwnObjects for ApiObjects {
    async fn labels(&self) -> Result<BTreeMap<String, String>, String> {
        Ok(self.node().await?.metadata.labels.unwrap_or_default())
    }

    async fn report(&self, report: &NodeReport) -> Result<(), String> {
        // It goes with the Node.
        let uid = self.node().await?.metadata.uid.unwrap_or_default();
        let object = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": KIND,
            "metadata": {
                "name": self.node,
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Node", "name": self.node, "uid": uid,
                }],
            },
            "status": report,
        });
        let all: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource());
        let params = PatchParams::apply("weir-node").force();
        within(all.patch(&self.node, &params, &Patch::Apply(&object))).await.map(|_| ())
    }
}

#[cfg(test)]
pub(crate) mod twin {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// Objects of a test.
    #[derive(Default)]
    pub(crate) struct MemoryObjects {
        /// The labels; `None` while the API server does not answer.
        pub(crate) labels: Mutex<Option<BTreeMap<String, String>>>,
    }

    impl MemoryObjects {
        /// With these labels.
        pub(crate) fn set(&self, labels: Option<&[(&str, &str)]>) {
            let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
            let labels = labels.map(|labels| labels.iter().map(owned).collect());
            *self.labels.lock().unwrap_or_else(PoisonError::into_inner) = labels;
        }
    }

    #[async_trait]
    impl OwnObjects for MemoryObjects {
        async fn labels(&self) -> Result<BTreeMap<String, String>, String> {
            let labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner).clone();
            labels.ok_or_else(|| "no answer".to_owned())
        }

        async fn report(&self, _: &NodeReport) -> Result<(), String> {
            Ok(())
        }
    }
}
