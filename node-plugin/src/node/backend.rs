//! The CSI node service on the sessions.

use std::sync::Arc;

use async_trait::async_trait;
use weir_csi::backend::{NodeInfo, Usage, VolumeStats};
use weir_csi::request::{Publish, StatsOf, Unpublish};
use weir_csi::{Error, NodeBackend};
use weir_fuse::cache::NodeCache;

use super::registrar::Registrar;
use super::sessions::Sessions;

/// What a bucket's size is shown as: it has none, so a round number that nobody runs out of.
const UNLIMITED: i64 = 1 << 50;

/// The node's side.
pub(super) struct Backend {
    pub(super) registrar: Arc<Registrar>,
    pub(super) cache: Arc<NodeCache>,
    pub(super) sessions: Arc<Sessions>,
}

#[async_trait]
impl NodeBackend for Backend {
    async fn publish(&self, publish: Publish) -> Result<(), Error> {
        self.sessions.publish(&publish).await
    }

    async fn unpublish(&self, unpublish: Unpublish) -> Result<(), Error> {
        self.sessions.unpublish(&unpublish.target).await
    }

    async fn stats(&self, of: StatsOf) -> Result<VolumeStats, Error> {
        self.sessions.accounted_at(of.path.as_path()).await;
        // From memory alone: the mount itself is never touched, so nothing can hang.
        let served = self.sessions.find(&of.volume_id, &of.path)?;
        let unlimited = Usage { total: UNLIMITED, used: 0, available: UNLIMITED };
        let abnormal = served.problem().or_else(|| self.cache.problem());
        Ok(VolumeStats { bytes: unlimited, inodes: unlimited, abnormal })
    }

    async fn info(&self) -> Result<NodeInfo, Error> {
        self.registrar.info().await
    }
}
