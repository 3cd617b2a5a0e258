//! Shim, replaced at the merge.
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
/// A staging file.
pub struct StagingFile {
    file: Arc<File>,
    path: PathBuf,
}
impl StagingFile {
    pub(super) fn create(path: PathBuf) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self { file: Arc::new(file), path })
    }
    /// Path.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// File.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }
    /// Room.
    pub fn reserve(&self, _end: u64) -> io::Result<()> {
        Ok(())
    }
    /// Room.
    pub fn shrink(&self, _end: u64) {}
    /// Remove.
    pub fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
/// Row.
pub struct LostRow {
    pub(super) text: String,
    /// Key.
    pub key: String,
}
impl LostRow {
    /// New.
    pub fn new(bucket: &str, key: &str, cause: impl Into<String>, size: u64) -> Self {
        Self { text: format!("{bucket} {key} {} {size}", cause.into()), key: key.into() }
    }
}
