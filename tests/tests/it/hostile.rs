//! Endpoints that answer what no S3 server would: the mount goes on.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::io::Errno;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, TestVolume};
use weir_tests::eventually;
use weir_tests::hostile::{self, Answer, Question};
use weir_tests::mount::{Mount, peak_mib};

/// A file of a TiB that could be, and three of sizes that none has.
const FILES: [(&str, i64); 5] =
    [("small", 5), ("tib", 1 << 40), ("huge", 1 << 62), ("last", i64::MAX), ("below", -5)];

fn listing(prefix: &str, files: &[(&str, i64)], next: &str) -> Answer {
    let contents: String = files
        .iter()
        .map(|(name, size)| {
            format!(
                "<Contents><Key>{prefix}{name}</Key><ETag>\"{name}\"</ETag><Size>{size}</Size>\
                 <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        })
        .collect();
    let truncated = !next.is_empty();
    let token = if truncated {
        format!("<NextContinuationToken>{next}</NextContinuationToken>")
    } else {
        String::new()
    };
    let many = match prefix {
        "" => "<CommonPrefixes><Prefix>many/</Prefix></CommonPrefixes>",
        _ => "",
    };
    let text = format!(
        "<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{token}{contents}{many}</ListBucketResult>"
    );
    hostile::answer("Content-Type: application/xml\r\n", text.as_bytes())
}

fn object(question: &Question, name: &str) -> Answer {
    let Some((_, size)) = FILES.iter().find(|(file, _)| *file == name) else {
        return hostile::not_found();
    };
    let tag = format!("ETag: \"{name}\"\r\n");
    match question.range {
        Some((from, to)) => {
            let body = vec![b'x'; usize::try_from(to - from + 1).unwrap()];
            let range = format!("Content-Range: bytes {from}-{to}/{size}\r\n");
            hostile::answer(&format!("{tag}{range}"), &body)
        }
        None => hostile::answer(&format!("{tag}Content-Length: {size}\r\n"), b""),
    }
}

#[test]
fn sizes_that_no_object_has_are_hidden_and_large_ones_take_no_memory() {
    let mut bucket = Bucket::new(Server::Embedded);
    let name = bucket.name.clone();
    bucket.url = hostile::start(move |question: &Question| {
        let (path, query) = question.target.split_once('?').unwrap_or((&question.target, ""));
        let key = path.trim_start_matches('/').trim_start_matches(&name).trim_start_matches('/');
        if !query.contains("list-type=2") {
            return object(question, key.trim_start_matches("many/"));
        }
        // A directory that is never listed to its end, so that each name is asked for alone.
        let is_below = query.contains("huge") || query.contains("tib");
        match query.contains("prefix=many") {
            true if is_below => listing("many/", &[], ""),
            true => listing("many/", &[("a", 1)], "more"),
            false => listing("", &FILES, ""),
        }
    });
    let mount = Mount::new(&bucket);
    let mut seen: Vec<_> = fs::read_dir(mount.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    seen.sort();
    assert_eq!(seen, ["many", "small", "tib"]);
    let tib = File::open(mount.join("tib")).unwrap();
    assert_eq!(tib.metadata().unwrap().len(), 1 << 40);
    let mut bytes = [0; 4096];
    for offset in [0, 1 << 30, (1 << 40) - 4096] {
        tib.read_exact_at(&mut bytes, offset).unwrap();
        assert_eq!(bytes, [b'x'; 4096]);
    }
    let hidden: f64 = mount
        .metrics()
        .iter()
        .filter(|(name, _)| name.contains("hidden_keys") && name.contains("\"size\""))
        .map(|(_, value)| value)
        .sum();
    assert_eq!(hidden, 3.0);
    // Asked for alone, it is told why.
    assert_eq!(fs::metadata(mount.join("many/tib")).unwrap().len(), 1 << 40);
    let error = fs::metadata(mount.join("many/huge")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::FBIG.raw_os_error()), "{error}");
    assert!(mount.peak_mib() < 1024, "{} MiB", mount.peak_mib());
}

/// A mount of a server that is as it should be but for what it says of `many`, and what came of
/// listing that.
fn list_many(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> (Mount, Errno) {
    let mut bucket = Bucket::new(Server::Embedded);
    bucket.url = hostile::start(move |question: &Question| {
        let (_, query) = question.target.split_once('?').unwrap_or((&question.target, ""));
        match query.contains("list-type=2") {
            true if !query.contains("prefix=many") => listing("", &[("small", 5)], ""),
            true if query.contains("max-keys=1000") => answer(query),
            true => listing("many/", &[("a", 1)], ""),
            false => hostile::not_found(),
        }
    });
    let mount = Mount::new(&bucket);
    let all =
        fs::read_dir(mount.join("many")).and_then(|mut all| all.try_for_each(|e| e.map(drop)));
    let errno = Errno::from_io_error(&all.unwrap_err()).unwrap();
    // It goes on, for all that is as it should be.
    assert_eq!(fs::metadata(mount.join("small")).unwrap().len(), 5);
    (mount, errno)
}

const XML: &str = "Content-Type: application/xml\r\n";
/// What a mount may take for answers of any length: a few of the longest, and itself.
const MOUNT_MIB: u64 = 256;

#[test]
fn answers_without_an_end_take_no_memory() {
    let more = b"<Contents><Key>many/a</Key><Size>1</Size></Contents>";
    let start = b"<ListBucketResult><IsTruncated>false</IsTruncated>";
    let (mount, errno) = list_many(|_| hostile::endless(200, XML, start, more));
    assert_eq!(errno, Errno::IO);
    assert!(mount.peak_mib() < MOUNT_MIB, "{} MiB", mount.peak_mib());
    mount.unmount();

    // Short, and a thousand times more than it says once it is read.
    let start = b"<ListBucketResult><IsTruncated>false</IsTruncated>";
    let (mount, errno) = list_many(|_| {
        let body = [&start[..], &b"<Contents/>".repeat(1_400_000), b"</ListBucketResult>"].concat();
        hostile::answer(XML, &body)
    });
    assert_eq!(errno, Errno::IO);
    assert!(mount.peak_mib() < MOUNT_MIB, "{} MiB", mount.peak_mib());
    mount.unmount();

    let start = b"<Error><Code>InternalError</Code><Message>";
    let (mount, errno) = list_many(|_| hostile::endless(500, XML, start, b"again and "));
    assert_eq!(errno, Errno::IO);
    assert!(mount.peak_mib() < MOUNT_MIB, "{} MiB", mount.peak_mib());
    mount.unmount();

    // A head is never longer than the client's buffer.
    let (mount, errno) = list_many(|_| {
        let head = b"HTTP/1.1 200 OK\r\nX-Long: ".to_vec();
        [head, vec![b'x'; 64 << 20]].concat().into()
    });
    assert_eq!(errno, Errno::IO);
    assert!(mount.peak_mib() < MOUNT_MIB, "{} MiB", mount.peak_mib());
    mount.unmount();
}

#[test]
fn a_listing_that_leads_back_to_an_earlier_page_ends() {
    let (mount, errno) = list_many(|query| {
        let (from, to) = match query {
            _ if query.contains("continuation-token=one") => ("b", "two"),
            _ if query.contains("continuation-token=two") => ("c", "three"),
            _ if query.contains("continuation-token=three") => ("d", "one"),
            _ => ("a", "one"),
        };
        listing("many/", &[(from, 1)], to)
    });
    assert_eq!(errno, Errno::IO);
    mount.unmount();
}

#[test]
fn a_page_of_more_names_than_were_asked_for_is_refused() {
    let names: Vec<String> = (0..3000).map(|n| format!("f{n}")).collect();
    let (mount, errno) = list_many(move |_| {
        let files: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
        listing("many/", &files, "")
    });
    assert_eq!(errno, Errno::IO);
    mount.unmount();
}

/// A version is asked for by its tag, in a header.
#[test]
fn a_tag_that_no_header_can_carry_is_refused() {
    for tag in ["a&#10;b", "a&#13;&#10;x-amz-acl: public-read", "a&#x7f;", "a&#x85;"] {
        let (mount, errno) = list_many(move |_| {
            let page = format!(
                "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>many/a</Key>\
                 <ETag>{tag}</ETag><Size>1</Size><LastModified>2026-01-01T00:00:00.000Z\
                 </LastModified></Contents></ListBucketResult>"
            );
            hostile::answer(XML, page.as_bytes())
        });
        assert_eq!(errno, Errno::IO, "{tag}");
        mount.unmount();
    }
}

#[test]
fn many_answers_at_once_take_no_memory_and_keep_no_other_volume_waiting() {
    const QUESTIONS: usize = 200;
    let good = Bucket::new(Server::Embedded);
    good.put("small", "bytes");
    let stalled = Arc::new(AtomicUsize::new(0));
    let mut bucket = Bucket::new(Server::Embedded);
    let counted = stalled.clone();
    bucket.url = hostile::start(move |question: &Question| {
        let (_, query) = question.target.split_once('?').unwrap_or((&question.target, ""));
        let dirs: String = (0..QUESTIONS)
            .map(|n| format!("<CommonPrefixes><Prefix>d{n}/</Prefix></CommonPrefixes>"))
            .collect();
        match query.contains("list-type=2") {
            true if query.contains("prefix=d") => {
                counted.fetch_add(1, Ordering::Relaxed);
                hostile::stalled(XML, b"<ListBucketResult><Name>", 15 << 20)
            }
            true if query.contains("max-keys=1&") || query.ends_with("max-keys=1") => {
                listing("", &[], "")
            }
            true => {
                let page = format!(
                    "<ListBucketResult><IsTruncated>false</IsTruncated>{dirs}</ListBucketResult>"
                );
                hostile::answer(XML, page.as_bytes())
            }
            false => hostile::not_found(),
        }
    });
    let node = CsiNode::new(&good);
    let mine = node.publish(&TestVolume::new(&good, "mine")).unwrap();
    let others = TestVolume { id: "others".into(), ..TestVolume::new(&bucket, "others") };
    let others = others.attribute("endpointUrl", &bucket.url).keys("key", "secret");
    let others = node.publish(&others).unwrap();
    let questions: Vec<_> = (0..QUESTIONS)
        .map(|n| {
            // Names, too: each is asked for by a listing of at most two.
            let name = others.join(format!("d{n}/{}", if n % 2 == 0 { "" } else { "name" }));
            thread::spawn(move || match n % 2 {
                0 => fs::read_dir(name).map(drop).unwrap_err(),
                _ => fs::metadata(name).unwrap_err(),
            })
        })
        .collect();
    eventually("all have asked", || stalled.load(Ordering::Relaxed) >= QUESTIONS);
    assert_eq!(fs::read(mine.join("small")).unwrap(), b"bytes");
    assert!(questions.iter().any(|question| !question.is_finished()), "that was not meanwhile");
    questions.into_iter().for_each(|question| drop(question.join().unwrap()));
    let peak = peak_mib(node.node_pid());
    assert!(peak < MOUNT_MIB, "{peak} MiB");
}
