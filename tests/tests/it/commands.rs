//! The commands around a mount.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use weir_node::admin::NodeStatus;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::mount::{Mount, Options, cache_dir, is_mounted, program, weir};
use weir_tests::shell::sh;
use weir_tests::{eventually, minio};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn mount_returns_once_it_answers_and_umount_once_all_is_stored() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("hello", "world");
    let (dir, cache) = (tempfile::tempdir().unwrap(), cache_dir());
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let run_dir = dir.path().join("run");
    let call =
        |args: &[&str]| weir(&bucket).args(args).env("WEIR_RUN_DIR", &run_dir).output().unwrap();
    let source = format!("s3://{}", bucket.name);
    let (mnt_text, cache_text) = (mnt.to_str().unwrap(), cache.path().to_str().unwrap());
    let args =
        ["mount", &source, mnt_text, "--endpoint-url", &bucket.url, "--cache-dir", cache_text];
    let output = call(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(is_mounted(&mnt));
    assert_eq!(fs::read(mnt.join("hello")).unwrap(), b"world");

    let status = call(&["status", "--output", "json"]);
    let nodes: Vec<NodeStatus> = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(nodes[0].mounts[0].mountpoint, mnt);
    assert_eq!(nodes[0].counters.fetched_bytes, 5);
    let status = text(&call(&["status"]).stdout);
    for word in [
        "origin     answers",
        "hits",
        "stored",
        "uploads",
        "100.0 % from the origin (5 B)",
        mnt_text,
    ] {
        assert!(status.contains(word), "{word}: {status}");
    }

    fs::write(mnt.join("written"), "bytes").unwrap();
    let held = fs::File::open(mnt.join("hello")).unwrap();
    let busy = call(&["umount", mnt_text]);
    assert!(busy.status.code() == Some(6) && text(&busy.stderr).contains("in use"));
    drop(held);
    // A process that another test starts has all descriptors of this one until its exec.
    eventually("nobody uses the mount", || {
        let output = call(&["umount", mnt_text]);
        assert!(matches!(output.status.code(), Some(0 | 6)), "{}", text(&output.stderr));
        output.status.success()
    });
    assert!(!is_mounted(&mnt));
    assert_eq!(text(&call(&["status"]).stdout), "nothing is mounted\n");
    let again = call(&["umount", mnt_text]);
    assert!(again.status.code() == Some(6) && text(&again.stderr).contains("no mount of Weir"));
}

#[test]
fn a_line_of_fstab_mounts() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("hello", "world");
    let (dir, cache) = (tempfile::tempdir().unwrap(), cache_dir());
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let helper = dir.path().join("mount.weir");
    std::os::unix::fs::symlink(program(), &helper).unwrap();
    let options = format!(
        "ro,_netdev,endpoint-url={},cache-dir={},log-level=warn",
        bucket.url,
        cache.path().display()
    );
    let output = Command::new(&helper)
        .arg(format!("s3://{}", bucket.name))
        .arg(&mnt)
        .args(["-o", &options])
        .env("AWS_ACCESS_KEY_ID", &bucket.access_key)
        .env("AWS_SECRET_ACCESS_KEY", &bucket.secret_key)
        .env("WEIR_RUN_DIR", dir.path().join("run"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read(mnt.join("hello")).unwrap(), b"world");
    assert!(fs::write(mnt.join("x"), "x").is_err());
    sh(dir.path(), "umount mnt");
}

#[test]
fn metrics_have_the_names_that_dashboards_use() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "x");
    let mount = Mount::new(&bucket);
    fs::read(mount.join("f")).unwrap();
    let metrics = mount.metrics();
    for name in [
        "weir_cache_hits_total",
        "weir_cache_misses_total",
        "weir_cache_evictions_total",
        "weir_cache_bytes",
        "weir_fuse_request_duration_seconds_count{op=\"open\"}",
        "weir_s3_request_duration_seconds_count{op=\"GetObject\",status=\"ok\"}",
    ] {
        assert!(metrics.contains_key(name), "{name}");
    }
    assert_eq!(metrics["weir_cache_misses_total"], 1.0);
    assert!(mount.http("/other").starts_with("HTTP/1.1 404"));
}

#[test]
fn a_signal_unmounts_and_stores_what_is_left() {
    let bucket = Bucket::new(Server::Minio);
    let mount = Mount::new(&bucket);
    let path = mount.path();
    fs::write(mount.join("f"), "x").unwrap();
    mount.signal(rustix::process::Signal::TERM);
    eventually("the mount is gone", || !is_mounted(&path));
    assert_eq!(bucket.get("f").unwrap(), b"x");
}

#[test]
fn log_lines_are_json_when_asked_and_hold_no_secret() {
    let bucket = Bucket::new(Server::Minio);
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let flags = format!("--log-format json --log-level trace --log-file {}", log.display());
    let mount = Mount::flags(&bucket, &flags);
    fs::write(mount.join("f"), "x").unwrap();
    mount.unmount();
    let lines = fs::read_to_string(&log).unwrap();
    assert!(lines.lines().count() > 1);
    for line in lines.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    assert!(!lines.contains(&bucket.secret_key));
}

/// What the object `f` holds, read through a mount of an endpoint with these variables set; or what
/// the mount says instead.
fn mounted_with(
    bucket: &Bucket,
    endpoint: &str,
    variables: &[(&str, &dyn AsRef<OsStr>)],
) -> Result<Vec<u8>, String> {
    let (dir, cache) = (tempfile::tempdir().unwrap(), cache_dir());
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let call = |args: &[&OsStr]| {
        let mut command = weir(bucket);
        command.args(args).env("WEIR_RUN_DIR", dir.path().join("run"));
        variables.iter().for_each(|(name, value)| {
            command.env(name, value.as_ref());
        });
        command.output().unwrap()
    };
    let source = format!("s3://{}", bucket.name);
    let output = call(&[
        "mount".as_ref(),
        source.as_ref(),
        mnt.as_ref(),
        "--endpoint-url".as_ref(),
        endpoint.as_ref(),
        "--cache-dir".as_ref(),
        cache.path().as_ref(),
    ]);
    if !output.status.success() {
        return Err(text(&output.stderr));
    }
    let bytes = fs::read(mnt.join("f")).unwrap();
    assert!(call(&["umount".as_ref(), mnt.as_ref()]).status.success());
    Ok(bytes)
}

#[test]
fn the_proxy_of_the_environment_is_used_for_s3() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    // A name that nobody can resolve; the server takes the request as a proxy would.
    let endpoint = "http://s3.corp.invalid:9000";
    for name in ["HTTP_PROXY", "http_proxy"] {
        assert_eq!(mounted_with(&bucket, endpoint, &[(name, &bucket.url)]).unwrap(), b"bytes");
    }
    let without = [("HTTP_PROXY", &bucket.url as &dyn AsRef<OsStr>), ("NO_PROXY", &"corp.invalid")];
    let told = mounted_with(&bucket, endpoint, &without).unwrap_err();
    assert!(told.contains("cannot be reached"), "{told}");
}

#[test]
fn an_endpoint_over_tls_needs_an_authority_that_is_trusted() {
    let data = tempfile::tempdir_in("/var/tmp").unwrap();
    let (minio, certificates) = minio::start_tls(data.keep());
    let authority = certificates.path().join("ca.crt");
    let bucket = Bucket::over_tls(&minio, &authority);
    bucket.put("f", "bytes");
    let options = Options::default().flag("--ca-bundle").flag(authority.to_str().unwrap());
    let mount = Mount::with(&bucket, &options);
    assert_eq!(std::fs::read(mount.join("f")).unwrap(), b"bytes");
    std::fs::write(mount.join("g"), "written").unwrap();
    assert_eq!(bucket.get("g").unwrap(), b"written");
    mount.unmount();
    // As the other tools of S3 take it.
    let variable = mounted_with(&bucket, &bucket.url, &[("AWS_CA_BUNDLE", &authority)]);
    assert_eq!(variable.unwrap(), b"bytes");
    let (dir, cache) = (tempfile::tempdir().unwrap(), cache_dir());
    let output = weir(&bucket)
        .args(["mount", &format!("s3://{}", bucket.name), dir.path().to_str().unwrap()])
        .args(["--foreground", "--endpoint-url", &bucket.url, "--cache-dir"])
        .arg(cache.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{told}");
    assert!(told.contains("certificate"), "{told}");
}

/// Puts a file into `lost/` of a cache directory, as a mount that could not store it does.
fn lose(cache: &Path, id: &str, bytes: &[u8], record: Option<(&str, &str)>) {
    let lost = cache.join("lost");
    fs::create_dir_all(&lost).unwrap();
    fs::write(lost.join(id), bytes).unwrap();
    if let Some((bucket, key)) = record {
        let record = serde_json::json!({
            "version": 1, "bucket": bucket, "key": key, "cause": "access denied (AccessDenied)",
            "size": bytes.len(), "time_ms": 1_700_000_000_000_u64,
        });
        fs::write(lost.join(format!("{id}.json")), record.to_string()).unwrap();
    }
}

#[test]
fn what_was_lost_is_shown_stored_and_removed_beside_a_running_mount() {
    let bucket = Bucket::new(Server::Minio);
    let cache = cache_dir();
    let mount = Mount::with(&bucket, &Options::default().cache(cache.path()));
    let large = weir_tests::random_bytes(1, 20 << 20);
    let own = format!("{}\u{1f}{}", bucket.url, bucket.name);
    lose(cache.path(), "01", b"small", Some((&own, "dir/small")));
    lose(cache.path(), "02", &large, Some((&own, "large")));
    lose(cache.path(), "03", b"nobody knows", None);
    bucket.put("taken", "theirs");
    bucket.put("taken-large", "theirs");
    lose(cache.path(), "04", b"mine", Some((&own, "taken")));
    lose(cache.path(), "05", &large, Some((&own, "taken-large")));
    assert_eq!(mount.status().lost.files, 5);
    let dir = ["--cache-dir", cache.path().to_str().unwrap()];
    let call = |args: &[&str]| {
        let output = weir(&bucket).arg("lost").args(args).args(dir).output().unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (code, shown, _) = call(&["list"]);
    let line = |id: &str| shown.lines().find(|line| line.starts_with(id)).unwrap().to_owned();
    assert!(code == 0 && line("02").contains("20.0 MiB") && line("03").contains("(unknown)"));
    assert!(line("01").contains("dir/small") && line("01").contains("AccessDenied"), "{shown}");
    let (_, json, _) = call(&["list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[0]["key"], &json[0]["size"]), (&"dir/small".into(), &5.into()));

    let (code, said, _) = call(&["restore", "01", "02"]);
    assert!(code == 0 && said.contains("dir/small"), "{said}");
    assert_eq!(bucket.get("dir/small").unwrap(), b"small");
    assert!(bucket.get("large").unwrap() == large);
    for id in ["04", "05"] {
        let (code, _, said) = call(&["restore", id]);
        assert!(code == 4 && said.contains("there already") && said.contains("--to"), "{said}");
    }
    assert_eq!(bucket.get("taken").unwrap(), b"theirs");
    assert_eq!(bucket.get("taken-large").unwrap(), b"theirs");
    assert_eq!(bucket.uploads_of("taken-large"), 0);
    let (code, _, said) = call(&["restore", "03"]);
    assert!(code == 2 && said.contains("--to"), "{said}");
    let to = format!("s3://{}/found", bucket.name);
    let (code, _, said) = call(&["restore", "03", "--to", &to, "--endpoint-url", &bucket.url]);
    assert!(code == 0, "{said}");
    assert_eq!(bucket.get("found").unwrap(), b"nobody knows");
    let (code, _, said) = call(&["restore", "06"]);
    assert!(code == 2 && said.contains("06"), "{said}");

    assert_eq!(call(&["rm", "04"]).0, 0);
    assert_eq!(mount.status().lost.files, 1);
    assert_eq!(call(&["rm", "--all"]).0, 0);
    assert_eq!(fs::read_dir(cache.path().join("lost")).unwrap().count(), 0);
    assert_eq!(call(&["list"]).1, "nothing is lost\n");
}
