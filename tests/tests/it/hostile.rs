//! Endpoints that answer what no S3 server would: the mount goes on.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use weir_tests::bucket::{Bucket, Server};
use weir_tests::hostile::{self, Question};
use weir_tests::mount::Mount;

/// A file of a TiB that could be, and three of sizes that none has.
const FILES: [(&str, i64); 5] =
    [("small", 5), ("tib", 1 << 40), ("huge", 1 << 62), ("last", i64::MAX), ("below", -5)];

fn listing(prefix: &str, files: &[(&str, i64)], next: &str) -> Vec<u8> {
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

fn not_found() -> Vec<u8> {
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()
}

fn object(question: &Question, name: &str) -> Vec<u8> {
    let Some((_, size)) = FILES.iter().find(|(file, _)| *file == name) else { return not_found() };
    let tag = format!("ETag: \"{name}\"\r\n");
    match question.range {
        Some((from, to)) => {
            let body = vec![b'x'; usize::try_from(to - from + 1).unwrap()];
            hostile::answer(&tag, &body)
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
    let status = fs::read_to_string(format!("/proc/{}/status", mount.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 1 << 20, "{kib} KiB");
}
