//! Uploads that belong to no file under change: those of copies and of probes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::OriginError;

/// Remembers uploads beyond the end of the process, so that one that ends before them leaves none
/// behind: the next one aborts what it finds.
#[async_trait]
pub trait UploadLog: Send + Sync + 'static {
    /// An upload of `key` is about to be begun. What cannot be remembered is begun all the same.
    async fn begin(&self, key: &str) -> Box<dyn LoggedUpload>;
}

/// An upload that is remembered until it is gone; where it is dropped before, it stays so.
#[async_trait]
pub trait LoggedUpload: Send + Sync {
    /// It was begun, and has this id.
    async fn begun(&self, id: &str);

    /// It is gone.
    async fn ended(self: Box<Self>);
}

/// Begins an upload of `key` by `create`, and remembers it.
pub(super) async fn begin(
    log: &dyn UploadLog,
    key: &str,
    create: impl Future<Output = Result<String, OriginError>>,
) -> Result<(String, Box<dyn LoggedUpload>), OriginError> {
    let logged = log.begin(key).await;
    match create.await {
        Ok(id) => {
            logged.begun(&id).await;
            Ok((id, logged))
        }
        Err(error) => {
            // It may have been begun, and the answer be lost.
            if !error.is_transient() {
                logged.ended().await;
            }
            Err(error)
        }
    }
}

type Open = Arc<Mutex<BTreeMap<u64, (String, Option<String>)>>>;

/// Remembers uploads for as long as the process lives, for tests.
#[derive(Clone, Default)]
pub struct MemoryUploads(Open);

struct MemoryUpload {
    open: Open,
    number: u64,
}

fn lock(open: &Open) -> MutexGuard<'_, BTreeMap<u64, (String, Option<String>)>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryUploads {
    /// Key and, if it is known, id of each that is not gone.
    pub fn open(&self) -> Vec<(String, Option<String>)> {
        lock(&self.0).values().cloned().collect()
    }
}

#[async_trait]
impl UploadLog for MemoryUploads {
    async fn begin(&self, key: &str) -> Box<dyn LoggedUpload> {
        let mut open = lock(&self.0);
        let number = open.last_key_value().map_or(0, |(last, _)| last + 1);
        open.insert(number, (key.to_owned(), None));
        Box::new(MemoryUpload { open: self.0.clone(), number })
    }
}

#[async_trait]
impl LoggedUpload for MemoryUpload {
    async fn begun(&self, id: &str) {
        if let Some((_, known)) = lock(&self.open).get_mut(&self.number) {
            *known = Some(id.to_owned());
        }
    }

    async fn ended(self: Box<Self>) {
        lock(&self.open).remove(&self.number);
    }
}
