//! The limits: what the raw files and bare requests give on the same machine in the same run.

use std::process::{Command, Stdio};
use std::time::Instant;

use futures_util::{StreamExt, stream};
use weir_tests::{minio, runtime};

use crate::stage::{BIG, PART, Stage, upload};

/// Requests in flight.
const IN_FLIGHT: usize = 8;
const MIB: f64 = 1048576.0;

/// The big file by ranged GETs, eight in flight, thrown away; MiB a second. By curl and by
/// aws-sdk-s3; the faster one is the limit.
pub(crate) fn gets(stage: &Stage) -> f64 {
    curl_gets(stage).max(sdk_gets(stage))
}

fn sdk_gets(stage: &Stage) -> f64 {
    let start = Instant::now();
    let gets = (0..stage.sizes.big / PART).map(|n| async move {
        let range = format!("bytes={}-{}", n * PART, (n + 1) * PART - 1);
        let request = stage.client.get_object().bucket(&stage.bucket).key(BIG).range(range);
        let mut body = request.send().await.unwrap().body;
        let mut total = 0;
        while let Some(piece) = body.next().await {
            total += piece.unwrap().len() as u64;
        }
        assert_eq!(total, PART);
    });
    runtime().block_on(stream::iter(gets).buffer_unordered(IN_FLIGHT).count());
    stage.sizes.big as f64 / MIB / start.elapsed().as_secs_f64()
}

fn curl_gets(stage: &Stage) -> f64 {
    let mut config = String::new();
    for n in 0..stage.sizes.big / PART {
        config.push_str(&format!(
            "next\nurl=\"{}/{}/{BIG}\"\nrange=\"{}-{}\"\noutput=\"/dev/null\"\nfail\n\
             aws-sigv4=\"aws:amz:us-east-1:s3\"\nuser=\"{}:{}\"\n",
            stage.url,
            stage.bucket,
            n * PART,
            (n + 1) * PART - 1,
            minio::USER,
            minio::PASSWORD,
        ));
    }
    let file = stage.path("curl.conf");
    std::fs::write(&file, config.trim_start_matches("next\n")).unwrap();
    let start = Instant::now();
    let status = Command::new("curl")
        .args(["--silent", "--parallel", "--parallel-max", "8", "--config"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status {
        Ok(status) => assert!(status.success(), "curl: {status}"),
        Err(_) => return 0.0,
    }
    stage.sizes.big as f64 / MIB / start.elapsed().as_secs_f64()
}

/// The small files by GETs, eight in flight, connections kept; files a second.
pub(crate) fn small_gets(stage: &Stage) -> f64 {
    let keys = stage.small_keys();
    let start = Instant::now();
    let gets = keys.iter().map(|key| async move {
        let request = stage.client.get_object().bucket(&stage.bucket).key(key);
        let body = request.send().await.unwrap().body.collect().await.unwrap();
        assert_eq!(body.into_bytes().len(), crate::stage::SMALL);
    });
    runtime().block_on(stream::iter(gets).buffer_unordered(IN_FLIGHT).count());
    keys.len() as f64 / start.elapsed().as_secs_f64()
}

/// A bare multipart upload; MiB a second.
pub(crate) fn puts(stage: &Stage, bytes: &bytes::Bytes) -> f64 {
    let start = Instant::now();
    runtime().block_on(upload(&stage.client, &stage.bucket, "limit/upload", bytes));
    let rate = bytes.len() as f64 / MIB / start.elapsed().as_secs_f64();
    stage.clear("limit/");
    rate
}
