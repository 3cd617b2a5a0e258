//! The regions of a node.

use std::sync::Arc;

use super::forgetting::{EvictionLog, Log};
use super::server::Server;
use super::{Region, RegionSettings};
use crate::metrics::Metrics;
use crate::origin::OriginError;

/// All that were named, in that order.
pub struct Regions {
    servers: Vec<Server>,
    metrics: Arc<Metrics>,
    log: Log,
}

/// How a region stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionState {
    /// URL of its endpoint.
    pub url: String,
    /// Whether it is left alone, for some bucket at least, since it fails.
    pub is_shut: bool,
}

impl Regions {
    /// Sends nothing.
    pub fn new(settings: Vec<RegionSettings>, metrics: Arc<Metrics>) -> Self {
        let servers = settings.into_iter().enumerate();
        let servers = servers.map(|(n, settings)| Server::new(settings, n == 0)).collect();
        Self { servers, metrics, log: Log::default() }
    }

    /// How they stand.
    pub fn states(&self) -> Vec<RegionState> {
        let state =
            |server: &Server| RegionState { url: server.url().into(), is_shut: server.is_shut() };
        self.servers.iter().map(state).collect()
    }

    /// From now on what regions are to forget is in this log, too. What earlier processes left there is
    /// sent.
    pub async fn remember(&self, log: Arc<dyn EvictionLog>) {
        for (name, key) in log.found().await {
            let owner = self.servers.iter().find_map(|s| Some((s, s.bucket_of(&name)?)));
            let Some((server, bucket)) = owner else {
                // Of one that is none of them any more.
                log.forget(&name, vec![key]);
                continue;
            };
            if *name == *bucket {
                // What stands there without a server is for all.
                for other in self.servers.iter().skip(1) {
                    log.note(&other.log_name(bucket), &key).await;
                    other.note_found(bucket, key.clone());
                }
            }
            server.note_found(bucket, key);
        }
        // Nobody else sets one.
        let _ = self.log.set(log);
        for server in &self.servers {
            for bucket in server.found_buckets() {
                if let Err(error) = server.of(&bucket, &self.metrics, &self.log).await {
                    tracing::warn!(%bucket, %error, "the region is not told yet what it is to forget");
                }
            }
        }
    }

    /// What each of them has of a bucket.
    ///
    /// # Errors
    /// [`OriginError::Invalid`] where a file that is named cannot be used, or one is of another kind.
    pub async fn of(&self, bucket: &str) -> Result<Vec<Arc<Region>>, OriginError> {
        let mut regions = Vec::new();
        for server in &self.servers {
            regions.push(server.of(bucket, &self.metrics, &self.log).await?);
        }
        Ok(regions)
    }

    /// Buckets that the first is used for.
    #[cfg(test)]
    pub(super) fn buckets(&self) -> usize {
        self.servers[0].buckets()
    }
}
