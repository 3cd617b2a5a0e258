//! Records of uploads that no file under change has: those of copies and of probes. They lie where
//! the records of files lie, beside no bytes, and the next mount works them off in the same way.

use std::fs::{self, File};
use std::io;
use std::sync::Arc;

use async_trait::async_trait;

use super::live::{LiveUpload, LiveUploads};
use super::record::{Begins, Line, Owner, path_of};
use crate::blocking::MayBlock;
use crate::cache::{NodeCache, StagingFile};
use crate::logged::LoggedName;
use crate::origin::uploads::{LoggedUpload, UploadLog};
use crate::write::lines;

/// Keeps them in the staging folders of a cache.
pub struct LoneUploads {
    cache: Arc<NodeCache>,
    owner: Owner,
    live: Arc<LiveUploads>,
}

struct LoneUpload {
    /// Without, where none could be made.
    record: Option<(StagingFile, File)>,
    live: LiveUpload,
}

impl LoneUploads {
    /// Those of the mounts of one owner.
    pub fn new(cache: Arc<NodeCache>, owner: Owner, live: Arc<LiveUploads>) -> Self {
        Self { cache, owner, live }
    }

    fn record(&self, may: &MayBlock, staging: &StagingFile, key: &str) -> io::Result<File> {
        let file = lines::create(may, &path_of(staging.path()))?;
        let line = Line {
            key: Some(key.to_owned()),
            begins: Some(Begins { key: key.to_owned(), time_ms: lines::now_ms() }),
            clean: Some(true),
            ..Line::head(&self.owner)
        };
        lines::append(may, &file, [line])?;
        file.sync_all()?;
        Ok(file)
    }
}

#[async_trait]
impl UploadLog for LoneUploads {
    async fn begin(&self, key: &str) -> Box<dyn LoggedUpload> {
        let disk = self.cache.staging_disk(&[]);
        let note = |may: &_| {
            // Its id is that of an empty file, which nobody else can have.
            let staging = disk.create(may, None)?;
            let record = self.record(may, &staging, key);
            if record.is_err() {
                remove(may, &staging);
            }
            Ok((staging, record?))
        };
        let noted: io::Result<_> = disk.calls().in_place(note).await;
        if let Err(error) = &noted {
            tracing::warn!(key = %LoggedName(key), %error, "no record of an upload: a crash would leave it behind");
        }
        Box::new(LoneUpload { record: noted.ok(), live: self.live.ask(key) })
    }
}

#[async_trait]
impl LoggedUpload for LoneUpload {
    async fn begun(&self, id: &str) {
        self.live.begun(id);
        let Some((staging, record)) = &self.record else { return };
        let line = Line { upload: Some(id.to_owned()), ..Line::default() };
        let noted = |may: &_| lines::append(may, record, [line]);
        if let Err(error) = staging.calls().in_place(noted).await {
            let path = staging.path().display();
            tracing::warn!(%path, %error, "a record lacks the id of its upload");
        }
    }

    async fn ended(self: Box<Self>) {
        if let Some((staging, _)) = &self.record {
            staging.calls().in_place(|may| remove(may, staging)).await;
        }
    }
}

fn remove(may: &MayBlock, staging: &StagingFile) {
    let _ = fs::remove_file(path_of(staging.path()));
    staging.remove(may);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocking::MAY;
    use crate::cache::CacheSettings;
    use crate::metrics::Metrics;
    use crate::write::draft::leftovers;

    #[tokio::test]
    async fn an_upload_of_no_file_is_known_to_a_later_process_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let settings = CacheSettings::one(dir.path(), u64::MAX, 0);
        let cache = NodeCache::open(MAY, &settings, Arc::new(Metrics::new().unwrap())).unwrap();
        let owner = Owner { bucket: "s3\u{1f}b".into(), identity: "me".into() };
        let log = LoneUploads::new(cache.clone(), owner.clone(), Arc::default());
        let staged = || {
            let files = fs::read_dir(dir.path().join("staging")).unwrap();
            leftovers(MAY, files.map(|file| file.unwrap().path()).collect())
        };
        let logged = log.begin("k").await;
        let found = staged().remove(0);
        assert_eq!((found.owner, found.clean), (Some(owner), true));
        assert_eq!(found.upload.as_ref().map(|upload| &*upload.key), Some("k"));
        assert_eq!(found.upload.unwrap().id, None);
        logged.begun("id").await;
        assert_eq!(staged()[0].upload.as_ref().unwrap().id.as_deref(), Some("id"));
        drop(log.begin("dropped").await);
        logged.ended().await;
        let left: Vec<_> = staged().into_iter().map(|left| left.key).collect();
        assert_eq!(left, ["dropped"]);
        cache.close(MAY);
    }
}
