//! What kubelet was told of this node, kept beside the plugin's socket for the standby: a kubelet
//! that restarts while no node plugin is there must hear the same, and the registrar's probe asks
//! the standby whether it is to register again.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use weir_csi::backend::NodeInfo;
use weir_fuse::chosen_file;

/// More than a node has of labels, in bytes.
const KEPT_MAX: u64 = 64 << 10;

/// The file, and who reads and writes it.
#[derive(Clone, Debug)]
pub(crate) struct Registered {
    file: PathBuf,
    /// Who else reads it.
    group: Option<u32>,
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
    pub(crate) fn beside(socket: &Path, group: Option<u32>) -> Self {
        Self { file: socket.with_file_name("registered.json"), group }
    }

    /// Keeps it.
    pub(crate) fn keep(&self, info: &NodeInfo, current: bool) {
        let kept = Kept {
            node_id: info.node_id.clone(),
            max_volumes: info.max_volumes,
            segments: info.segments.clone(),
            current,
        };
        let text = serde_json::to_string(&kept).unwrap_or_default();
        if let Err(error) = self.write(&text) {
            tracing::warn!(%error, "what kubelet was told is not kept");
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let new = self.file.with_extension("new");
        let _ = fs::remove_file(&new);
        // Others write in this folder, too: what they have put there is not written to.
        let mut file = fs::File::options().write(true).create_new(true).open(&new)?;
        file.write_all(text.as_bytes())?;
        if let Some(group) = self.group {
            fchown(&file, None, Some(group))?;
            file.set_permissions(Permissions::from_mode(0o640))?;
        }
        fs::rename(&new, &self.file)
    }

    /// Others write in this folder, too: what they have put there is neither followed, nor waited
    /// for, nor read without end.
    fn read(&self) -> Option<Kept> {
        let text = chosen_file::read(&self.file, OFlags::NOFOLLOW, KEPT_MAX).ok()?;
        serde_json::from_slice(&text).ok()
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
    use rustix::fs::{FileType, Mode};

    use super::*;

    #[test]
    fn what_was_told_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let registered = Registered::beside(&dir.path().join("csi.sock"), None);
        assert!(registered.is_current() && registered.last().is_none());
        let segments = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let info = NodeInfo { node_id: "n".into(), max_volumes: 3, segments };
        registered.keep(&info, true);
        assert!(registered.is_current() && registered.last() == Some(info.clone()));
        registered.keep(&info, false);
        assert!(!registered.is_current());
    }

    #[test]
    fn what_lies_where_it_is_written_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, "bytes").unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join("registered.new")).unwrap();
        let group = rustix::process::getegid().as_raw();
        let registered = Registered::beside(&dir.path().join("csi.sock"), Some(group));
        let info = NodeInfo { node_id: "n".into(), max_volumes: 3, segments: BTreeMap::new() };
        registered.keep(&info, true);
        assert_eq!(registered.last(), Some(info));
        assert_eq!(fs::read(precious).unwrap(), b"bytes");
        let file = fs::metadata(dir.path().join("registered.json")).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn what_others_put_there_is_neither_followed_nor_waited_for_nor_read_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let registered = Registered::beside(&dir.path().join("csi.sock"), None);
        let (file, elsewhere) = (dir.path().join("registered.json"), dir.path().join("elsewhere"));
        let info = NodeInfo { node_id: "n".into(), max_volumes: 3, segments: BTreeMap::new() };
        registered.keep(&info, false);
        let text = fs::read_to_string(&file).unwrap();
        let put: [&dyn Fn(); 4] = [
            &|| {
                fs::write(&elsewhere, &text).unwrap();
                std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
            },
            &|| {
                let (fifo, mode) = (FileType::Fifo, Mode::from_raw_mode(0o666));
                rustix::fs::mknodat(rustix::fs::CWD, &file, fifo, mode, 0).unwrap();
            },
            &|| fs::write(&file, format!("{text}{}", " ".repeat(1 << 20))).unwrap(),
            &|| fs::create_dir(&file).unwrap(),
        ];
        for (number, put) in put.into_iter().enumerate() {
            fs::remove_file(&file).unwrap();
            put();
            assert!(registered.last().is_none() && registered.is_current(), "{number}");
        }
    }
}
