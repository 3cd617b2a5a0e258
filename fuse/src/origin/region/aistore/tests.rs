//! A cluster as far as first requests meet it.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;

use super::super::RegionKind;
use super::super::body::all_of;
use super::super::scripted::{answer, serve, settings};
use super::*;

const TAG: &str = "900150983cd24fb0d6963f7d28e17f72";

/// Takes its time to say what it is asked beside objects.
async fn cluster() -> String {
    let headers = format!("etag: \"{TAG}\"\r\ncontent-range: bytes 0-2/3\r\n");
    let target = serve(move |_| {
        let answer = answer(206, &headers, "abc");
        async move { answer }
    });
    let (target, registered) = (target.await, Arc::new(AtomicBool::new(false)));
    let proxy = serve(move |request| {
        let registered = registered.clone();
        async move {
            let late = tokio::time::sleep(Duration::from_millis(200));
            match request.as_str() {
                "GET /v1/daemon?what=smap" => {
                    late.await;
                    let net = serde_json::json!({"direct_url": format!("http://{target}")});
                    let map = serde_json::json!({"tmap": {"t": {"public_net": net}}});
                    answer(200, "", &map.to_string())
                }
                "HEAD /v1/buckets/b?provider=aws" => {
                    late.await;
                    registered.store(true, Ordering::Relaxed);
                    answer(200, "", "")
                }
                "GET /s3/b/k" if registered.load(Ordering::Relaxed) => {
                    answer(307, &format!("location: http://{target}/s3/b/k?pid=p\r\n"), "")
                }
                _ => answer(404, "", ""),
            }
        }
    });
    format!("http://{}", proxy.await)
}

#[tokio::test]
async fn first_requests_at_once_wait_for_what_the_cluster_is_asked_beside() {
    let settings = settings(RegionKind::AiStore, cluster().await);
    let store = AiStore::new(crate::blocking::MAY, &settings, "b").unwrap();
    let version = Version { etag: ETag::new(TAG).unwrap(), size: 3 };
    let read = async || all_of(store.get("k", &version, 0..3).await?).await;
    for bytes in join_all((0..8).map(|_| read())).await {
        assert_eq!(bytes.unwrap(), b"abc");
    }
    assert!(matches!(store.get("gone", &version, 0..3).await, Err(OriginError::NotFound)));
}

#[tokio::test]
async fn keys_that_it_takes_for_others_it_cannot_have() {
    let settings = settings(RegionKind::AiStore, "http://127.0.0.1:9".into());
    let store = AiStore::new(crate::blocking::MAY, &settings, "b").unwrap();
    for key in ["a", "a/b", "a b/\u{e4}+%#", ".a/b.", "a...b"] {
        assert!(store.can_have(key), "{key}");
    }
    for key in ["a//b", "/a", "a/", "./a", "a/../b", "a/..", "a?b", "a/b?"] {
        assert!(!store.can_have(key), "{key}");
    }
}
