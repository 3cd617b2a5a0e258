//! The CSI project's own conformance suite against the real services.

use std::fs;
use std::process::Command;

use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::CsiNode;
use weir_tests::tools;

/// Specs that csi-sanity skips by itself for capabilities that the plugin does not have, and one
/// that is left out by name: it publishes a volume on a node after `ControllerPublishVolume`.
#[test]
fn csi_sanity_passes() {
    let bucket = Bucket::new(Server::Minio);
    let mut node = CsiNode::new(&bucket);
    node.start_controller();
    let parameters = node.join("parameters.yaml");
    fs::write(&parameters, format!("bucketName: {}\n", bucket.name)).unwrap();
    fs::create_dir_all(node.pods()).unwrap();
    let ran = Command::new(tools::path("csi-sanity"))
        .arg(format!("--csi.endpoint=unix://{}", node.socket().display()))
        .arg(format!("--csi.controllerendpoint=unix://{}", node.controller_socket().display()))
        .arg(format!("--csi.mountdir={}", node.pods().join("sanity-mount").display()))
        .arg(format!("--csi.stagingdir={}", node.pods().join("sanity-staging").display()))
        .arg(format!("--csi.testvolumeparameters={}", parameters.display()))
        .arg("--ginkgo.no-color")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{text}\n{}", node.logs());
    let summary = text.lines().find(|line| line.contains("Passed")).unwrap();
    eprintln!("csi-sanity: {summary}");
    assert!(summary.contains("0 Failed"), "{summary}");
    assert!(node.mounts().is_empty(), "{:?}", node.mounts());
}
