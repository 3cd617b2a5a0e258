//! What kubelet is told when the driver registers.

use std::collections::BTreeMap;
use std::sync::Arc;

use weir_csi::Error;
use weir_csi::backend::NodeInfo;

use super::place::Place;
use super::registered::Registered;

/// Tells kubelet, and keeps what it was told.
pub(super) struct Registrar {
    pub(super) node_id: String,
    pub(super) max_volumes: i64,
    pub(super) place: Arc<Place>,
    pub(super) kept: Registered,
}

impl Registrar {
    /// For kubelet.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while the Node's labels are not known.
    pub(super) async fn info(&self) -> Result<NodeInfo, Error> {
        let info = self.of(self.place.segments().await?);
        self.kept.keep(&info, true);
        Ok(info)
    }

    /// Looks at labels and GPUs again; returns the segments that the node should have.
    ///
    /// # Errors
    /// What the API server says, for people.
    pub(super) async fn refresh(&self) -> Result<BTreeMap<String, String>, String> {
        let wanted = self.place.refresh().await?;
        if let Some(told) = self.place.registered() {
            let current = self.place.is_registered_as_reported();
            if current != self.kept.is_current() {
                self.kept.keep(&self.of(told), current);
            }
        }
        Ok(wanted)
    }

    fn of(&self, segments: BTreeMap<String, String>) -> NodeInfo {
        NodeInfo { node_id: self.node_id.clone(), max_volumes: self.max_volumes, segments }
    }
}
