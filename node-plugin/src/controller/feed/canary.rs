//! An object that is written again and again, so that its event shows that events come.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weir_fuse::origin::{Condition, Origin, UploadBody, WriteIntent};

use super::relay::Relay;
use crate::config::feed_from::CanaryPlace;

/// One of them.
pub(super) struct Canary {
    origin: Arc<dyn Origin>,
    place: CanaryPlace,
    every: Duration,
}

impl Canary {
    /// Writes it at its place `every` so often.
    pub(super) fn new(origin: Arc<dyn Origin>, place: CanaryPlace, every: Duration) -> Self {
        Self { origin, place, every }
    }

    /// Writes it for ever.
    pub(super) async fn run(self, relay: Arc<Relay>) {
        loop {
            let next = Instant::now() + self.every;
            let written = self.write(&relay).await;
            tokio::time::sleep_until(next).await;
            if relay.give_up(&self.place) && written {
                let CanaryPlace { bucket, key } = &self.place;
                let within_s = self.every.as_secs();
                let text = "the event of an object that was written for it did not come: look whether \
                            the bucket's events are sent, and its queue or webhook is named there";
                tracing::warn!(bucket, key, within_s, "{text}");
                relay.prove(&self.place, None);
            }
        }
    }

    /// Whether it is written, and its event is to come.
    async fn write(&self, relay: &Relay) -> bool {
        let CanaryPlace { bucket, key } = &self.place;
        // Each has bytes, and so a tag, of its own.
        let nonce = format!("{:032x}", rand::random::<u128>());
        let intent = WriteIntent { condition: Condition::Always, writer: nonce.clone() };
        relay.begin_waiting(&self.place);
        let stored = self.origin.put(key, UploadBody::of(nonce), &intent).await;
        let failed = match stored.map(|stored| stored.etag) {
            Ok(Some(tag)) => {
                relay.wait_for(&self.place, tag.as_str());
                return true;
            }
            Ok(None) => "the store tells no tag of it".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(bucket, key, error = failed, "the object of --feed-canary is not written");
        relay.prove(&self.place, None);
        false
    }
}
