//! What the services need of the plugin.

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::Error;
use crate::request::{Create, Publish, Secrets, StatsOf, Unpublish, Validate, VolumeId};

/// What a node tells about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeInfo {
    /// Its id: the name of its Node object.
    pub node_id: String,
    /// Most volumes that it takes; 0 for any number.
    pub max_volumes: i64,
    /// Its topology segments; at least one.
    pub segments: BTreeMap<String, String>,
}

/// How much of something there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// All of it.
    pub total: i64,
    /// What is taken.
    pub used: i64,
    /// What is left.
    pub available: i64,
}

/// How a published volume is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeStats {
    /// Bytes.
    pub bytes: Usage,
    /// Inodes.
    pub inodes: Usage,
    /// What is wrong with it, if anything is.
    pub abnormal: Option<String>,
}

/// A volume that was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its size in bytes; 0 when unknown.
    pub capacity_bytes: u64,
    /// Attributes that its publish gets.
    pub context: BTreeMap<String, String>,
    /// Segments from one of which it can be used; empty for everywhere.
    pub segments: Vec<BTreeMap<String, String>>,
}

/// The node's side of volumes.
#[async_trait]
pub trait NodeBackend: Send + Sync + 'static {
    /// Shows a volume to a pod. A repeat changes nothing but the credentials.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Exists`] when the target shows the volume in another way.
    async fn publish(&self, publish: Publish) -> Result<(), Error>;

    /// Takes a volume away; one that is not there is success.
    ///
    /// # Errors
    /// [`Error`].
    async fn unpublish(&self, unpublish: Unpublish) -> Result<(), Error>;

    /// How a volume is. Never hangs.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is not published there.
    async fn stats(&self, of: StatsOf) -> Result<VolumeStats, Error>;

    /// What the node is.
    ///
    /// # Errors
    /// [`Error`].
    async fn info(&self) -> Result<NodeInfo, Error>;
}

/// The cluster's side of volumes.
#[async_trait]
pub trait ControllerBackend: Send + Sync + 'static {
    /// Makes a volume, or finds the one that this name made before.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Exists`] when the name made a different one.
    async fn create(&self, create: Create) -> Result<Volume, Error>;

    /// Removes what a volume owns; one that is not there is success.
    ///
    /// # Errors
    /// [`Error`].
    async fn delete(&self, id: VolumeId, secrets: Secrets) -> Result<(), Error>;

    /// Checks that a volume is there.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is not.
    async fn validate(&self, validate: Validate) -> Result<(), Error>;
}
