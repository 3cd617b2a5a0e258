//! Bad input: one line that says what, where and what to do; a code by kind; nothing mounted.

use std::fs;
use std::path::Path;
use std::process::Output;

use weir_tests::bucket::{Bucket, Server};
use weir_tests::mount::{Mount, cache_dir, is_mounted, weir};
use weir_tests::servers::free_port;
use weir_tests::tmpfs::Tmpfs;

/// What is wrong with a call.
struct Case<'a> {
    source: String,
    mountpoint: &'a Path,
    flags: Vec<String>,
    env: Vec<(&'a str, &'a str)>,
}

fn refused(bucket: &Bucket, case: &Case<'_>, code: i32, words: &[&str]) {
    let output: Output = weir(bucket)
        .args(["mount", &case.source])
        .arg(case.mountpoint)
        .args(&case.flags)
        .envs(case.env.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if is_mounted(case.mountpoint) {
        let _ = weir_fuse::adapter::mount::unmount(case.mountpoint, true);
        panic!("mounted all the same: {:?}", case.flags);
    }
    assert_eq!(output.status.code(), Some(code), "{:?}: {said}", case.flags);
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
    let line = said.lines().last().unwrap_or_default();
    assert!(line.starts_with("weir: "), "{said}");
    let secrets = [&bucket.secret_key, "HUSH"];
    assert!(!said.contains("panicked") && !secrets.iter().any(|s| said.contains(s)), "{said}");
}

#[test]
fn every_wrong_setting_is_named_with_its_code() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("file", "x");
    let (cache, mnt) = (cache_dir(), tempfile::tempdir().unwrap());
    let good = format!("s3://{}", bucket.name);
    let flags = |more: &[&str]| {
        let base = ["--endpoint-url", &bucket.url, "--cache-dir", cache.path().to_str().unwrap()];
        base.iter().chain(more).map(|s| (*s).to_owned()).collect::<Vec<_>>()
    };
    let case = |source: &str, flags: Vec<String>| Case {
        source: source.to_owned(),
        mountpoint: mnt.path(),
        flags,
        env: Vec::new(),
    };
    let wrong = case("s3://no-such-bucket-here", flags(&[]));
    refused(&bucket, &wrong, 4, &["no-such-bucket-here", "does not exist"]);
    let wrong = case(&format!("{good}/file"), flags(&[]));
    refused(&bucket, &wrong, 4, &["file is an object"]);
    let mut wrong = case(&good, flags(&[]));
    wrong.env = vec![("AWS_SECRET_ACCESS_KEY", "not-the-secret")];
    refused(&bucket, &wrong, 3, &["SignatureDoesNotMatch", "credentials"]);
    wrong.env = vec![("AWS_ACCESS_KEY_ID", "nobody")];
    refused(&bucket, &wrong, 3, &["InvalidAccessKeyId"]);
    let mut wrong = case(&good, flags(&["--profile", "no-such-profile"]));
    wrong.env =
        vec![("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")];
    refused(&bucket, &wrong, 3, &["no credentials", "--no-sign-request"]);
    let wrong = case("not-a-url", flags(&[]));
    refused(&bucket, &wrong, 2, &["s3://BUCKET"]);
    let wrong = case(&good, flags(&["--no-sign-request", "--profile", "x"]));
    refused(&bucket, &wrong, 2, &["--profile"]);
    let wrong = case(&good, flags(&["--metrics-listen", "192.0.2.1:1"]));
    refused(&bucket, &wrong, 2, &["--metrics-listen 192.0.2.1:1"]);
}

#[test]
fn an_endpoint_that_is_none_is_named() {
    let bucket = Bucket::new(Server::Minio);
    let (cache, mnt) = (cache_dir(), tempfile::tempdir().unwrap());
    let source = format!("s3://{}", bucket.name);
    let case = |url: &str| Case {
        source: source.clone(),
        mountpoint: mnt.path(),
        flags: ["--endpoint-url", url, "--cache-dir", cache.path().to_str().unwrap()]
            .map(str::to_owned)
            .to_vec(),
        env: Vec::new(),
    };
    let (user, port) = ("KEY:HUSH", free_port());
    let with_key = case(&format!("http://{user}@127.0.0.1:{port}"));
    refused(&bucket, &with_key, 2, &["--endpoint-url", "environment or a profile"]);
    let nobody = format!("http://127.0.0.1:{port}");
    refused(&bucket, &case(&nobody), 5, &[&nobody, "cannot be reached"]);
    // A server that speaks HTTP, but not S3.
    let port = free_port();
    let page = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for stream in page.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = std::io::Read::read(&mut stream, &mut request);
            let body = "<html>hello</html>";
            let _ = std::io::Write::write_all(
                &mut stream,
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                    .as_bytes(),
            );
        }
    });
    let html = format!("http://127.0.0.1:{port}");
    refused(&bucket, &case(&html), 5, &[&html, "S3 server"]);
    let mut regionless = case("");
    regionless.flags = vec!["--cache-dir".into(), cache.path().to_str().unwrap().into()];
    regionless.env = vec![("AWS_CONFIG_FILE", "/dev/null")];
    refused(&bucket, &regionless, 2, &["--region"]);
}

#[test]
fn a_mountpoint_that_cannot_be_used_is_named() {
    let bucket = Bucket::new(Server::Minio);
    let (cache, dir) = (cache_dir(), tempfile::tempdir().unwrap());
    let source = format!("s3://{}", bucket.name);
    let flags = ["--endpoint-url", &bucket.url, "--cache-dir", cache.path().to_str().unwrap()];
    let flags = flags.map(str::to_owned).to_vec();
    let case =
        |mountpoint| Case { source: source.clone(), mountpoint, flags: flags.clone(), env: vec![] };
    let missing = dir.path().join("missing");
    refused(&bucket, &case(&missing), 6, &["missing", "make the directory"]);
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious"), "x").unwrap();
    refused(&bucket, &case(&full), 6, &["not empty"]);
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    refused(&bucket, &case(&file), 6, &["file"]);
    let mount = Mount::new(&bucket);
    let output =
        weir(&bucket).args(["mount", &source]).arg(mount.path()).args(&flags).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(6) && said.contains("mounted already"), "{said}");
}

#[test]
fn a_cache_directory_that_cannot_be_used_is_named() {
    let bucket = Bucket::new(Server::Minio);
    let mnt = tempfile::tempdir().unwrap();
    let source = format!("s3://{}", bucket.name);
    let case = |dir: &Path, more: &[&str]| {
        let base = ["--endpoint-url", &bucket.url, "--cache-dir", dir.to_str().unwrap()];
        Case {
            source: source.clone(),
            mountpoint: mnt.path(),
            flags: base.iter().chain(more).map(|s| (*s).to_owned()).collect(),
            env: Vec::new(),
        }
    };
    refused(&bucket, &case(Path::new("/proc/nowhere"), &[]), 7, &["/proc/nowhere", "--cache-dir"]);
    let cache = cache_dir();
    refused(&bucket, &case(cache.path(), &["--cache-min-free", "100%"]), 7, &["--cache-min-free"]);

    let small = Tmpfs::new(8);
    refused(&bucket, &case(small.path(), &[]), 7, &["bytes free", "--cache-dir"]);
}
