//! Answers that no S3 server should give, and those that some do.

use std::sync::Arc;

use aws_credential_types::Credentials;
use aws_sdk_s3::config::{BehaviorVersion, Region};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::retry::RetryConfig;
use futures_util::StreamExt;
use weir_fuzz::told::Told;
use weir_fuzz::{inputs, near};

use super::bound::Bounded;
use super::*;
use crate::metrics::Metrics;
use crate::model::blocks::OBJECT_MAX;
use crate::model::key::{DirPrefix, check_name};
use crate::model::version::ETag;
use crate::namespace::hidden::HiddenKeys;
use crate::namespace::listing::Listing;

const CORPUS: &[u8] = include_bytes!("../../../tests/corpus/s3-answers");
fn origin(told: &Told) -> S3Origin {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url("http://s3.example")
        .credentials_provider(Credentials::new("key", "secret", None, None, "test"))
        .retry_config(RetryConfig::disabled())
        .force_path_style(true)
        .http_client(SharedHttpClient::new(Bounded(told.client())));
    let settings = S3Settings { bucket: "b".into(), upload_checksums: true, ..Default::default() };
    S3Origin::new(settings, Clients::new(config), "http://s3.example")
}

/// Texts go into logs, Events and onto terminals.
fn is_one_line(error: &OriginError) {
    let text = error.to_string();
    assert!(text.len() <= 1024, "{} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

async fn listed(origin: &S3Origin, hidden: &HiddenKeys) -> Result<(), OriginError> {
    let prefix = DirPrefix::parse("dir/").unwrap();
    let request =
        ListRequest { prefix: "dir/".into(), delimited: true, token: None, max_keys: 1000 };
    let page = origin.list(&request).await?;
    let mut listing = Listing::default();
    listing.add(&prefix, page, hidden);
    assert!(listing.entries.len() <= 1000);
    for (name, info) in &listing.entries {
        check_name(name).unwrap();
        let Some(info) = info else { continue };
        assert!(info.size <= OBJECT_MAX);
        // The tag goes into a request, whatever is in it.
        let Some(version) = info.version() else { continue };
        if let Err(error) = origin.get("k", &version, 0..5).await {
            is_one_line(&error);
        }
    }
    Ok(())
}

async fn got(origin: &S3Origin) -> Result<(), OriginError> {
    let etag = ETag::new("\"e\"").unwrap();
    let version = Version { etag: etag.clone(), size: 5 };
    let mut body = origin.get("k", &version, 0..5).await?;
    assert_eq!(body.etag, etag);
    let mut bytes = 0;
    while let Some(piece) = body.pieces.next().await {
        bytes += piece?.len();
    }
    assert_eq!(bytes, 5);
    Ok(())
}

async fn ask(origin: &S3Origin, what: &[u8], hidden: &HiddenKeys) -> Result<(), OriginError> {
    let write = WriteIntent { condition: Condition::Absent, writer: "w".into() };
    let source = || CopySource { key: "k".into(), etag: ETag::any(), size: 5 };
    match what {
        b"list" => listed(origin, hidden).await,
        b"get" => got(origin).await,
        b"head" => {
            let info = origin.head("k").await?;
            // Within what is done with it.
            let _ = info.mtime + Duration::from_secs(3600);
            assert!(info.writer.is_none_or(|writer| !writer.contains(char::is_control)));
            Ok(())
        }
        b"uploads" => {
            let found = origin.list_uploads("dir/k").await?;
            assert!(found.len() <= Told::TIMES * 1000);
            Ok(())
        }
        b"put" => origin.put("k", UploadBody::of("hello"), &write).await.map(drop),
        b"create" => {
            let id = origin.create_upload("k", "w", PartKind::Mixed).await?;
            assert!(origin.copies().contains(&id));
            origin.copies().clear();
            Ok(())
        }
        b"complete" => {
            let part = Part { number: 1, etag: "\"e\"".into(), checksum: None };
            origin.complete_upload("k", "u", &[part], &write).await.map(drop)
        }
        _ => origin.copy(&source(), "to", &Condition::Always).await.map(drop),
    }
}

#[test]
fn whatever_an_endpoint_answers_is_a_valid_value_or_an_error_of_one_line() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let told = Told::default();
    let origin = origin(&told);
    let hidden = HiddenKeys::new(Arc::new(Metrics::new().unwrap()));
    near(&inputs(CORPUS), |input| {
        let at = input.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        told.tell(input.get(at + 1..).unwrap_or_default());
        if let Err(error) = runtime.block_on(ask(&origin, &input[..at], &hidden)) {
            is_one_line(&error);
        }
    });
}
