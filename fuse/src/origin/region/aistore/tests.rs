//! A cluster as far as first requests meet it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;

use super::super::RegionKind;
use super::super::body::all_of;
use super::super::scripted::{answer, serve, settings};
use super::super::{EvictionLog, Regions};
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
/// A cluster that answers so when it is asked what became of its jobs, the last time again and again.
/// Counts jobs and questions.
async fn cluster_of_jobs(
    answers: &'static [(u16, &'static str)],
) -> (String, [Arc<AtomicUsize>; 2]) {
    let counts = [(); 2].map(|()| Arc::<AtomicUsize>::default());
    let [jobs, asked] = counts.clone();
    let proxy = serve(move |request| {
        let answer = match request.as_str() {
            "DELETE /v1/buckets/b?provider=aws" => {
                jobs.fetch_add(1, Ordering::Relaxed);
                answer(200, "", "job-1")
            }
            "GET /v1/cluster?what=status" => {
                let number = asked.fetch_add(1, Ordering::Relaxed);
                let (status, body) = answers[number.min(answers.len() - 1)];
                answer(status, "", body)
            }
            _ => answer(404, "", ""),
        };
        async move { answer }
    });
    (format!("http://{}", proxy.await), counts)
}

#[tokio::test]
async fn what_is_to_be_forgotten_is_once_the_job_has_ended() {
    const ENDED: &str = r#"{"uuid": "job-1", "err": "1 object not found", "end_time": 7}"#;
    const RUNS: &str = r#"{"uuid": "job-1", "err": "", "end_time": 0, "aborted": false}"#;
    const ABORTED: &str = r#"{"uuid": "job-1", "err": "", "end_time": 7, "aborted": true}"#;
    for (answers, is_forgotten, times) in [
        (&[(200, RUNS), (200, RUNS), (200, ENDED)][..], true, 3),
        (&[(200, RUNS), (200, ABORTED)], false, 2),
        (&[(500, "")], false, 1),
        // Who may not look at the cluster, or asks one that has forgotten the job.
        (&[(403, "")], true, 1),
        (&[(404, "")], true, 1),
        (&[(200, "?")], true, 1),
    ] {
        let (url, [_, asked]) = cluster_of_jobs(answers).await;
        let settings = settings(RegionKind::AiStore, url);
        let store = AiStore::new(crate::blocking::MAY, &settings, "b").unwrap();
        assert_eq!(store.forget(&["k"]).await.is_ok(), is_forgotten, "{answers:?}");
        assert_eq!(asked.load(Ordering::Relaxed), times, "{answers:?}");
    }
}

/// Found in a log.
struct Found(Forgotten);

type Forgotten = Arc<std::sync::Mutex<Vec<(String, Box<str>)>>>;

#[async_trait]
impl EvictionLog for Found {
    async fn found(&self) -> Vec<(Box<str>, Box<str>)> {
        vec![("b".into(), "k".into()), ("b".into(), "a//b".into())]
    }

    async fn note(&self, _: &str, _: &str) {}

    fn forget(&self, bucket: &str, keys: Vec<Box<str>>) {
        let forgotten = keys.into_iter().map(|key| (bucket.to_owned(), key));
        self.0.lock().unwrap().extend(forgotten);
    }
}

#[tokio::test]
async fn what_a_log_has_is_sent_though_nobody_uses_the_bucket() {
    let (url, [jobs, _]) = cluster_of_jobs(&[(404, "")]).await;
    let metrics = Arc::new(crate::metrics::Metrics::new().unwrap());
    let regions = Regions::new(vec![settings(RegionKind::AiStore, url)], metrics.clone());
    let forgotten = Forgotten::default();
    regions.remember(Arc::new(Found(forgotten.clone()))).await;
    drop(regions);
    let is_told = async || {
        while forgotten.lock().unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), is_told()).await.unwrap();
    let of = |key: &str| ("b".to_owned(), Box::<str>::from(key));
    assert_eq!(*forgotten.lock().unwrap(), [of("a//b"), of("k")]);
    assert_eq!((jobs.load(Ordering::Relaxed), metrics.region_evictions_pending.get()), (1, 0));
}

/// A server that keeps what it has is not told, and what a log has of it is of no use.
#[tokio::test]
async fn what_a_log_has_of_another_kind_of_region_is_forgotten() {
    let server = serve(|_| async { answer(404, "", "") }).await;
    let metrics = Arc::new(crate::metrics::Metrics::new().unwrap());
    let regions = Regions::new(vec![settings(RegionKind::S3, format!("http://{server}"))], metrics);
    let forgotten = Forgotten::default();
    regions.remember(Arc::new(Found(forgotten.clone()))).await;
    assert_eq!(forgotten.lock().unwrap().len(), 2);
}
