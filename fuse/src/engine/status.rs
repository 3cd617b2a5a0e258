//! What a person sees of a mount.

use serde::{Deserialize, Serialize};

use super::session::Session;

/// Figures of a mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Prefix of the bucket that is shown.
    pub prefix: String,
    /// Open files and directories.
    pub open_handles: u64,
    /// Nodes that the kernel knows.
    pub inodes: u64,
    /// Files that are being written.
    pub writing: Vec<String>,
    /// Whether the kernel reads complete files by itself.
    pub passthrough: bool,
    /// Whether the origin answers.
    pub origin_up: bool,
}

impl Session {
    /// Figures for people.
    pub fn status(&self) -> SessionStatus {
        SessionStatus {
            prefix: self.settings.names.prefix.to_string(),
            open_handles: self.handles.len() as u64,
            inodes: self.names.inodes.len() as u64,
            writing: self.writer.open_drafts().iter().map(|draft| draft.key()).collect(),
            passthrough: self.backings.is_connected(),
            origin_up: !self.names.health.is_down(),
        }
    }
}
