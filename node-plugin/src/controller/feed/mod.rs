//! What a store says of changes, published for all clusters: from a queue ([`sqs`]) or by what the store
//! posts ([`webhook`]), on to NATS ([`relay`]), once for the whole fleet. That all of it comes, and how
//! late, is shown by objects that are written for that ([`canary`]).

mod canary;
mod relay;
mod sqs;
#[cfg(test)]
mod tests;
mod tls;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use weir_fuse::feed::announcement::Role;
use weir_fuse::feed::nats::{self, FeedSettings};
use weir_fuse::feed::publisher::Publisher;
use weir_fuse::metrics::Metrics;

use crate::assembly;
use crate::cli::S3Args;
use crate::config::feed_from::{FeedFrom, Source};
use crate::config::s3::s3_settings;
use crate::exit::{Failure, Kind};
use canary::Canary;
use relay::Relay;

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(5);

/// What runs until the process ends.
pub(super) struct Relaying {
    publisher: Arc<Publisher>,
    relay: Arc<Relay>,
}

impl Relaying {
    /// Begins: nothing has to be reachable yet.
    ///
    /// # Errors
    /// What is wrong with the settings, or that the webhook's port cannot be had.
    pub(super) async fn start(
        from: FeedFrom,
        to: FeedSettings,
        s3: &S3Args,
        counted: Arc<Metrics>,
    ) -> Result<Self, Failure> {
        let usage = |text: String| Failure::new(Kind::Usage, text);
        let client = nats::connect(&to, |event| tracing::info!(%event, "feed"))
            .await
            .map_err(|error| usage(format!("--feed: {error}")))?;
        let every = to.timeout / 3;
        let publisher = Publisher::start(client, &to.subject, &from.name, Role::Relay, every);
        let relay = Arc::new(Relay::new(publisher.clone(), &from, counted.clone()));
        relay.tell();
        for place in from.canaries {
            let settings = s3_settings(place.bucket.clone(), s3)?;
            let origin = assembly::origin(settings, &counted, None).await;
            let (origin, _) = origin.map_err(|error| {
                Failure::new(
                    Kind::Endpoint,
                    format!("--feed-canary s3://{}: {error}", place.bucket),
                )
            })?;
            let canary = Canary::new(origin, place, from.canary_interval);
            tokio::spawn(canary.run(relay.clone()));
        }
        match from.source {
            Source::Queue(place) => sqs::start(place, s3, relay.clone()).await?,
            Source::Webhook(settings) => drop(webhook::start(&settings, relay.clone()).await?),
        }
        tracing::info!(relay = from.name, subject = to.subject, "changes are relayed");
        Ok(Self { publisher, relay })
    }

    /// Says that nothing more comes.
    pub(super) async fn end(&self) {
        self.relay.end();
        let _ = tokio::time::timeout(GOODBYE, self.publisher.stop()).await;
    }
}
