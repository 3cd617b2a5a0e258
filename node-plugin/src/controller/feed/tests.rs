//! Messages of stores on their way to a feed that is in memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use serde_json::json;
use weir_fuse::feed::Change;
use weir_fuse::feed::publisher::PublishError;
use weir_fuse::origin::memory::MemoryOrigin;

use super::relay::Announce;
use super::*;
use crate::config::feed_from::{CanaryPlace, QueuePlace};

/// A feed in memory, that confirms unless it is told not to.
#[derive(Default)]
struct Kept {
    announced: Mutex<Vec<Change>>,
    skipped: AtomicUsize,
    is_away: AtomicBool,
    relays: Mutex<BTreeMap<Box<str>, Option<u64>>>,
}

#[async_trait]
impl Announce for Kept {
    async fn announce(&self, changes: Vec<Change>) -> Result<(), PublishError> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(PublishError::Unconfirmed);
        }
        self.announced.lock().unwrap().extend(changes);
        Ok(())
    }

    async fn skip(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    fn relays(&self, buckets: BTreeMap<Box<str>, Option<u64>>) {
        *self.relays.lock().unwrap() = buckets;
    }
}

impl Kept {
    fn keys(&self) -> Vec<String> {
        let announced = self.announced.lock().unwrap();
        announced.iter().map(|change| format!("{}/{}", change.bucket, change.key)).collect()
    }

    fn late(&self, bucket: &str) -> Option<Option<u64>> {
        self.relays.lock().unwrap().get(bucket).copied()
    }
}

fn canary() -> CanaryPlace {
    CanaryPlace { bucket: "b".into(), key: "canary/here".into() }
}

fn relay() -> (Arc<Kept>, Relay, Arc<Metrics>) {
    let from = FeedFrom {
        name: "relay".into(),
        source: Source::Queue(QueuePlace::Name("q".into())),
        buckets: vec!["b".into(), "c".into()],
        canaries: vec![canary()],
        canary_interval: Duration::from_secs(1),
    };
    let (kept, counted) = (Arc::new(Kept::default()), Arc::new(Metrics::new().unwrap()));
    let relay = Relay::new(kept.clone(), &from, counted.clone());
    relay.tell();
    (kept, relay, counted)
}

fn event(key: &str, tag: &str) -> Vec<u8> {
    let object = json!({ "key": key, "eTag": tag });
    let record = json!({
        "eventName": "ObjectCreated:Put", "s3": { "bucket": { "name": "b" }, "object": object },
    });
    serde_json::to_vec(&json!({ "Records": [record] })).unwrap()
}

#[tokio::test]
async fn a_message_is_taken_once_the_feed_has_it_and_one_that_cannot_be_read_is_a_gap() {
    let (kept, relay, counted) = relay();
    let (one, test) = (event("a+b", "e"), br#"{"Event":"s3:TestEvent"}"#.as_slice());
    kept.is_away.store(true, Ordering::Relaxed);
    assert!(relay.take(&[&one]).await.is_err());
    assert!(kept.keys().is_empty());
    kept.is_away.store(false, Ordering::Relaxed);
    let read = relay.take(&[&one, b"what?", test]).await.unwrap();
    assert_eq!(read.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(kept.keys(), ["b/a b"]);
    assert_eq!(kept.skipped.load(Ordering::Relaxed), 1);
    let count = |outcome| counted.feed_relayed.with_label_values(&[outcome]).get();
    assert_eq!(["published", "unreadable", "unpublished"].map(count), [2, 1, 1]);
    relay.end();
    assert!(relay.take(&[&one]).await.is_err());
    assert_eq!(kept.keys(), ["b/a b"]);
}

#[tokio::test]
async fn the_event_of_what_was_written_says_how_late_it_came_and_that_of_another_write_does_not() {
    let (kept, relay, _) = relay();
    assert_eq!((kept.late("b"), kept.late("c")), (Some(None), Some(None)));
    let take = async |tag| relay.take(&[&event("canary/here", tag)]).await.unwrap();
    take("1").await;
    // An event may come before the answer to the write does.
    relay.begin_waiting(&canary());
    take("0").await;
    take("1").await;
    assert_eq!(kept.late("b"), Some(None));
    relay.wait_for(&canary(), "\"1\"");
    assert!(kept.late("b").unwrap().is_some() && kept.late("c") == Some(None));
    assert!(!relay.give_up(&canary()));
    // Of the next one nothing comes but the event of the one before, and that again.
    relay.begin_waiting(&canary());
    relay.wait_for(&canary(), "\"22\"");
    take("1").await;
    relay.take(&[&event("another", "22")]).await.unwrap();
    assert!(relay.give_up(&canary()));
    // What the feed does not have has not come.
    relay.begin_waiting(&canary());
    relay.wait_for(&canary(), "\"3\"");
    kept.is_away.store(true, Ordering::Relaxed);
    assert!(relay.take(&[&event("canary/here", "3")]).await.is_err());
    assert!(relay.give_up(&canary()));
}

#[tokio::test]
async fn an_object_is_written_again_and_again_and_it_is_told_whether_its_event_came() {
    let (kept, relay, _) = relay();
    let (relay, origin) = (Arc::new(relay), Arc::new(MemoryOrigin::new("b")));
    let written = Canary::new(origin.clone(), canary(), Duration::from_millis(50));
    let running = tokio::spawn(written.run(relay.clone()));
    let mut last = String::new();
    let mut told = async |tells: bool| loop {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let tag = weir_fuse::origin::Origin::head(&*origin, "canary/here").await;
        let Some(tag) = tag.ok().and_then(|info| info.etag) else { continue };
        let tag = tag.as_str().trim_matches('"').to_owned();
        if tells && tag != last {
            relay.take(&[&event("canary/here", &tag)]).await.unwrap();
            last = tag;
        }
        if kept.late("b").unwrap().is_some() == tells {
            return;
        }
    };
    for tells in [true, false, true] {
        tokio::time::timeout(Duration::from_secs(60), told(tells)).await.unwrap();
    }
    running.abort();
}

/// A certificate of an authority of its own, in `ca.crt`, `public.crt` and `private.key`.
fn certificate(dir: &Path) {
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=weir-test-ca \
            -keyout ca.key -out ca.crt && \
        openssl req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout private.key -out server.csr && \
        printf 'subjectAltName=IP:127.0.0.1\n' >ext && \
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
            -extfile ext -out public.crt";
    let made = std::process::Command::new("sh").args(["-c", script]).current_dir(dir).output();
    assert!(made.unwrap().status.success());
}

/// A webhook in a folder with its files, and what says what it answers.
struct Posted {
    dir: tempfile::TempDir,
    kept: Arc<Kept>,
    address: std::net::SocketAddr,
}

const TOKEN: &str = "token-of-the-store";

impl Posted {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        certificate(dir.path());
        std::fs::write(dir.path().join("token"), TOKEN).unwrap();
        let (kept, relay, _) = relay();
        let address = webhook::start(&settings(dir.path()), Arc::new(relay)).await.unwrap();
        Self { dir, kept, address }
    }

    /// Sends a request; returns the number of the answer, or nothing where the connection ends.
    async fn send(&self, head: &str, body: &[u8]) -> Option<u16> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio_rustls::rustls::pki_types::pem::PemObject;
        use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
        use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
        let mut roots = RootCertStore::empty();
        let authority = self.dir.path().join("ca.crt");
        roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(name, stream).await.unwrap();
        let length = body.len();
        let head = format!("{head} HTTP/1.1\r\nHost: weir\r\nContent-Length: {length}\r\n");
        // As `POST /` and, behind it, a header.
        let head = match head.split_once('|') {
            Some((line, rest)) => {
                let (header, rest) = rest.split_once(" HTTP").unwrap();
                format!("{line} HTTP{rest}{header}\r\n\r\n")
            }
            None => format!("{head}\r\n"),
        };
        stream.write_all(head.as_bytes()).await.unwrap();
        // It may be refused before all of it is read.
        let _ = stream.write_all(body).await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.ok()?;
        std::str::from_utf8(&answer[9..]).unwrap().parse().ok()
    }

    async fn post(&self, token: &str, body: &[u8]) -> Option<u16> {
        self.send(&format!("POST /|Authorization: Bearer {token}"), body).await
    }
}

fn settings(dir: &Path) -> crate::config::feed_from::WebhookSettings {
    crate::config::feed_from::WebhookSettings {
        address: "127.0.0.1:0".parse().unwrap(),
        token_file: dir.join("token"),
        cert: dir.join("public.crt"),
        key: dir.join("private.key"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_posted_with_the_token_is_answered_once_it_is_published() {
    let posted = Posted::start().await;
    assert_eq!(posted.post(TOKEN, &event("one", "e")).await, Some(200));
    assert_eq!(posted.kept.keys(), ["b/one"]);
    posted.kept.is_away.store(true, Ordering::Relaxed);
    assert_eq!(posted.post(TOKEN, &event("two", "e")).await, Some(503));
    posted.kept.is_away.store(false, Ordering::Relaxed);
    assert_eq!(posted.post(TOKEN, b"what?").await, Some(400));
    assert_eq!(posted.kept.skipped.load(Ordering::Relaxed), 1);
    // A store that looks whether somebody is there.
    assert_eq!(posted.post(TOKEN, b"").await, Some(200));
    assert_eq!(posted.send(&format!("HEAD /|Authorization: Bearer {TOKEN}"), b"").await, Some(200));
    assert_eq!(posted.send(&format!("PUT /|Authorization: Bearer {TOKEN}"), b"").await, Some(405));
    assert_eq!(posted.kept.keys(), ["b/one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_another_token_or_posts_too_much_is_refused_and_a_new_token_counts() {
    let posted = Posted::start().await;
    let message = event("one", "e");
    for token in ["", "token-of-the-stor", "token-of-the-storf", "Token-of-the-store"] {
        assert_eq!(posted.post(token, &message).await, Some(401), "{token}");
    }
    assert_eq!(posted.send("POST /", &message).await, Some(401));
    assert_eq!(
        posted.send(&format!("POST /|Authorization: Basic {TOKEN}"), &message).await,
        Some(401)
    );
    let long = posted.post(TOKEN, &vec![b' '; 2 << 20]).await;
    assert!(long.is_none_or(|status| status == 413), "{long:?}");
    assert!(posted.kept.keys().is_empty());
    std::fs::write(posted.dir.path().join("token"), "another\n").unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while posted.post("another", &message).await != Some(200) {
        assert!(std::time::Instant::now() < until);
    }
    assert_eq!(posted.post(TOKEN, &message).await, Some(401));
    assert_eq!(posted.kept.keys(), ["b/one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_are_served_end_the_oldest_and_a_client_is_heard() {
    let posted = Posted::start().await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(tokio::net::TcpStream::connect(posted.address).await.unwrap());
    }
    assert_eq!(posted.post(TOKEN, &event("one", "e")).await, Some(200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_does_not_start_without_what_it_needs_and_says_what() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path());
    std::fs::write(dir.path().join("token"), TOKEN).unwrap();
    let other = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.path().join("other"), bytes).unwrap();
        let (mut wanted, file) = (settings(dir.path()), dir.path().join("other"));
        match name {
            "token" => wanted.token_file = file,
            "cert" => wanted.cert = file,
            _ => wanted.key = file,
        }
        wanted
    };
    let key = std::fs::read(dir.path().join("ca.key")).unwrap();
    for (name, bytes, said) in [
        ("token", &b""[..], "token file"),
        ("cert", b"", "no certificate"),
        ("key", b"HUSH", "no private key"),
        ("key", &key, "public.crt"),
    ] {
        let (_, relay, _) = relay();
        let started = webhook::start(&other(name, bytes), Arc::new(relay)).await;
        let failure = started.unwrap_err();
        assert!(failure.text.contains(said), "{name}: {}", failure.text);
        assert!(!failure.text.contains("HUSH"), "{}", failure.text);
    }
}
