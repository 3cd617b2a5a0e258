//! The CSI project's own conformance suite against the real services.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::CsiNode;
use weir_tests::{suite, tools};

/// Specs that csi-sanity skips by itself for capabilities that the plugin does not have, and one
/// that is left out by name: it publishes a volume on a node after `ControllerPublishVolume`.
#[test]
fn csi_sanity_passes() {
    let bucket = Bucket::new(Server::Minio);
    let mut node = CsiNode::new(&bucket);
    node.start_controller();
    let parameters = node.join("parameters.yaml");
    fs::write(&parameters, format!("bucketName: {}\n", bucket.name)).unwrap();
    // As kubelet makes them: the suite adds the last part of a target's path by itself, in other words
    // than kubelet's.
    let socket = node.join("suite.sock");
    suite::serve(&socket, node.socket());
    let folder = node.target("sanity").parent().unwrap().to_owned();
    let script = |name: &str, text: &str| {
        let path = node.join(name);
        fs::write(&path, format!("#!/bin/sh\nset -e\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let data = r#"{"driverName": "s3.csi.weir.dev"}"#;
    let make = format!("mkdir -p \"$1\"\necho '{data}' > \"$1/vol_data.json\"\necho \"$1\"");
    let make = script("make-target", &make);
    let remove = script("remove-target", "rm -f \"$1/vol_data.json\"\nrmdir \"$1\"");
    let check = "p=$1; case $p in */target) p=${p%/target}/mount ;; esac; \
                 if [ -f \"$p\" ]; then echo file; elif [ -d \"$p\" ]; then echo directory; \
                 elif [ -e \"$p\" ]; then echo other; else echo not_found; fi";
    let check = script("check-path", check);
    let ran = Command::new(tools::path("csi-sanity"))
        .arg(format!("--csi.endpoint=unix://{}", socket.display()))
        .arg(format!("--csi.controllerendpoint=unix://{}", node.controller_socket().display()))
        .arg(format!("--csi.mountdir={}", folder.display()))
        .arg(format!("--csi.createmountpathcmd={}", make.display()))
        .arg(format!("--csi.removemountpathcmd={}", remove.display()))
        .arg(format!("--csi.checkpathcmd={}", check.display()))
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
