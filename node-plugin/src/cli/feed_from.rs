//! Options of what tells the fleet of changes.

use std::path::PathBuf;

use clap::Args;

/// Where changes are heard of, to be published at `--feed`: by one controller for the whole fleet.
#[derive(Args, Debug, Clone, Default)]
pub struct FeedFromArgs {
    /// Publish what the store says of changes at --feed, once for the whole fleet: sqs://NAME or
    /// sqs://URL, a queue of S3's events (straight, by SNS or by EventBridge), or
    /// webhook://ADDRESS:PORT, to which the store posts them.
    #[arg(long, value_name = "SOURCE")]
    pub feed_from: Option<String>,
    /// Name of this relay on the feed, which no other has [default: the source and the buckets].
    #[arg(long, value_name = "NAME")]
    pub feed_from_name: Option<String>,
    /// Bucket all of whose changes come from there; any number of times.
    #[arg(long = "feed-bucket", value_name = "BUCKET")]
    pub feed_buckets: Vec<String>,
    /// Object to write again and again, whose events show that all of its bucket's come, and how late;
    /// any number of times.
    #[arg(long = "feed-canary", value_name = "s3://BUCKET/KEY")]
    pub feed_canaries: Vec<String>,
    /// Seconds between two writes of such an object.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub feed_canary_interval: u64,
    /// File with the bearer token of who posts to the webhook; read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub feed_webhook_token_file: Option<PathBuf>,
    /// PEM file of the webhook's certificate, and those that lead to its authority; read again when it
    /// changes.
    #[arg(long, value_name = "FILE")]
    pub feed_webhook_cert: Option<PathBuf>,
    /// PEM file of the certificate's key.
    #[arg(long, value_name = "FILE")]
    pub feed_webhook_key: Option<PathBuf>,
}
