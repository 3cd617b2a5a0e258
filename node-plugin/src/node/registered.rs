//! What kubelet was told of this node, kept beside the plugin's socket for the standby: a kubelet
//! that restarts while no node plugin is there must hear the same, and the registrar's probe asks
//! the standby whether it is to register again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weir_csi::backend::NodeInfo;

/// The file, and who reads and writes it.
#[derive(Clone, Debug)]
pub(crate) struct Registered {
    file: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    node_id: String,
    max_volumes: i64,
    segments: BTreeMap<String, String>,
    /// Whether it would be told the same now.
    current: bool,
}

impl Registered {
    /// The one beside this socket.
    pub(crate) fn beside(socket: &Path) -> Self {
        Self { file: socket.with_file_name("registered.json") }
    }

    /// Keeps it.
    pub(crate) fn keep(&self, info: &NodeInfo, current: bool) {
        let kept = Kept {
            node_id: info.node_id.clone(),
            max_volumes: info.max_volumes,
            segments: info.segments.clone(),
            current,
        };
        let new = self.file.with_extension("new");
        let text = serde_json::to_string(&kept).unwrap_or_default();
        if let Err(error) = fs::write(&new, text).and_then(|()| fs::rename(&new, &self.file)) {
            tracing::warn!(%error, "what kubelet was told is not kept");
        }
    }

    fn read(&self) -> Option<Kept> {
        serde_json::from_str(&fs::read_to_string(&self.file).ok()?).ok()
    }

    /// What kubelet was told last.
    pub(crate) fn last(&self) -> Option<NodeInfo> {
        let Kept { node_id, max_volumes, segments, .. } = self.read()?;
        Some(NodeInfo { node_id, max_volumes, segments })
    }

    /// Whether it would be told the same now. What is not known does not count against it.
    pub(crate) fn is_current(&self) -> bool {
        self.read().is_none_or(|kept| kept.current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let registered = Registered::beside(&dir.path().join("csi.sock"));
        assert!(registered.is_current() && registered.last().is_none());
        let segments = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let info = NodeInfo { node_id: "n".into(), max_volumes: 3, segments };
        registered.keep(&info, true);
        assert!(registered.is_current() && registered.last() == Some(info.clone()));
        registered.keep(&info, false);
        assert!(!registered.is_current());
    }
}
