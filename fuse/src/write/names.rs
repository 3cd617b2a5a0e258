//! Making and removing names.

use std::sync::Arc;

use bytes::Bytes;

use super::conditions::new_nonce;
use super::{WriteError, Writer};
use crate::model::key::{self, KEY_MAX_BYTES};
use crate::namespace::Found;
use crate::namespace::dir::Dir;
use crate::namespace::pages;
use crate::origin::{Condition, OriginError, WriteIntent};

impl Writer {
    /// Checks that a file or directory of this name can be made.
    ///
    /// # Errors
    /// [`WriteError::BadName`].
    pub fn check_new(&self, dir: &Dir, name: &str) -> Result<(), WriteError> {
        key::check_name(name).map_err(WriteError::BadName)?;
        if dir.prefix().as_str().len() + name.len() + 1 > KEY_MAX_BYTES {
            return Err(WriteError::BadName(key::BadName::KeyTooLong));
        }
        Ok(())
    }

    /// Makes a directory: a marker object, as other S3 tools make them.
    ///
    /// # Errors
    /// [`WriteError::Exists`], or what the origin reports.
    pub async fn mkdir(&self, dir: &Arc<Dir>, name: &str) -> Result<(), WriteError> {
        self.check_new(dir, name)?;
        match self.names.lookup(dir, name).await {
            Ok(_) => return Err(WriteError::Exists),
            Err(crate::namespace::LookupError::Absent) => {}
            Err(error) => return Err(error.into()),
        }
        let marker = dir.prefix().child(name);
        match self.put_marker(marker.as_str(), Condition::Absent).await {
            Err(OriginError::Conflict) => return Err(WriteError::Exists),
            other => other?,
        }
        dir.insert_dir(name);
        self.names.drop_kept(dir);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`WriteError::NotEmpty`], or what the origin reports.
    pub async fn rmdir(&self, dir: &Arc<Dir>, name: &str) -> Result<(), WriteError> {
        let Found::Dir(child) = self.names.lookup(dir, name).await? else {
            return Err(WriteError::NotDir);
        };
        self.check_empty(&child).await?;
        self.keep_parent(dir, name).await?;
        self.names.origin.delete(child.prefix().as_str()).await?;
        dir.remove(name);
        self.names.drop_kept(dir);
        self.names.drop_kept(&child);
        Ok(())
    }

    /// Whether nothing but its marker is in a directory: nothing at the origin, and nothing
    /// that is being written here.
    pub(super) async fn check_empty(&self, dir: &Arc<Dir>) -> Result<(), WriteError> {
        if dir.snapshot().iter().any(|entry| dir.is_writing(&entry.name)) {
            return Err(WriteError::NotEmpty);
        }
        match pages::has_below(&*self.names.origin, &dir.prefix(), true).await? {
            true => Err(WriteError::NotEmpty),
            false => Ok(()),
        }
    }

    /// Removes a file.
    ///
    /// # Errors
    /// What the origin reports.
    pub async fn unlink(&self, dir: &Arc<Dir>, name: &str) -> Result<(), WriteError> {
        self.keep_parent(dir, name).await?;
        self.names.origin.delete(&dir.prefix().key_of(name)).await?;
        dir.remove(name);
        self.names.drop_kept(dir);
        Ok(())
    }

    /// Writes a marker for a directory that is about to lose its last name, so that it stays.
    pub(super) async fn keep_parent(&self, dir: &Arc<Dir>, name: &str) -> Result<(), WriteError> {
        if dir.place().is_none() || dir.has_marker() || !dir.is_empty_but_for(name) {
            return Ok(());
        }
        Ok(self.put_marker(dir.prefix().as_str(), Condition::Always).await?)
    }

    async fn put_marker(&self, key: &str, condition: Condition) -> Result<(), OriginError> {
        let condition = self.enforce(key, &condition).await?;
        let write = WriteIntent { condition, writer: new_nonce() };
        match self.names.origin.put(key, Bytes::new(), &write).await {
            Ok(_) => Ok(()),
            // A first try whose answer was lost.
            Err(OriginError::Conflict)
                if self.names.origin.head(key).await?.writer.as_deref() == Some(&write.writer) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
