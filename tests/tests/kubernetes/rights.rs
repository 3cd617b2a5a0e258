//! What the roles of a node may do where kubelet has started them, and whom the mounter listens to.

use serde_json::json;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::cluster::Cluster;

use super::{installed, nothing_is_left, with_static_pod};

/// What the kernel says of the first process with this command line.
fn status(cluster: &Cluster, command: &str) -> impl Fn(&str) -> Vec<String> {
    let find = format!("cat /proc/$(pgrep -f '^{command}' | head -1)/status");
    let output = cluster.on_node(&["sh", "-c", &find]);
    let text = String::from_utf8(output.stdout).unwrap();
    move |name| {
        let line = text.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect()
    }
}

#[test]
fn the_mounter_alone_sees_the_processes_of_the_host() {
    let bucket = Bucket::new(Server::Minio);
    let cluster = installed(&bucket);
    let nothing = "0000000000000000";
    let (standby, registrar) =
        (status(&cluster, "/bin/weir standby"), status(&cluster, "/bin/registrar"));
    assert_eq!(standby("Uid")[0], "65531");
    assert_eq!(registrar("Uid")[0], "0");
    for role in [&standby, &registrar] {
        // Its number on the node, and in a namespace of its own.
        assert_eq!(role("NSpid").len(), 2);
        assert_eq!((role("CapEff")[0].as_str(), role("CapBnd")[0].as_str()), (nothing, nothing));
    }
    let mounter = status(&cluster, "/bin/weir mounter");
    assert_eq!(mounter("NSpid").len(), 1);
    assert_eq!(mounter("Seccomp")[0], "2");
}

#[test]
fn a_pod_of_somebody_else_is_not_listened_to() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let (cluster, manifest) = with_static_pod(&bucket);
    let run = cluster.values()["mounter"]["runDir"].clone();
    let image = cluster.values()["image"].clone();
    // Root, with the host's folder of sockets in it, and an empty folder as the node plugin's pod has.
    let thief = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "thief"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "node", "imagePullPolicy": "Never",
                "image": format!("{}:{}", image["repository"].as_str().unwrap(),
                                 image["tag"].as_str().unwrap()),
                "args": ["node", "--node-id=thief", "--csi-socket=/own/csi.sock",
                         "--mounter-socket=/weir/engine/mounter.sock", "--cache-dir=/own/cache",
                         "--cache-min-free=0", "--region=us-east-1"],
                "securityContext": {"runAsUser": 0},
                "volumeMounts": [{"name": "run", "mountPath": "/weir"},
                                 {"name": "own", "mountPath": "/own"}],
            }],
            "volumes": [{"name": "run", "hostPath": {"path": run}},
                        {"name": "own", "emptyDir": {}}],
        },
    })
    .to_string();
    let lost = |cluster: &Cluster| cluster.logs().matches("the mounter is gone").count();
    let before = lost(&cluster);
    cluster.apply(&thief);
    let uid = |cluster: &Cluster| {
        cluster.kubectl(&["get", "pod", "thief", "-o", "jsonpath={.metadata.uid}"])
    };
    let refused = format!("is in the pod {}, which declares no emptyDir", uid(&cluster));
    cluster.eventually("it is sent away", |cluster| cluster.logs().contains(&refused));
    // The node plugin serves on, undisturbed.
    assert_eq!(lost(&cluster), before);
    assert_eq!(cluster.exec("static", "cat /assets/f").unwrap(), "bytes");
    cluster.delete(&thief);
    cluster.delete(&manifest);
    nothing_is_left(&cluster);
}
