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
    /// How long a change by somebody else may go unseen at the most, in milliseconds.
    #[serde(default)]
    pub staleness_ms: u64,
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
            staleness_ms: u64::try_from(self.names.staleness().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Makes the metric follow how long a change may go unseen.
    pub(super) fn show_staleness(&self) {
        let bound = self.names.staleness().as_secs_f64();
        self.engine.metrics.staleness_bound.with_label_values(&[&self.shown_source()]).set(bound);
    }

    /// What is mounted, as metrics call it.
    fn shown_source(&self) -> String {
        format!("s3://{}/{}", self.bucket().name(), self.settings.names.prefix)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Another mount of the same sets it again within seconds.
        let _ = self.engine.metrics.staleness_bound.remove_label_values(&[&self.shown_source()]);
    }
}
