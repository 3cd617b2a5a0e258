//! Weir's own life in a cluster: start, upgrade, absence, end.

use serde_json::json;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::cluster::Cluster;
use weir_tests::random_bytes;

use super::{MIB, installed, md5, node_pod, nothing_is_left, with_static_pod};

#[test]
fn pods_can_be_deleted_while_no_node_plugin_is_there() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let (cluster, manifest) = with_static_pod(&bucket);
    cluster.exec("static", "cat /assets/f").unwrap();
    let image = "node=docker.io/library/weir:never-made";
    cluster.kubectl(&["set", "image", "-n", "weir", "daemonset/weir-node", image]);
    cluster.eventually("the node plugin cannot start", |cluster| {
        let pods = ["get", "pods", "-n", "weir", "-l", "app.kubernetes.io/component=node"];
        cluster.kubectl(&pods).contains("ErrImageNeverPull")
    });
    let uid = cluster.kubectl(&["get", "pod", "static", "-o", "jsonpath={.metadata.uid}"]);
    cluster.kubectl(&["delete", "pod", "static", "--wait=false"]);
    cluster.eventually("the pod is gone", |cluster| {
        cluster.try_kubectl(&["get", "pod", "static"]).is_err()
    });
    let folder = format!("/var/lib/kubelet/pods/{uid}");
    cluster.eventually("and its folder", |cluster| {
        !cluster.on_node(&["ls", &folder]).status.success()
    });
    // The node plugin comes back, and all is as before.
    cluster.install(&cluster.values());
    cluster.apply(&manifest);
    cluster.until_ready("static");
    assert_eq!(cluster.exec("static", "cat /assets/f").unwrap(), "bytes");
    cluster.delete(&manifest);
    nothing_is_left(&cluster);
}

#[test]
fn a_pod_that_is_deleted_while_it_writes_leaves_no_upload() {
    let bucket = Bucket::new(Server::Minio);
    let (cluster, manifest) = with_static_pod(&bucket);
    let write = "(head -c 30000000 /dev/zero; sleep 1000) >/assets/unfinished 2>/dev/null &";
    cluster.exec("static", write).unwrap();
    cluster.eventually("an upload is under way", |_| bucket.uploads_of("unfinished") == 1);
    cluster.delete(&manifest);
    nothing_is_left(&cluster);
    cluster.eventually("none is left", |_| bucket.uploads_of("unfinished") == 0);
    // What was written is there, or nothing is: never a part of it.
    let stored = bucket.get("unfinished").map(|bytes| bytes.len());
    assert!(stored.is_none_or(|len| len == 30_000_000), "{stored:?}");
}

#[test]
fn what_is_not_stored_when_its_pod_goes_is_told_with_its_key_and_place() {
    let bucket = Bucket::new(Server::Minio);
    let (cluster, manifest) = with_static_pod(&bucket);
    let mut values = cluster.values();
    values["node"]["unpublishDeadlineSeconds"] = json!(5);
    cluster.install(&values);
    // Whoever writes it outlives the pod: nobody closes the file, and nobody is told an error.
    let uid = cluster.kubectl(&["get", "pod", "static", "-o", "jsonpath={.metadata.uid}"]);
    let volume = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/assets/mount");
    let write = format!("(echo precious; exec sleep 1000) >{volume}/unstored 2>/dev/null &");
    assert!(cluster.on_node(&["sh", "-c", &write]).status.success());
    cluster.eventually("it is being written", |cluster| {
        let size = cluster.on_node(&["stat", "-c", "%s", &format!("{volume}/unstored")]);
        size.stdout.starts_with(b"9")
    });
    cluster.cut_s3(true);
    cluster.kubectl(&["delete", "pod", "static", "--wait=false"]);
    let told = |object: &str| {
        let events = cluster.get(&["events", "-n", "default"]);
        let events = events["items"].as_array().unwrap().iter();
        let mut texts = events
            .filter(|event| event["reason"] == "NotStored" && event["type"] == "Warning")
            .filter(|event| event["involvedObject"]["kind"] == object)
            .filter_map(|event| event["message"].as_str());
        texts.any(|text| text.contains(": unstored") && text.contains("lost/ of this node"))
    };
    for object in ["Pod", "PersistentVolume", "PersistentVolumeClaim"] {
        cluster.eventually(&format!("the {object} tells it"), |_| told(object));
    }
    let gone = |cluster: &Cluster| cluster.try_kubectl(&["get", "pod", "static"]).is_err();
    cluster.eventually("the pod is gone all the same", gone);
    // The bytes are where the Event says.
    let node = ["exec", "-n", "weir", "daemonset/weir-node", "-c", "node", "--", "/bin/weir"];
    let list = [&node[..], &["lost", "list", "--cache-dir", "/cache"]].concat();
    let listed = cluster.kubectl(&list);
    assert!(listed.contains(&bucket.name) && listed.contains("unstored"), "{listed}");
    cluster.cut_s3(false);
    cluster.delete(&manifest);
    nothing_is_left(&cluster);
}

#[test]
fn an_upgrade_is_not_noticed_and_an_uninstall_waits_for_pods() {
    let bucket = Bucket::new(Server::Minio);
    let bytes = random_bytes(1, 4 * MIB);
    bucket.put("model", bytes.clone());
    let (cluster, manifest) = with_static_pod(&bucket);
    let mut values = cluster.values();
    values["node"]["memoryTarget"] = json!("100MiB");
    let before = cluster.kubectl(&["get", "csinodes", "-o", "jsonpath={..drivers[*].name}"]);
    cluster.install(&values);
    let read = cluster.exec("static", "md5sum /assets/model").unwrap();
    assert!(read.starts_with(&md5(&bytes)), "{read}");
    let after = cluster.kubectl(&["get", "csinodes", "-o", "jsonpath={..drivers[*].name}"]);
    assert_eq!(before, after);

    let uninstall = ["uninstall", "weir", "-n", "weir", "--timeout", "100s"];
    cluster.eventually("the node tells of its pods", |cluster| {
        let volumes = "jsonpath={.items[*].status.volumes[?(@.pods>0)].persistentVolume}";
        cluster.kubectl(&["get", "weirnodes", "-o", volumes]).contains("assets")
    });
    assert!(!cluster.try_helm(&uninstall).status.success());
    let told = cluster.kubectl(&["logs", "-n", "weir", "job/weir-uninstall-check"]);
    assert!(told.contains("pods still use volumes: assets on"), "{told}");
    let read = cluster.exec("static", "md5sum /assets/model").unwrap();
    assert!(read.starts_with(&md5(&bytes)), "{read}");

    cluster.delete(&manifest);
    nothing_is_left(&cluster);
    cluster.eventually("the node tells of their end", |cluster| {
        let volumes = "jsonpath={.items[*].status.volumes[?(@.pods>0)].persistentVolume}";
        cluster.kubectl(&["get", "weirnodes", "-o", volumes]).is_empty()
    });
    cluster.helm(&uninstall);
    cluster.eventually("nothing is left of it", |cluster| {
        let pods = cluster.kubectl(&["get", "pods", "-n", "weir", "-o", "name"]);
        let drivers = cluster.kubectl(&["get", "csidrivers", "-o", "name"]);
        pods.trim().is_empty() && !drivers.contains("s3.csi.weir.dev")
    });
}

#[test]
fn a_release_that_cannot_serve_goes_no_further_and_is_rolled_back() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let (cluster, manifest) = with_static_pod(&bucket);
    // It looks for the mounter where none is.
    let broken = "mounter.runDir=/run/weir-of-nobody";
    let chart = Cluster::chart();
    let upgrade = ["upgrade", "weir", &chart, "-n", "weir", "--reuse-values", "--set", broken];
    cluster.helm(&upgrade);
    cluster.eventually("one node has it, and as many as may be are not ready", |cluster| {
        let set = cluster.get(&["daemonset", "-n", "weir", "weir-node"]);
        let (status, strategy) = (&set["status"], &set["spec"]["updateStrategy"]);
        status["observedGeneration"] == set["metadata"]["generation"]
            && status["updatedNumberScheduled"] == 1
            && status["numberUnavailable"] == strategy["rollingUpdate"]["maxUnavailable"]
            && node_pod(cluster, "status.phase") == "Running"
    });
    let why = "the mounter is not connected";
    cluster.eventually("it says why", |cluster| {
        let url = format!("http://{}:9467/readyz", node_pod(cluster, "status.podIP"));
        let page = cluster.on_node(&["curl", "-s", &url]).stdout;
        String::from_utf8_lossy(&page).contains(why)
    });
    cluster.eventually("so does the report of the node", |cluster| {
        let said = "jsonpath={.items[*].status.ready} {.items[*].status.problem}";
        cluster.kubectl(&["get", "weirnodes", "-o", said]) == format!("false {why}")
    });
    cluster.eventually("who reads gets an error", |cluster| {
        cluster.exec("static", "cat /assets/f").is_err()
    });
    cluster.helm(&["rollback", "weir", "-n", "weir"]);
    for set in ["daemonset/weir-node", "daemonset/weir-standby"] {
        cluster.kubectl(&["rollout", "status", "-n", "weir", set, "--timeout=120s"]);
    }
    cluster.delete(&manifest);
    cluster.apply(&manifest);
    cluster.until_ready("static");
    assert_eq!(cluster.exec("static", "cat /assets/f").unwrap(), "bytes");
    cluster.delete(&manifest);
    nothing_is_left(&cluster);
}

#[test]
fn the_start_up_taint_goes_when_the_node_is_ready() {
    let bucket = Bucket::new(Server::Minio);
    let cluster = installed(&bucket);
    let node = cluster.node_name();
    let taints =
        || cluster.kubectl(&["get", "node", &node, "-o", "jsonpath={.spec.taints[*].key}"]);
    for key in ["example.com/other:NoSchedule", "s3.csi.weir.dev/agent-not-ready:NoExecute"] {
        let (name, effect) = key.split_once(':').unwrap();
        cluster.kubectl(&["taint", "nodes", &node, &format!("{name}=:{effect}")]);
    }
    cluster.eventually("ours is gone", |_| !taints().contains("agent-not-ready"));
    assert_eq!(taints().trim(), "example.com/other");
    cluster.kubectl(&["taint", "nodes", &node, "example.com/other-"]);
}

#[test]
fn a_node_writes_its_own_report_alone() {
    let bucket = Bucket::new(Server::Minio);
    let cluster = installed(&bucket);
    let node = cluster.node_name();
    let token = ["create", "token", "weir-node", "-n", "weir"];
    let pod = node_pod(&cluster, "metadata.name");
    let bound: Vec<&str> = token
        .iter()
        .copied()
        .chain(["--bound-object-kind", "Pod", "--bound-object-name", &pod])
        .collect();
    let token = cluster.kubectl(&bound);
    let write = |name: &str| {
        let object = json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "WeirNode",
            // As it is: tests that come next need a node that is ready.
            "metadata": {"name": name}, "status": {"ready": true},
        });
        cluster.apply_as(token.trim(), &object.to_string())
    };
    let refused = write("another-node").unwrap_err();
    assert!(refused.contains("of its own node alone"), "{refused}");
    write(&node).unwrap();
}
