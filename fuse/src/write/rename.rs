//! Renaming: a copy on the server, then a removal.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};

use super::{WriteError, Writer};
use crate::model::version::{ETag, ObjectInfo, Version, VersionKey};
use crate::namespace::dir::Dir;
use crate::namespace::file::FileNode;
use crate::namespace::{Found, LookupError};
use crate::origin::{ListRequest, OriginError, Stored};

/// Most objects below a directory that is renamed.
pub const RENAME_MAX: usize = 10_000;
/// Copies at once.
const COPIES: usize = 16;

/// A place in the tree.
pub struct Place<'a> {
    /// The directory.
    pub dir: &'a Arc<Dir>,
    /// The name in it.
    pub name: &'a str,
}

impl Writer {
    /// Renames a file or a directory. Files being written must be stored before.
    ///
    /// # Errors
    /// [`WriteError`]; after an error both names may show what was copied so far.
    pub async fn rename(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        no_replace: bool,
    ) -> Result<(), WriteError> {
        self.check_new(to.dir, to.name)?;
        let source = self.names.lookup(from.dir, from.name).await?;
        let target = match self.names.lookup(to.dir, to.name).await {
            Ok(found) => Some(found),
            Err(LookupError::Absent) => None,
            Err(error) => return Err(error.into()),
        };
        if target.is_some() && no_replace {
            return Err(WriteError::Exists);
        }
        match (source, target) {
            (Found::File(_), Some(Found::Dir(_))) => Err(WriteError::IsDir),
            (Found::Dir(_), Some(Found::File(_))) => Err(WriteError::NotDir),
            (Found::File(node), Some(Found::File(other))) if Arc::ptr_eq(&node, &other) => Ok(()),
            (Found::File(node), _) => self.rename_file(&node, from, to).await,
            (Found::Dir(source), target) => {
                if let Some(Found::Dir(target)) = &target {
                    self.check_empty(target).await?;
                }
                self.rename_dir(&source, from, to).await
            }
        }
    }

    async fn rename_file(
        &self,
        node: &Arc<FileNode>,
        from: Place<'_>,
        to: Place<'_>,
    ) -> Result<(), WriteError> {
        let Some(old) = self.names.version_key(node) else { return Err(WriteError::Busy) };
        let new_key = to.dir.prefix().key_of(to.name);
        let stored = self.copy(&old, &new_key).await?;
        self.keep_parent(from.dir, from.name).await?;
        self.names.origin.delete(&old.key).await?;
        let info = ObjectInfo {
            size: old.version.size,
            etag: stored.etag,
            mtime: stored.mtime,
            version_id: stored.version_id,
            writer: None,
        };
        // The kernel keeps the inode under the new name: the bytes are the same, so may we.
        node.set_stored(&info);
        node.moved(to.dir, to.name);
        from.dir.remove(from.name);
        to.dir.insert_file(to.name, info, Some(node));
        self.names.drop_kept(from.dir);
        self.names.drop_kept(to.dir);
        Ok(())
    }

    /// Copies an object, and what is cached of it; the tag of the copy is known afterwards.
    async fn copy(&self, old: &VersionKey, new_key: &str) -> Result<Stored, WriteError> {
        let origin = &self.names.origin;
        let Version { etag, size } = &old.version;
        let mut stored = origin.copy(&old.key, etag, *size, new_key).await?;
        if stored.etag.is_none() {
            let info = origin.head(new_key).await?;
            stored = Stored { etag: info.etag, version_id: info.version_id, mtime: info.mtime };
        }
        if let Some(etag) = &stored.etag {
            let version = Version { etag: etag.clone(), size: *size };
            let new = VersionKey { bucket: old.bucket.clone(), key: new_key.into(), version };
            tokio::task::block_in_place(|| {
                self.names.cache.moved(old, &new);
            });
        }
        Ok(stored)
    }

    async fn rename_dir(
        &self,
        source: &Arc<Dir>,
        from: Place<'_>,
        to: Place<'_>,
    ) -> Result<(), WriteError> {
        let old_prefix = source.prefix();
        let new_prefix = to.dir.prefix().child(to.name);
        if new_prefix.as_str().starts_with(old_prefix.as_str()) {
            return Err(OriginError::Invalid("a directory cannot move into itself".into()).into());
        }
        let objects = self.objects_below(old_prefix.as_str()).await?;
        let renamed = |key: &str| format!("{new_prefix}{}", &key[old_prefix.as_str().len()..]);
        let mut copies: Vec<BoxFuture<'_, Result<(), WriteError>>> = Vec::new();
        let mut undo: Vec<BoxFuture<'_, Result<(), OriginError>>> = Vec::new();
        let mut removals: Vec<BoxFuture<'_, Result<(), OriginError>>> = Vec::new();
        for (key, etag, size) in &objects {
            let version = Version { etag: etag.clone(), size: *size };
            let bucket = self.names.bucket().clone();
            let old = VersionKey { bucket, key: key.as_str().into(), version };
            let new_key = renamed(key);
            let target = new_key.clone();
            copies.push(async move { self.copy(&old, &new_key).await.map(|_| ()) }.boxed());
            undo.push(async move { self.names.origin.delete(&target).await }.boxed());
            removals.push(self.names.origin.delete(key));
        }
        if let Err(error) = all(copies).await {
            let _ = all(undo).await;
            return Err(error);
        }
        self.keep_parent(from.dir, from.name).await?;
        let removed = all(removals).await;
        from.dir.move_dir(from.name, to.dir, to.name);
        self.names.drop_kept(from.dir);
        self.names.drop_kept(to.dir);
        self.names.drop_kept(source);
        Ok(removed?)
    }

    async fn objects_below(&self, prefix: &str) -> Result<Vec<(String, ETag, u64)>, WriteError> {
        let mut out = Vec::new();
        let mut request = ListRequest {
            prefix: prefix.to_owned(),
            delimited: false,
            token: None,
            max_keys: 1000,
        };
        loop {
            let page = self.names.origin.list(&request).await?;
            for (key, info) in page.objects {
                let etag = match info.etag {
                    Some(etag) => etag,
                    None => {
                        let head = self.names.origin.head(&key).await?;
                        head.etag.ok_or(OriginError::NotS3("an object without ETag".into()))?
                    }
                };
                out.push((key, etag, info.size));
            }
            if out.len() > RENAME_MAX {
                return Err(WriteError::TooMany(RENAME_MAX));
            }
            request.token = page.next;
            if request.token.is_none() {
                return Ok(out);
            }
        }
    }
}

/// Runs all of the work, [`COPIES`] at a time; returns the first failure, at the end.
async fn all<E>(work: Vec<BoxFuture<'_, Result<(), E>>>) -> Result<(), E> {
    let mut running = stream::iter(work).buffer_unordered(COPIES);
    let mut outcome = Ok(());
    while let Some(done) = running.next().await {
        outcome = outcome.and(done);
    }
    outcome
}
