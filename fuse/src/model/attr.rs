//! Ownership and modes that a mount gives to everything it shows.

use serde::{Deserialize, Serialize};

/// Owner and permission bits of files and directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ownership {
    /// Owner of every file and directory.
    pub uid: u32,
    /// Group of every file and directory.
    pub gid: u32,
    /// Permission bits of files.
    pub file_mode: u16,
    /// Permission bits of directories.
    pub dir_mode: u16,
}

/// What a mount has where nothing else is said.
impl Default for Ownership {
    fn default() -> Self {
        Self { uid: 0, gid: 0, file_mode: 0o644, dir_mode: 0o755 }
    }
}
