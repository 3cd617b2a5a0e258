//! What a store says of changes, on its way to the feed.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use weir_fuse::feed::announcement::{Announcement, Role};
use weir_tests::bucket::{Bucket, Server};
use weir_tests::mount::weir;
use weir_tests::nats::{Nats, SUBJECT};
use weir_tests::servers::{data_dir, free_port};
use weir_tests::sqs::Sqs;
use weir_tests::{eventually, minio, runtime};

/// A controller that publishes what it hears; it ends when dropped.
struct Controller {
    child: Child,
    dir: TempDir,
}

impl Controller {
    fn start(bucket: &Bucket, nats: &Nats, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = weir(bucket)
            .arg("controller")
            .arg("--csi-socket")
            .arg(dir.path().join("csi.sock"))
            .args(["--endpoint-url", &bucket.url, "--region", "us-east-1", "--feed", &nats.url()])
            .args(["--feed-timeout", "1"])
            .args(flags)
            .env(weir_node::DIE_WITH_PARENT, "1")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, dir }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.dir.path().join("log")).unwrap());
        }
    }
}

/// What relays have said on a server.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Announcement>>>);

impl Heard {
    fn listen(&self, nats: &Nats) {
        let (client, heard) = (nats.client(), self.0.clone());
        let mut messages = runtime().block_on(client.subscribe(SUBJECT)).unwrap();
        runtime().block_on(client.flush()).unwrap();
        runtime().spawn(async move {
            let _client = client;
            while let Some(message) = messages.next().await {
                heard.lock().unwrap().extend(Announcement::parse(&message.payload));
            }
        });
    }

    /// The keys that were changed, those that are gone with a minus before them.
    fn keys(&self) -> BTreeSet<String> {
        let heard = self.0.lock().unwrap();
        let changes = heard.iter().flat_map(|said| &said.changes);
        changes.map(|c| format!("{}{}", if c.gone { "-" } else { "" }, c.key)).collect()
    }

    /// How late changes of a bucket are said to come, by the last that was said.
    fn late(&self, bucket: &str) -> Option<u64> {
        *self.0.lock().unwrap().last()?.relays.get(bucket)?
    }
}

fn records(event: &str, key: &str) -> Value {
    let about = json!({ "bucket": { "name": "b" }, "object": { "key": key, "eTag": "e" } });
    json!({ "Records": [{ "eventSource": "aws:s3", "eventName": event, "s3": about }] })
}

#[test]
fn events_in_a_queue_are_published_and_deleted_once_the_feed_has_them() {
    let (sqs, nats, heard) = (Sqs::start(), Nats::start(), Heard::default());
    let bucket = Bucket::new(Server::Embedded);
    heard.listen(&nats);
    let from = format!("sqs://{}", sqs.queue());
    let _controller =
        Controller::start(&bucket, &nats, &["--feed-from", &from, "--feed-bucket", &bucket.name]);
    sqs.send(&records("ObjectCreated:Put", "a+b%2B%C3%BC%25"));
    let inner = records("ObjectRemoved:Delete", "by/sns").to_string();
    sqs.send(&json!({ "Type": "Notification", "TopicArn": "t", "Message": inner }));
    sqs.send(&json!({
        "version": "0", "source": "aws.s3", "detail-type": "Object Created",
        "detail": { "bucket": { "name": "b" }, "object": { "key": "by+bridge ü%", "etag": "e" } },
    }));
    sqs.send(&json!({ "Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b" }));
    sqs.send(&json!({ "what": "is this?" }));
    let all = BTreeSet::from(["a b+ü%", "-by/sns", "by+bridge ü%"].map(str::to_owned));
    eventually("all are heard", || heard.keys() == all);
    // What is not understood is left to the queue.
    eventually("they are deleted", || sqs.len() == 1);
    let said = heard.0.lock().unwrap();
    let relay = said.last().unwrap();
    assert!(relay.role == Role::Relay && relay.publisher.starts_with(&from), "{relay:?}");
    assert_eq!(relay.relays.get(&*bucket.name), Some(&None));
    drop(said);

    let port = nats.port();
    drop(nats);
    sqs.send(&records("ObjectCreated:Put", "late"));
    if std::env::var_os("WEIR_MOTO").is_none() {
        eventually("it is received", || sqs.received("late"));
    }
    assert_eq!(sqs.len(), 2);
    let nats = Nats::start_at(port, "");
    heard.listen(&nats);
    eventually("it is heard", || heard.keys().contains("late"));
    eventually("it is deleted", || sqs.len() == 1);
}

#[test]
fn what_minio_posts_is_published_and_an_object_that_is_written_for_it_shows_that_it_comes() {
    let certificates = minio::certificate();
    let file = |name: &str| certificates.path().join(name).to_str().unwrap().to_owned();
    let (port, queue) = (free_port(), tempfile::tempdir().unwrap());
    std::fs::write(file("token"), "token-of-minio").unwrap();
    let settings = [
        ("MINIO_NOTIFY_WEBHOOK_ENABLE_WEIR", "on".to_owned()),
        ("MINIO_NOTIFY_WEBHOOK_ENDPOINT_WEIR", format!("https://127.0.0.1:{port}/")),
        ("MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_WEIR", "token-of-minio".to_owned()),
        ("MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_WEIR", queue.path().to_str().unwrap().to_owned()),
        ("SSL_CERT_FILE", file("ca.crt")),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let minio = minio::start_with(data_dir("minio"), settings);
    let (bucket, nats, heard) = (Bucket::on(&minio), Nats::start(), Heard::default());
    bucket.notify("arn:minio:sqs::WEIR:webhook");
    heard.listen(&nats);
    let from = format!("webhook://127.0.0.1:{port}");
    let canary = format!("s3://{}/weir/canary", bucket.name);
    let (token, cert, key) = (file("token"), file("public.crt"), file("private.key"));
    let start = || {
        let posted = ["--feed-from", &from, "--feed-webhook-token-file", &token];
        let tls = ["--feed-webhook-cert", &cert, "--feed-webhook-key", &key];
        let written = ["--feed-canary", &canary, "--feed-canary-interval", "1"];
        Controller::start(&bucket, &nats, &[posted, tls, written].concat())
    };
    let controller = start();
    bucket.put("d/ü +%&.txt", "x");
    eventually("it is heard", || heard.keys().contains("d/ü +%&.txt"));
    bucket.delete("d/ü +%&.txt");
    eventually("that it is gone is heard", || heard.keys().contains("-d/ü +%&.txt"));
    eventually("it is shown that events come", || heard.late(&bucket.name).is_some());
    // What is changed while nobody listens is kept by MinIO.
    drop(controller);
    bucket.put("meanwhile", "x");
    let _controller = start();
    eventually("it is heard", || heard.keys().contains("meanwhile"));
}
