//! Events of S3's in a queue of SQS's.

use std::sync::Arc;
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::DisplayErrorContext;
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, Message};
use weir_fuse::blocking::aside;
use weir_fuse::origin::s3::http_client;

use super::relay::Relay;
use crate::cli::S3Args;
use crate::config::feed_from::QueuePlace;
use crate::exit::{Failure, Kind};

/// Messages that are asked for at once, and the wait for one, in seconds: SQS's most.
const MESSAGES_MAX: i32 = 10;
const WAIT_S: i32 = 20;
/// Who asks at the same time: what is published waits for its confirmation.
const RECEIVERS: usize = 4;
/// Longest wait for an answer: it is waited for on purpose.
const PATIENCE: Duration = Duration::from_secs(WAIT_S as u64 + 10);
/// First and longest wait after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// A queue.
#[derive(Clone)]
struct Queue {
    client: Client,
    place: QueuePlace,
}

/// Takes what comes in a queue, for ever, with the credentials that buckets are asked with.
///
/// # Errors
/// What is wrong with the settings.
pub(super) async fn start(
    place: QueuePlace,
    s3: &S3Args,
    relay: Arc<Relay>,
) -> Result<(), Failure> {
    let queue = Queue { client: client(&place, s3).await?, place };
    for _ in 0..RECEIVERS {
        tokio::spawn(queue.clone().run(relay.clone()));
    }
    Ok(())
}

async fn client(place: &QueuePlace, s3: &S3Args) -> Result<Client, Failure> {
    let bundle = s3.ca_bundle.clone();
    let http = aside(move |may| http_client(may, bundle.as_deref())).await;
    let http = http.map_err(|e| Failure::new(Kind::Usage, format!("--ca-bundle: {e}")))?;
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .retry_config(RetryConfig::standard())
        .timeout_config(TimeoutConfig::builder().read_timeout(PATIENCE).build());
    if let Some(profile) = &s3.profile {
        loader = loader.profile_name(profile);
    }
    let endpoint = match place {
        QueuePlace::Url(url) => endpoint_of(url),
        QueuePlace::Name(_) => None,
    };
    let region = endpoint.and_then(region_of).or(s3.region.as_deref());
    loader = match region {
        Some(region) => loader.region(Region::new(region.to_owned())),
        // At another server than Amazon's it is a formality.
        None if endpoint.is_some() => loader.region(
            RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
                .or_else(ProfileFileRegionProvider::new())
                .or_else(Region::new("us-east-1")),
        ),
        None => loader,
    };
    let shared = loader.load().await;
    if shared.region().is_none() {
        let text = "--feed-from sqs://: no region; name the queue by its URL, or set --region or AWS_REGION";
        return Err(Failure::new(Kind::Usage, text));
    }
    let mut config = aws_sdk_sqs::config::Builder::from(&shared);
    if let Some(endpoint) = endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}

/// Where the server of a queue's URL is.
fn endpoint_of(url: &str) -> Option<&str> {
    let host = url.find("://")? + 3;
    let path = url[host..].find('/').map_or(url.len(), |path| host + path);
    Some(&url[..path])
}

/// The region of an endpoint of Amazon's.
fn region_of(endpoint: &str) -> Option<&str> {
    let host = endpoint.split_once("://")?.1;
    host.strip_prefix("sqs.")?.split_once(".amazonaws.com").map(|(region, _)| region)
}

impl Queue {
    async fn run(self, relay: Arc<Relay>) {
        let mut pause = PAUSES.0;
        let mut url = None;
        loop {
            let failed = match self.round(&mut url, &relay).await {
                Ok(()) => {
                    pause = PAUSES.0;
                    continue;
                }
                Err(failed) => failed,
            };
            tracing::warn!(error = failed, "the feed's queue: trying again");
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn round(&self, url: &mut Option<String>, relay: &Relay) -> Result<(), String> {
        let url = match url {
            Some(url) => url,
            None => url.insert(self.url().await?),
        };
        let received = self
            .client
            .receive_message()
            .queue_url(&*url)
            .max_number_of_messages(MESSAGES_MAX)
            .wait_time_seconds(WAIT_S)
            .send()
            .await
            .map_err(|e| format!("ReceiveMessage: {}", DisplayErrorContext(&e)))?;
        let messages = received.messages.unwrap_or_default();
        let body = |message: &Message| message.body.clone().unwrap_or_default().into_bytes();
        let bodies: Vec<_> = messages.iter().map(body).collect();
        let bodies: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        let read = relay.take(&bodies).await.map_err(|error| error.to_string())?;
        let mut taken = Vec::with_capacity(messages.len());
        for (message, read) in messages.into_iter().zip(read) {
            match read {
                Ok(()) => taken.push(message),
                // It comes again, until the queue's own limit of tries.
                Err(error) => {
                    let id = message.message_id.as_deref();
                    tracing::warn!(id, %error, "a message of the feed's queue is not understood");
                }
            }
        }
        self.delete(url, &taken).await
    }

    async fn url(&self) -> Result<String, String> {
        let name = match &self.place {
            QueuePlace::Url(url) => return Ok(url.clone()),
            QueuePlace::Name(name) => name,
        };
        let found = self.client.get_queue_url().queue_name(name).send().await;
        let found = found.map_err(|e| format!("queue {name}: {}", DisplayErrorContext(&e)))?;
        found.queue_url.ok_or_else(|| format!("queue {name}: SQS tells no URL of it"))
    }

    /// Deletes what is published. What is not deleted comes again, which harms nobody.
    async fn delete(&self, url: &str, taken: &[Message]) -> Result<(), String> {
        let entry = |(number, message): (usize, &Message)| {
            let entry = DeleteMessageBatchRequestEntry::builder().id(number.to_string());
            entry.set_receipt_handle(message.receipt_handle.clone()).build().ok()
        };
        let entries: Vec<_> = taken.iter().enumerate().filter_map(entry).collect();
        if entries.is_empty() {
            return Ok(());
        }
        let request = self.client.delete_message_batch().queue_url(url);
        let deleted = request.set_entries(Some(entries)).send().await;
        let deleted =
            deleted.map_err(|e| format!("DeleteMessageBatch: {}", DisplayErrorContext(&e)))?;
        match deleted.failed.first() {
            None => Ok(()),
            Some(first) => {
                let text = first.message.as_deref().unwrap_or(&first.code);
                Err(format!("{} messages are not deleted: {text}", deleted.failed.len()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_and_region_of_a_queue_are_read_from_its_url() {
        for (url, endpoint, region) in [
            ("https://sqs.eu-1.amazonaws.com/1/q", "https://sqs.eu-1.amazonaws.com", Some("eu-1")),
            (
                "https://sqs.cn-1.amazonaws.com.cn/1/q",
                "https://sqs.cn-1.amazonaws.com.cn",
                Some("cn-1"),
            ),
            ("http://127.0.0.1:9324/1/q", "http://127.0.0.1:9324", None),
            ("https://sqs.example", "https://sqs.example", None),
        ] {
            assert_eq!(endpoint_of(url), Some(endpoint));
            assert_eq!(region_of(endpoint), region);
        }
    }
}
