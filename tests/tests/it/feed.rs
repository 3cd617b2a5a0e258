//! A feed of changes: names are taken as true for minutes, and what others change is seen all the same.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use weir_fuse::feed::Change;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::minio;
use weir_tests::mount::{Mount, Options};
use weir_tests::nats::{Nats, SUBJECT};
use weir_tests::servers::free_port;
use weir_tests::{eventually, runtime};

/// Without a feed that lives each use of a name is a question.
const FLAGS: &str = "--metadata-ttl minimal --feed-metadata-ttl 3600";

fn mounted(bucket: &Bucket, nats: &Nats, flags: &str) -> Mount {
    Mount::flags(bucket, &format!("{FLAGS} --feed {} {flags}", nats.url()))
}

fn lives(mount: &Mount) -> bool {
    mount.status().feed.unwrap().lives
}

fn until_it_lives(mount: &Mount) {
    eventually("the feed lives", || lives(mount));
}

/// How often the origin was asked about names.
fn questions(mount: &Mount) -> u64 {
    mount.requests("HeadObject") + mount.requests("ListObjectsV2")
}

fn lapses(mount: &Mount, reason: &str) -> u64 {
    let name = format!("weir_feed_lapses_total{{reason=\"{reason}\"}}");
    mount.metrics().get(&name).map_or(0, |n| *n as u64)
}

fn text(mount: &Mount, name: &str) -> String {
    fs::read_to_string(mount.join(name)).unwrap_or_default()
}

/// Reads it until nothing is asked about it, and then again and again.
fn is_believed(mount: &Mount, name: &str) {
    eventually("a name that was asked for is believed", || {
        let before = questions(mount);
        (0..20).for_each(|_| drop(text(mount, name)));
        questions(mount) == before
    });
}

/// A MinIO of its own, which sends its events to this server.
fn minio_with_events(nats: &Nats) -> Bucket {
    let data =
        tempfile::Builder::new().prefix("weir-minio-").tempdir_in("/var/tmp").unwrap().keep();
    let setting =
        |name: &str, value: &str| (format!("MINIO_NOTIFY_NATS_{name}_FEED"), value.to_owned());
    let settings = vec![
        setting("ENABLE", "on"),
        setting("ADDRESS", &format!("127.0.0.1:{}", nats.port())),
        setting("SUBJECT", SUBJECT),
    ];
    let bucket = Bucket::on(&minio::start_with(data, settings));
    bucket.notify("arn:minio:sqs::FEED:nats");
    bucket
}

#[test]
fn a_change_by_somebody_else_is_seen_by_the_stores_own_events_while_names_live_for_an_hour() {
    let nats = Nats::start();
    let bucket = minio_with_events(&nats);
    let keys = ["plain", "dir/deep/er", "a+b c", "100% ü€", "dir/%2B&=?#"];
    keys.iter().for_each(|key| drop(bucket.put(key, "old")));
    let mount = mounted(&bucket, &nats, "");
    let _relay = nats.relay(&bucket.name);
    until_it_lives(&mount);
    for key in keys {
        assert_eq!(text(&mount, key), "old", "{key}");
        is_believed(&mount, key);
    }
    let mut open = fs::File::open(mount.join("plain")).unwrap();
    for key in keys {
        bucket.put(key, "newer");
        eventually("the change is seen", || text(&mount, key) == "newer");
        is_believed(&mount, key);
    }
    // Who has it open reads what he opened.
    let mut read = String::new();
    open.read_to_string(&mut read).unwrap();
    assert_eq!(read, "old");
    // Names that were not there, and that are not there any more.
    let names = |dir: &str| {
        let names = fs::read_dir(mount.join(dir)).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert!(!mount.join("dir/deep/new").exists() && !mount.join("made/by/others").exists());
    assert_eq!(names("dir/deep"), ["er"]);
    bucket.put("dir/deep/new", "1");
    bucket.put("made/by/others", "2");
    eventually("a new name is there", || text(&mount, "dir/deep/new") == "1");
    eventually("a new directory is there", || text(&mount, "made/by/others") == "2");
    eventually("it is listed", || names("dir/deep") == ["er", "new"]);
    bucket.delete("dir/deep/new");
    bucket.delete("made/by/others");
    eventually("the name is gone", || !mount.join("dir/deep/new").exists());
    eventually("the directory is gone", || !mount.join("made").exists());
    assert!(lives(&mount), "all of that while the feed lived");
    let metrics = mount.metrics();
    assert!(metrics["weir_feed_marks_total"] >= 9.0, "{metrics:?}");
    assert_eq!(metrics["weir_feed_lives"], 1.0);
}

#[test]
fn a_feed_that_is_cut_makes_names_live_for_the_short_lifetime_until_it_is_heard_again() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("file", "1");
    let nats = Nats::start();
    let port = nats.port();
    let mount = mounted(&bucket, &nats, "--feed-timeout 1");
    let relay = nats.relay(&bucket.name);
    until_it_lives(&mount);
    assert_eq!(text(&mount, "file"), "1");
    is_believed(&mount, "file");
    // Nobody tells of it.
    bucket.put("file", "22");
    assert_eq!(text(&mount, "file"), "1");
    drop(nats);
    eventually("the feed does not live", || !lives(&mount));
    assert_eq!(text(&mount, "file"), "22");
    let before = questions(&mount);
    (0..5).for_each(|_| assert_eq!(text(&mount, "file"), "22"));
    assert!(questions(&mount) >= before + 5, "each use is a question");
    assert!(lapses(&mount, "disconnected") + lapses(&mount, "silence") > 0);
    // What is answered before it lives again is not believed then.
    bucket.put("file", "333");
    let nats = Nats::start_at(port, "");
    until_it_lives(&mount);
    assert_eq!(text(&mount, "file"), "333");
    is_believed(&mount, "file");
    // A relay that goes takes the long lifetime with it.
    bucket.put("file", "4444");
    runtime().block_on(relay.stop());
    eventually("nobody relays", || !lives(&mount));
    assert_eq!(text(&mount, "file"), "4444");
    drop(nats);
}

#[test]
fn messages_that_are_missing_are_a_lapse_and_late_repeated_and_foreign_ones_do_no_harm() {
    let bucket = Bucket::new(Server::Minio);
    let nats = Nats::start();
    bucket.put("file", "1");
    let mount = mounted(&bucket, &nats, "--feed-timeout 60");
    let relay = nats.relay(&bucket.name);
    until_it_lives(&mount);
    let change = |key: &str| Change { bucket: (*bucket.name).into(), key: key.into(), gone: false };
    let client = nats.client();
    let say = |message: &str| {
        runtime().block_on(async {
            client.publish(SUBJECT, message.to_owned().into()).await.unwrap();
            client.flush().await.unwrap();
        });
    };
    is_believed(&mount, "file");
    for message in [
        "",
        "no JSON",
        "{\"Records\":[]}",
        "{\"weir\":1,\"publisher\":\"node x\",\"epoch\":1,\"sequence\":5}",
        "{\"weir\":1,\"publisher\":\"node x\",\"epoch\":1,\"sequence\":3}",
        "{\"weir\":7,\"publisher\":\"node x\",\"epoch\":1,\"sequence\":9}",
    ] {
        say(message);
    }
    runtime().block_on(relay.announce(vec![change("elsewhere")])).unwrap();
    let of_relay = |mount: &Mount| mount.metrics()["weir_feed_marks_total"] >= 1.0;
    eventually("the relay is heard", || of_relay(&mount));
    is_believed(&mount, "file");
    assert_eq!(lapses(&mount, "gap"), 0);
    // A node's message is missing.
    bucket.put("file", "22");
    assert_eq!(text(&mount, "file"), "1");
    say("{\"weir\":1,\"publisher\":\"node x\",\"epoch\":1,\"sequence\":7}");
    eventually("the gap is noticed", || lapses(&mount, "gap") == 1);
    assert_eq!(text(&mount, "file"), "22");
    is_believed(&mount, "file");
    // One of the relay's.
    bucket.put("file", "333");
    runtime().block_on(relay.skip());
    runtime().block_on(relay.announce(vec![change("elsewhere")])).unwrap();
    eventually("the gap is noticed", || lapses(&mount, "gap") == 2);
    assert_eq!(text(&mount, "file"), "333");
    assert!(lives(&mount));
}

#[test]
fn what_one_mount_writes_another_sees_though_the_store_says_nothing() {
    let bucket = Bucket::new(Server::Minio);
    let nats = Nats::start();
    let (writer, reader) = (mounted(&bucket, &nats, ""), mounted(&bucket, &nats, ""));
    let _relay = nats.relay(&bucket.name);
    until_it_lives(&reader);
    fs::create_dir(writer.join("dir")).unwrap();
    fs::write(writer.join("dir/a"), "1").unwrap();
    eventually("a new file is seen", || text(&reader, "dir/a") == "1");
    is_believed(&reader, "dir/a");
    fs::write(writer.join("dir/a"), "22").unwrap();
    eventually("a replaced file is seen", || text(&reader, "dir/a") == "22");
    is_believed(&reader, "dir/a");
    fs::rename(writer.join("dir/a"), writer.join("dir/b")).unwrap();
    eventually("a renamed file is seen", || text(&reader, "dir/b") == "22");
    assert!(!reader.join("dir/a").exists());
    is_believed(&reader, "dir/b");
    fs::write(writer.join("dir/large"), vec![7; 20 << 20]).unwrap();
    eventually("an upload by parts is seen", || {
        fs::metadata(reader.join("dir/large")).is_ok_and(|file| file.len() == 20 << 20)
    });
    fs::rename(writer.join("dir"), writer.join("other")).unwrap();
    eventually("a renamed directory is seen", || text(&reader, "other/b") == "22");
    eventually("it is not where it was", || !reader.join("dir").exists());
    fs::remove_file(writer.join("other/b")).unwrap();
    eventually("a removed file is gone", || !reader.join("other/b").exists());
    assert!(lives(&reader));
}

#[test]
fn no_server_has_to_be_there_and_a_password_is_shown_nowhere() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("file", "1");
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let keys = folder.path().join("keys");
    fs::write(&keys, "somebody:hush-hush\n").unwrap();
    certificate(folder.path());
    let (log, ca) = (folder.path().join("log"), folder.path().join("ca.crt"));
    let options = Options::flags(&format!(
        "{FLAGS} --log-level trace --feed tls://127.0.0.1:{port} --feed-credentials-file {} \
         --feed-ca-bundle {}",
        keys.display(),
        ca.display()
    ));
    let mount = Mount::with(&bucket, &options.log(&log));
    assert_eq!(text(&mount, "file"), "1");
    assert!(!lives(&mount));
    let of = |name: &str| folder.path().join(name).display().to_string();
    let nats = Nats::start_at(
        port,
        &format!(
            "tls {{ cert_file: \"{}\", key_file: \"{}\" }}\n\
             authorization {{ user: somebody, password: \"hush-hush\" }}",
            of("server.crt"),
            of("server.key")
        ),
    );
    eventually("the feed is connected", || {
        fs::read_to_string(&log).unwrap().contains("connected to the feed")
    });
    let said = serde_json::to_string(&mount.status()).unwrap() + &fs::read_to_string(&log).unwrap();
    assert!(!said.contains("hush-hush"), "{said}");
    drop(nats);
}

/// An authority, and a certificate of its for the loopback.
fn certificate(folder: &Path) {
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=weir-test-ca \
            -keyout ca.key -out ca.crt && \
        openssl req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout server.key -out server.csr && \
        printf 'subjectAltName=IP:127.0.0.1\n' >ext && \
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
            -extfile ext -out server.crt";
    let made = Command::new("sh").args(["-c", script]).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn a_change_in_one_cluster_is_seen_in_another_by_way_of_a_leaf_node() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("file", "1");
    let leaves = free_port();
    let hub =
        Nats::start_at(free_port(), &format!("leafnodes {{ listen: \"127.0.0.1:{leaves}\" }}"));
    let remote = format!("leafnodes {{ remotes: [ {{ url: \"nats://127.0.0.1:{leaves}\" }} ] }}");
    let leaf = Nats::start_at(free_port(), &remote);
    let (here, there) = (mounted(&bucket, &hub, ""), mounted(&bucket, &leaf, ""));
    let _relay = hub.relay(&bucket.name);
    until_it_lives(&there);
    assert_eq!(text(&there, "file"), "1");
    is_believed(&there, "file");
    fs::write(here.join("file"), "22").unwrap();
    eventually("the change is seen", || text(&there, "file") == "22");
    assert!(lives(&there));
    drop(hub);
    eventually("the hub is missed", || !lives(&there));
}
