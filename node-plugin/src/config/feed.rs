//! Settings of a feed of changes.

use std::time::Duration;

use weir_fuse::feed::nats::FeedSettings;
use weir_fuse::origin::s3::names_a_user;

use super::usage;
use crate::cli::FeedArgs;
use crate::exit::Failure;

/// What is followed where nothing else is said.
const SUBJECT: &str = "weir.changes";
/// Longest time, in seconds.
const LONGEST_S: u64 = 24 * 3600;

/// Whether a volume follows its node's feed, by its attribute `feed`.
///
/// # Errors
/// What is wrong with that.
pub fn of_volume(given: Option<&str>) -> Result<bool, String> {
    match given {
        None => Ok(true),
        Some("off") => Ok(false),
        Some(other) => Err(format!("feed {other:?} is unknown; it is off, or not given")),
    }
}

/// Checks the options of a feed; `None` where there is none.
///
/// # Errors
/// A usage failure that names the option.
pub fn feed_settings(args: &FeedArgs) -> Result<Option<FeedSettings>, Failure> {
    let FeedArgs { feed, feed_credentials_file, feed_ca_bundle, .. } = args;
    if feed.is_empty() {
        let given = [
            ("--feed-credentials-file", feed_credentials_file.is_some()),
            ("--feed-ca-bundle", feed_ca_bundle.is_some()),
            ("--feed-timeout", args.feed_timeout.is_some()),
            ("--feed-metadata-ttl", args.feed_metadata_ttl.is_some()),
        ];
        return match given.iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) => Err(usage(format!("{option} needs --feed"))),
            None => Ok(None),
        };
    }
    let mut servers = Vec::new();
    let mut subject = None;
    for url in feed {
        let (server, its) = divided(url)?;
        servers.push(server.to_owned());
        match (subject, its) {
            (Some(one), Some(other)) if one != other => {
                let text = format!("--feed: the subjects {one} and {other}: a feed has one");
                return Err(usage(text));
            }
            (one, other) => subject = one.or(other),
        }
    }
    Ok(Some(FeedSettings {
        servers,
        subject: subject.unwrap_or(SUBJECT).to_owned(),
        credentials_file: feed_credentials_file.clone(),
        ca_bundle: feed_ca_bundle.clone(),
        timeout: seconds("--feed-timeout", args.feed_timeout.unwrap_or(5))?,
        lifetime: seconds("--feed-metadata-ttl", args.feed_metadata_ttl.unwrap_or(300))?,
    }))
}

fn seconds(option: &str, given: u64) -> Result<Duration, Failure> {
    match given {
        1..=LONGEST_S => Ok(Duration::from_secs(given)),
        _ => Err(usage(format!("{option} {given}: it is 1 to {LONGEST_S} seconds"))),
    }
}

/// Server and subject of a URL.
fn divided(url: &str) -> Result<(&str, Option<&str>), Failure> {
    if names_a_user(url) {
        let text = "--feed: the URL names a user (what stands before @); that belongs into the file \
                    of --feed-credentials-file, on Kubernetes into a Secret";
        return Err(usage(text));
    }
    let scheme = ["nats://", "tls://"].into_iter().find(|scheme| url.starts_with(scheme));
    let Some(scheme) = scheme else {
        return Err(usage(format!("--feed {url}: must begin with nats:// or tls://")));
    };
    let rest = &url[scheme.len()..];
    let (host, subject) = rest.split_once('/').unwrap_or((rest, ""));
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:[]_".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_host) {
        return Err(usage(format!(
            "--feed {url}: must be {scheme}HOST:PORT or {scheme}HOST:PORT/SUBJECT"
        )));
    }
    let is_token = |token: &str| {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !b"*>/".contains(&byte);
        !token.is_empty() && token.bytes().all(allowed)
    };
    if !subject.is_empty() && !subject.split('.').all(is_token) {
        let text = "the subject is words with dots between them, and no wildcard: it is published on, \
                    too";
        return Err(usage(format!("--feed {url}: {text}")));
    }
    Ok((&url[..scheme.len() + host.len()], Some(subject).filter(|subject| !subject.is_empty())))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Given {
        #[command(flatten)]
        feed: FeedArgs,
    }

    fn settings(flags: &str) -> Result<Option<FeedSettings>, Failure> {
        feed_settings(&Given::try_parse_from(flags.split_whitespace()).unwrap().feed)
    }

    #[test]
    fn a_feed_is_checked_and_none_is_none() {
        assert_eq!(settings("").unwrap(), None);
        let feed = settings("--feed nats://a:4222,tls://b --feed nats://c/x.y").unwrap().unwrap();
        assert_eq!(feed.servers, ["nats://a:4222", "tls://b", "nats://c"]);
        assert_eq!((&*feed.subject, feed.timeout.as_secs()), ("x.y", 5));
        let feed = settings("--feed nats://a --feed-metadata-ttl 60").unwrap().unwrap();
        assert_eq!((&*feed.subject, feed.lifetime.as_secs()), (SUBJECT, 60));
        for (flags, word) in [
            ("--feed-timeout 5", "--feed"),
            ("--feed-credentials-file /c", "--feed"),
            ("--feed a:4222", "nats://"),
            ("--feed http://a", "nats://"),
            ("--feed nats://", "HOST:PORT"),
            ("--feed nats:///x", "HOST:PORT"),
            ("--feed nats://KEY:HUSH@a", "names a user"),
            ("--feed nats://a/x.*", "wildcard"),
            ("--feed nats://a/x..y", "dots"),
            ("--feed nats://a/x,nats://b/y", "a feed has one"),
            ("--feed nats://a --feed-timeout 0", "--feed-timeout"),
            ("--feed nats://a --feed-metadata-ttl 100000", "--feed-metadata-ttl"),
        ] {
            let text = settings(flags).unwrap_err().text;
            assert!(text.contains(word) && !text.contains("HUSH"), "{flags}: {text}");
        }
    }
}
