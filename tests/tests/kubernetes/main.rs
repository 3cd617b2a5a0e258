//! A real kubelet and API server, the real chart, and pods that read and write.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod edge;
mod gpus;
mod lifecycle;
mod rights;
mod roles;
mod volumes;

use std::path::Path;
use std::sync::MutexGuard;

use serde_json::json;
use weir_tests::bucket::Bucket;
use weir_tests::cluster::{Cluster, cluster};

const MIB: usize = 1 << 20;

/// The cluster, with Weir installed for this bucket's credentials.
pub(crate) fn installed(bucket: &Bucket) -> MutexGuard<'static, Cluster> {
    let cluster = cluster();
    let namespace =
        "{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"weir\"}}";
    cluster.apply(namespace);
    cluster.apply(
        &json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "weir-credentials", "namespace": "weir"},
            "stringData": {"key_id": bucket.access_key, "access_key": bucket.secret_key},
        })
        .to_string(),
    );
    cluster.install(&cluster.values());
    cluster
}

/// An example, for this bucket, with busybox in place of big images.
pub(crate) fn example(name: &str, bucket: &Bucket) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    text.replace("bucketName: assets", &format!("bucketName: {}", bucket.name))
        .replace("image: busybox", "image: busybox:local")
        .replace(
            "image: nvcr.io/nim/meta/llama-3.1-8b-instruct:latest",
            "image: busybox:local\n          command: [sleep, infinity]",
        )
        .replace("key_id: CHANGE-ME", &format!("key_id: {}", bucket.access_key))
        .replace("access_key: CHANGE-ME", &format!("access_key: {}", bucket.secret_key))
}

pub(crate) fn md5(bytes: &[u8]) -> String {
    use std::io::Write;
    let mut child = std::process::Command::new("md5sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = child.wait_with_output().unwrap().stdout;
    String::from_utf8(out).unwrap().split(' ').next().unwrap().to_owned()
}

/// No session, no target and no upload of Weir is left on the node.
pub(crate) fn nothing_is_left(cluster: &Cluster) {
    cluster.eventually("no mount is left", |cluster| {
        let table = cluster.on_node(&["cat", "/proc/self/mountinfo"]);
        // What others on the machine have mounted is none of the cluster's.
        let table = String::from_utf8_lossy(&table.stdout).into_owned();
        !table.lines().any(|line| line.contains("fuse.weir") && line.contains("/var/lib/kubelet/"))
    });
    let sessions = "/var/lib/kubelet/plugins/s3.csi.weir.dev-sessions";
    let left = cluster.on_node(&["ls", sessions]);
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
}

/// The cluster, with the pod of the static example, which has all of the bucket at /assets; and
/// its manifest.
pub(crate) fn with_static_pod(bucket: &Bucket) -> (MutexGuard<'static, Cluster>, String) {
    let cluster = installed(bucket);
    let manifest = example("static.yaml", bucket);
    cluster.apply(&manifest);
    cluster.until_ready("static");
    (cluster, manifest)
}

/// A field of the node plugin's pod.
pub(crate) fn node_pod(cluster: &Cluster, field: &str) -> String {
    let (label, path) =
        ("app.kubernetes.io/component=node", format!("jsonpath={{.items[0].{field}}}"));
    cluster.kubectl(&["get", "pods", "-n", "weir", "-l", label, "-o", &path])
}

/// Bytes that the node fetched so far.
pub(crate) fn fetched(cluster: &Cluster) -> u64 {
    let address = node_pod(cluster, "status.podIP");
    let page = cluster.on_node(&["curl", "-s", &format!("http://{address}:9464/metrics")]);
    let page = String::from_utf8(page.stdout).unwrap();
    let line = page.lines().find(|line| line.starts_with("weir_s3_fetched_bytes_total"));
    line.unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}
