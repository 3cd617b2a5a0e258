//! What every call goes through: one at a time for each thing, timed and logged.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::{Code, Response, Status};

use crate::Error;

/// Learns of each call that ended: its method, its code and how long it took.
type Observer = Arc<dyn Fn(&'static str, Code, Duration) + Send + Sync>;

/// Calls under way.
#[derive(Clone)]
pub struct Calls {
    busy: Arc<Mutex<HashSet<String>>>,
    observer: Observer,
}

struct Slot<'a> {
    calls: &'a Calls,
    key: String,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.calls.busy().remove(&self.key);
    }
}

impl Calls {
    /// `observer` learns of each call.
    pub fn new(observer: impl Fn(&'static str, Code, Duration) + Send + Sync + 'static) -> Self {
        Self { busy: Arc::default(), observer: Arc::new(observer) }
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, key: String) -> Result<Slot<'_>, Error> {
        if !self.busy().insert(key.clone()) {
            return Err(Error::Busy(key));
        }
        Ok(Slot { calls: self, key })
    }

    /// Runs a call that needs no exclusion.
    pub(crate) async fn run<T>(
        &self,
        method: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<Response<T>, Status> {
        let start = Instant::now();
        let result = work.await;
        let code = result.as_ref().map_or_else(Error::code, |_| Code::Ok);
        let took = start.elapsed();
        (self.observer)(method, code, took);
        match result {
            Ok(answer) => {
                tracing::debug!(method, ?took, "call");
                Ok(Response::new(answer))
            }
            Err(error) => {
                tracing::warn!(method, ?took, ?code, %error, "call failed");
                Err(error.into())
            }
        }
    }

    /// Runs a call that must be alone for `key`; a second one meanwhile is ABORTED.
    pub(crate) async fn alone<T>(
        &self,
        method: &'static str,
        key: Result<String, Error>,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<Response<T>, Status> {
        self.run(method, async {
            let _slot = self.take(key?)?;
            work.await
        })
        .await
    }
}
