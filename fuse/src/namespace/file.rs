//! A file node: a name with one version, or one that is being written.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use super::dir::Dir;
use crate::model::version::{ObjectInfo, Version};
use crate::sync::unpoisoned;

/// What a nodeid of a file stands for.
pub struct FileNode {
    /// Its nodeid.
    pub ino: u64,
    state: Mutex<State>,
}

struct State {
    dir: Arc<Dir>,
    name: Box<str>,
    version: Option<Version>,
    size: u64,
    mtime: SystemTime,
    version_id: Option<Box<str>>,
    retry_expected: bool,
    nameless: bool,
}

impl FileNode {
    /// A node for the object that `info` describes.
    pub fn new(ino: u64, dir: Arc<Dir>, name: &str, info: &ObjectInfo) -> Arc<Self> {
        let state = State {
            dir,
            name: name.into(),
            version: info.version(),
            size: info.size,
            mtime: info.mtime,
            version_id: info.version_id.clone(),
            retry_expected: false,
            nameless: false,
        };
        Arc::new(Self { ino, state: Mutex::new(state) })
    }

    /// Directory and name.
    pub fn place(&self) -> (Arc<Dir>, Box<str>) {
        let state = self.state();
        (state.dir.clone(), state.name.clone())
    }

    /// The object's key.
    pub fn key(&self) -> String {
        let (dir, name) = self.place();
        dir.prefix().key_of(&name)
    }

    /// The version it shows; `None` while none is stored yet.
    pub fn version(&self) -> Option<Version> {
        self.state().version.clone()
    }

    /// The version id, where known.
    pub fn version_id(&self) -> Option<Box<str>> {
        self.state().version_id.clone()
    }

    /// Size in bytes and time of last modification.
    pub fn size_and_mtime(&self) -> (u64, SystemTime) {
        let state = self.state();
        (state.size, state.mtime)
    }

    /// Notes what a writer has made of it so far.
    pub fn set_size(&self, size: u64) {
        let mut state = self.state();
        state.size = size;
        state.mtime = SystemTime::now();
    }

    /// Notes the version that a writer has stored.
    pub fn set_stored(&self, info: &ObjectInfo) {
        let mut state = self.state();
        state.version = info.version();
        state.mtime = info.mtime;
        state.version_id.clone_from(&info.version_id);
        state.retry_expected = false;
    }

    /// Takes over newer metadata of the same version.
    pub(super) fn refresh(&self, info: &ObjectInfo) {
        let mut state = self.state();
        state.mtime = info.mtime;
        if info.version_id.is_some() {
            state.version_id.clone_from(&info.version_id);
        }
    }

    /// Notes that it has another name now.
    pub fn moved(&self, dir: &Arc<Dir>, name: &str) {
        let mut state = self.state();
        state.dir = dir.clone();
        state.name = name.into();
    }

    /// Notes that its name leads to another node from now on, also where the version is the same.
    pub fn give_name_up(&self) {
        self.state().nameless = true;
    }

    /// Whether it gave its name up, and does not get it back by being opened.
    pub(super) fn is_nameless(&self) -> bool {
        self.state().nameless
    }

    /// Notes that an open of it is answered ESTALE, of a thread that cannot be told from others;
    /// see `engine/retries.rs`.
    pub fn expect_retry(&self) {
        self.state().retry_expected = true;
    }

    /// Whether that was so since a lookup named it last.
    pub fn is_retry_expected(&self) -> bool {
        self.state().retry_expected
    }

    /// Notes that a lookup named this node.
    pub(super) fn named(&self) {
        self.state().retry_expected = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }
}
