//! Where the controller hears of changes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};
use weir_fuse::feed::announcement::NAME_MAX;

use super::s3::is_bucket_name;
use super::usage;
use crate::cli::FeedFromArgs;
use crate::exit::Failure;

/// Longest name of a queue, in characters (Amazon's guide to SQS, "Quotas").
const QUEUE_MAX: usize = 80;

/// What is heard, of what, and how it is proven that it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FeedFrom {
    /// What this relay is called: nobody else, and whoever takes its place.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
    /// Buckets all of whose changes come from there.
    pub buckets: Vec<String>,
    /// Objects that are written to see their events.
    pub canaries: Vec<CanaryPlace>,
    /// How often.
    pub canary_interval: Duration,
}

/// Where changes are heard of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A queue of SQS's.
    Queue(QueuePlace),
    /// A port to which the store posts.
    Webhook(WebhookSettings),
}

/// Which queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum QueuePlace {
    /// By its URL.
    Url(String),
    /// By its name, in the account of the credentials.
    Name(String),
}

/// How the store posts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WebhookSettings {
    /// Where.
    pub address: SocketAddr,
    /// File with the token that it shows.
    pub token_file: PathBuf,
    /// PEM file of the certificate.
    pub cert: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
}

/// An object that is written to see its event.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CanaryPlace {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
}

impl Source {
    /// What it is called where it is told, without anything secret.
    pub fn name(&self) -> String {
        match self {
            Self::Queue(QueuePlace::Url(url)) => format!("sqs://{url}"),
            Self::Queue(QueuePlace::Name(name)) => format!("sqs://{name}"),
            Self::Webhook(webhook) => format!("webhook://{}", webhook.address),
        }
    }
}

/// Checks the options; `None` where nothing is heard. `has_feed`: there is somewhere to publish.
///
/// # Errors
/// A usage failure that names the option.
pub fn feed_from(args: &FeedFromArgs, has_feed: bool) -> Result<Option<FeedFrom>, Failure> {
    let Some(from) = args.feed_from.as_deref() else {
        let given = [
            ("--feed-from-name", args.feed_from_name.is_some()),
            ("--feed-bucket", !args.feed_buckets.is_empty()),
            ("--feed-canary", !args.feed_canaries.is_empty()),
            ("--feed-webhook-token-file", args.feed_webhook_token_file.is_some()),
            ("--feed-webhook-cert", args.feed_webhook_cert.is_some()),
            ("--feed-webhook-key", args.feed_webhook_key.is_some()),
            ("--feed", has_feed),
        ];
        return match given.iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) => Err(usage(format!("{option} needs --feed-from"))),
            None => Ok(None),
        };
    };
    // No queue and no address has an @ in it.
    if from.contains('@') {
        let text = "--feed-from names a user (what stands before @); keys belong into the \
                    environment or a profile, on Kubernetes into a Secret";
        return Err(usage(text));
    }
    if !has_feed {
        return Err(usage("--feed-from needs --feed, where what it hears is published"));
    }
    let source = if let Some(queue) = from.strip_prefix("sqs://") {
        Source::Queue(queue_place(queue, args)?)
    } else if let Some(address) = from.strip_prefix("webhook://") {
        Source::Webhook(webhook(address, args)?)
    } else {
        let known = "sqs://NAME, sqs://URL and webhook://ADDRESS:PORT";
        return Err(usage(format!("--feed-from {from}: known are {known}")));
    };
    let canaries =
        args.feed_canaries.iter().map(|url| canary(url)).collect::<Result<Vec<_>, _>>()?;
    if args.feed_canary_interval == 0 {
        return Err(usage("--feed-canary-interval 0: it is 1 at least"));
    }
    let named = args.feed_buckets.iter().chain(canaries.iter().map(|canary| &canary.bucket));
    let mut buckets: Vec<String> = named.cloned().collect();
    buckets.sort();
    buckets.dedup();
    if let Some(bucket) = buckets.iter().find(|bucket| !is_bucket_name(bucket)) {
        return Err(usage(format!("--feed-bucket {bucket}: no bucket has such a name")));
    }
    let canary_interval = Duration::from_secs(args.feed_canary_interval);
    let name = match &args.feed_from_name {
        None => name_of(&source, &buckets),
        Some(name) if (1..=NAME_MAX).contains(&name.len()) => name.clone(),
        Some(_) => return Err(usage(format!("--feed-from-name: it has 1 to {NAME_MAX} bytes"))),
    };
    Ok(Some(FeedFrom { name, source, buckets, canaries, canary_interval }))
}

/// What a relay is called that nobody has named.
fn name_of(source: &Source, buckets: &[String]) -> String {
    let name = format!("{} {}", source.name(), buckets.join(","));
    if name.len() <= NAME_MAX {
        return name;
    }
    Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn queue_place(queue: &str, args: &FeedFromArgs) -> Result<QueuePlace, Failure> {
    let of_webhook = [
        ("--feed-webhook-token-file", &args.feed_webhook_token_file),
        ("--feed-webhook-cert", &args.feed_webhook_cert),
        ("--feed-webhook-key", &args.feed_webhook_key),
    ];
    if let Some((option, _)) = of_webhook.iter().find(|(_, file)| file.is_some()) {
        return Err(usage(format!("{option} is for --feed-from webhook://ADDRESS:PORT")));
    }
    if queue.starts_with("https://") || queue.starts_with("http://") {
        return Ok(QueuePlace::Url(queue.to_owned()));
    }
    if queue.contains('/') {
        return Ok(QueuePlace::Url(format!("https://{queue}")));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match (1..=QUEUE_MAX).contains(&queue.len()) && queue.chars().all(allowed) {
        true => Ok(QueuePlace::Name(queue.to_owned())),
        false => Err(usage(format!("--feed-from sqs://{queue}: no queue has such a name"))),
    }
}

fn webhook(address: &str, args: &FeedFromArgs) -> Result<WebhookSettings, Failure> {
    let wrong = || usage(format!("--feed-from webhook://{address}: it is webhook://ADDRESS:PORT"));
    let address: SocketAddr = address.parse().map_err(|_| wrong())?;
    let wanted = |file: &Option<PathBuf>, option: &str, why: &str| {
        let text = format!("--feed-from webhook://{address} wants {option}: {why}");
        file.clone().ok_or_else(|| usage(text))
    };
    let forged = "whoever reaches the port could make all nodes ask the origin again and again";
    let plain = "who posts shows a token, which is not to be sent in the clear";
    Ok(WebhookSettings {
        address,
        token_file: wanted(&args.feed_webhook_token_file, "--feed-webhook-token-file", forged)?,
        cert: wanted(&args.feed_webhook_cert, "--feed-webhook-cert", plain)?,
        key: wanted(&args.feed_webhook_key, "--feed-webhook-key", plain)?,
    })
}

fn canary(url: &str) -> Result<CanaryPlace, Failure> {
    let place = url.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
    match place {
        Some((bucket, key)) if !key.is_empty() && !key.ends_with('/') => {
            Ok(CanaryPlace { bucket: bucket.to_owned(), key: key.to_owned() })
        }
        _ => Err(usage(format!("--feed-canary {url}: it is s3://BUCKET/KEY"))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Given {
        #[command(flatten)]
        from: FeedFromArgs,
    }

    fn read(flags: &str, has_feed: bool) -> Result<Option<FeedFrom>, Failure> {
        feed_from(&Given::try_parse_from(flags.split_whitespace()).unwrap().from, has_feed)
    }

    const FILES: &str =
        "--feed-webhook-token-file t --feed-webhook-cert c.pem --feed-webhook-key k.pem";

    #[test]
    fn a_source_is_a_queue_or_a_webhook_with_a_token_and_a_certificate() {
        assert_eq!(read("", false).unwrap(), None);
        for (given, place) in [
            ("events", QueuePlace::Name("events".into())),
            (
                "https://sqs.eu-1.amazonaws.com/1/q",
                QueuePlace::Url("https://sqs.eu-1.amazonaws.com/1/q".into()),
            ),
            (
                "sqs.eu-1.amazonaws.com/1/q",
                QueuePlace::Url("https://sqs.eu-1.amazonaws.com/1/q".into()),
            ),
        ] {
            let from = read(&format!("--feed-from sqs://{given}"), true).unwrap().unwrap();
            assert_eq!(from.source, Source::Queue(place));
        }
        let flags = format!(
            "--feed-from webhook://0.0.0.0:8443 {FILES} --feed-bucket some --feed-canary s3://abc/d/e"
        );
        let from = read(&flags, true).unwrap().unwrap();
        assert!(
            matches!(&from.source, Source::Webhook(webhook) if webhook.token_file == std::path::Path::new("t"))
        );
        assert_eq!(from.buckets, ["abc", "some"]);
        assert_eq!(from.canaries, [CanaryPlace { bucket: "abc".into(), key: "d/e".into() }]);
        assert_eq!(from.name, "webhook://0.0.0.0:8443 abc,some");
        let many: Vec<String> = (0..99).map(|n| format!("--feed-bucket bucket-{n}")).collect();
        let flags = format!("--feed-from sqs://q {}", many.join(" "));
        let name = |flags: &str| read(flags, true).unwrap().unwrap().name;
        assert!(name(&flags).len() <= NAME_MAX && name(&flags) == name(&flags));
        assert_eq!(name(&format!("{flags} --feed-from-name mine")), "mine");
    }

    #[test]
    fn what_is_wrong_is_said_and_no_secret_is_repeated() {
        let webhook = "--feed-from webhook://0.0.0.0:8443";
        let without = |option: &str| {
            let mut flags: Vec<&str> = FILES.split(' ').collect();
            let at = flags.iter().position(|flag| *flag == option).unwrap();
            flags.drain(at..at + 2);
            format!("{webhook} {}", flags.join(" "))
        };
        for (flags, has_feed, said) in [
            ("--feed-canary s3://abc/d".to_owned(), false, "--feed-canary needs --feed-from"),
            (String::new(), true, "--feed needs --feed-from"),
            ("--feed-from sqs://q".into(), false, "needs --feed,"),
            ("--feed-from kafka://q".into(), true, "known are"),
            ("--feed-from sqs://".into(), true, "no queue"),
            ("--feed-from sqs://a:b".into(), true, "no queue"),
            ("--feed-from sqs://https://KEY:HUSH@sqs/1/q".into(), true, "names a user"),
            (format!("--feed-from sqs://q {FILES}"), true, "is for --feed-from webhook://"),
            (format!("--feed-from webhook://here {FILES}"), true, "ADDRESS:PORT"),
            (without("--feed-webhook-token-file"), true, "wants --feed-webhook-token-file"),
            (without("--feed-webhook-cert"), true, "wants --feed-webhook-cert"),
            (without("--feed-webhook-key"), true, "wants --feed-webhook-key"),
            ("--feed-from sqs://q --feed-canary s3://abc".into(), true, "s3://BUCKET/KEY"),
            ("--feed-from sqs://q --feed-canary s3://abc/d/".into(), true, "s3://BUCKET/KEY"),
            ("--feed-from sqs://q --feed-bucket a/b".into(), true, "no bucket"),
            ("--feed-from sqs://q --feed-canary-interval 0".into(), true, "at least"),
            ("--feed-from sqs://q --feed-from-name=".into(), true, "1 to 256"),
        ] {
            let failure = read(&flags, has_feed).unwrap_err();
            assert!(failure.text.contains(said), "{flags}: {}", failure.text);
            assert!(!failure.text.contains("HUSH"), "{}", failure.text);
        }
    }
}
