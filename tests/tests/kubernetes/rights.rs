//! What the roles of a node may do where kubelet has started them, and whom the mounter listens to.

use std::path::Path;

use serde_json::{Value, json};
use weir_tests::bucket::{Bucket, Server};
use weir_tests::cluster::Cluster;

use super::{installed, node_pod, nothing_is_left, with_static_pod};

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

/// What is mounted on the node but for volumes of Weir's, what containers come and go with, and what
/// is the node plugin's own.
fn mounted(cluster: &Cluster) -> Vec<String> {
    let table = cluster.on_node(&["cat", "/proc/self/mountinfo"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let plugin = node_pod(cluster, "metadata.uid");
    let passing = ["fuse.weir", "containerd", "netns", &plugin];
    let lasts = |line: &&str| !passing.iter().any(|part| line.contains(part));
    table.lines().filter(lasts).map(str::to_owned).collect()
}

/// All that its container lets it do, the mounter included.
#[test]
fn a_node_plugin_of_somebody_else_harms_neither_host_nor_pods() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let (cluster, manifest) = with_static_pod(&bucket);
    let image = cluster
        .import_program("weir-hostile-node", Path::new(env!("CARGO_BIN_EXE_weir-hostile-node")));
    // A pod with what pods have: a token, and a configuration.
    let victim = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "victim"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": "busybox:local", "command": ["sleep", "infinity"],
                "volumeMounts": [{"name": "config", "mountPath": "/config"},
                                 {"name": "own", "mountPath": "/own", "subPath": "sub"}],
            }],
            "volumes": [{"name": "config", "configMap": {"name": "kube-root-ca.crt"}},
                        {"name": "own", "emptyDir": {"medium": "Memory"}}],
        },
    })
    .to_string();
    cluster.apply(&victim);
    cluster.until_ready("victim");
    cluster.exec("victim", "echo mine > /own/f").unwrap();
    let read = "cat /config/ca.crt /own/f /var/run/secrets/kubernetes.io/serviceaccount/namespace";
    let of_the_victim = || cluster.exec("victim", read).unwrap();
    let node = cluster.node_name();
    let of_the_node = || {
        let object = cluster.get(&["node", &node]);
        (object["spec"].clone(), object["metadata"]["labels"].clone())
    };
    let processes = || cluster.on_node(&["pgrep", "-x", "kubelet|containerd|etcd"]).stdout;
    let before = (of_the_victim(), mounted(&cluster), of_the_node(), processes());
    assert!(!before.3.is_empty());

    let at = |line: &String| line.split(' ').nth(4).unwrap().to_owned();
    let mut targets: Vec<String> = before.1.iter().map(at).collect();
    targets.retain(|path| path.contains("/kubelet/"));
    assert!(targets.len() > 4, "{targets:?}");
    let mut of_the_host: Vec<String> = targets.iter().map(|path| format!("{path}/sub")).collect();
    of_the_host.extend(["/", "/etc", "/usr/bin", "/var/lib/kubelet"].map(str::to_owned));
    targets.append(&mut of_the_host);
    let set = "daemonset/weir-node";
    let (targets, files) =
        (targets.join(":"), "/etc/hosts:/cache/index.redb:/proc/self/maps:/bin/weir-hostile-node");
    let patch = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1, "containers": [{
        "name": "node", "image": image,
        "env": [{"name": "TARGETS", "value": targets}, {"name": "FILES", "value": files}],
        "livenessProbe": null, "readinessProbe": null,
    }]}}}});
    cluster.kubectl(&["patch", "-n", "weir", set, "--patch", &patch.to_string()]);
    cluster.kubectl(&["rollout", "status", "-n", "weir", set, "--timeout=120s"]);
    let said = || cluster.kubectl(&["logs", "-n", "weir", set]);
    cluster.eventually("it has tried all", |_| said().contains("attacks were made"));
    let said = said();
    assert!(!said.contains("SUCCEEDED"), "{said}");
    assert!(said.matches("refused").count() > 100, "{said}");
    let after = (of_the_victim(), mounted(&cluster), of_the_node(), processes());
    assert_eq!(after, before);
    let account = "--as=system:serviceaccount:weir:weir-node";
    for may in [
        ["get", "secrets"],
        ["patch", "nodes"],
        ["create", "pods"],
        ["create", "serviceaccounts/token"],
        ["delete", "persistentvolumes"],
        ["patch", "daemonsets"],
    ] {
        let may = [["auth", "can-i"], may, ["-A", account]].concat();
        assert!(cluster.try_kubectl(&may).is_err(), "{may:?}");
    }

    // The plugin is itself again. What it had served was the other's to end.
    cluster.kubectl(&["rollout", "undo", "-n", "weir", set]);
    cluster.install(&cluster.values());
    cluster.delete(&manifest);
    cluster.apply(&manifest);
    cluster.until_ready("static");
    assert_eq!(cluster.exec("static", "cat /assets/f").unwrap(), "bytes");
    cluster.delete(&manifest);
    cluster.delete(&victim);
    nothing_is_left(&cluster);
}

/// A PersistentVolume of this source.
fn volume(name: &str, source: &str, of: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], source: of},
    })
}

#[test]
fn who_breaks_into_the_reconciler_changes_what_is_weirs_alone() {
    let bucket = Bucket::new(Server::Minio);
    let cluster = installed(&bucket);
    let token = cluster.kubectl(&["create", "token", "weir-reconciler", "-n", "weir"]);
    let name = cluster.node_name();
    let node = format!("/api/v1/nodes/{name}");
    let report = format!("/apis/weir.dev/v1alpha1/weirnodes/{name}");
    let volume_path = |name: &str| format!("/api/v1/persistentvolumes/{name}");
    let [ours, theirs, host] = ["ours", "theirs", "host"].map(volume_path);
    let volumes = [
        volume("ours", "csi", &json!({"driver": "s3.csi.weir.dev", "volumeHandle": "ours"})),
        volume("theirs", "csi", &json!({"driver": "example.com", "volumeHandle": "theirs"})),
        volume("host", "hostPath", &json!({"path": "/tmp"})),
    ]
    .map(|volume| volume.to_string());
    volumes.iter().for_each(|volume| cluster.apply(volume));
    let taint = |key: &str| json!({"key": key, "effect": "PreferNoSchedule"});
    let with = |taints: &[Value]| json!({"spec": {"taints": taints}});
    let (own, other) = (taint("s3.csi.weir.dev/agent-not-ready"), taint("example.com/other"));
    cluster.kubectl(&[
        "patch",
        "node",
        &name,
        "-p",
        &with(std::slice::from_ref(&other)).to_string(),
    ]);
    cluster.kubectl(&["label", "node", &name, "topology.weir.dev/test=a", "--overwrite"]);

    let patch = |object: &str, patch: &Value| cluster.patch_as(token.trim(), object, patch);
    let label = |key: &str, value: Value| json!({"metadata": {"labels": {key: value}}});
    let note = |key: &str| json!({"metadata": {"annotations": {key: "x"}}});
    let refused = [
        (&*node, json!({"spec": {"unschedulable": true}})),
        (&node, with(&[other.clone(), taint("example.com/more")])),
        (&node, with(&[other.clone(), own])),
        (&node, with(&[])),
        (&node, label("example.com/x", json!("y"))),
        (&node, label("kubernetes.io/os", json!("plan9"))),
        (&node, label("topology.weir.dev/new", json!("y"))),
        (&node, label("topology.weir.dev/test", json!(null))),
        (&node, note("weir.dev/cached")),
        (&node, json!({"metadata": {"finalizers": ["example.com/x"]}})),
        (&ours, label("x", json!("y"))),
        (&ours, note("example.com/x")),
        (&ours, json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}})),
        (&theirs, note("weir.dev/cached")),
        (&host, note("weir.dev/cached")),
        (&report, json!({"status": {"ready": true, "problem": ""}})),
        (&report, json!({"status": {"ready": false, "volumes": [{"persistentVolume": "x"}]}})),
        (&report, json!({"status": {"ready": false}, "metadata": {"ownerReferences": []}})),
    ];
    // A policy counts some moments after it is made.
    cluster.eventually("the policy counts", |_| patch(refused[0].0, &refused[0].1).is_err());
    for (object, change) in &refused {
        let told = patch(object, change).expect_err(&format!("{object} took {change}"));
        assert!(told.contains("the reconciler "), "{object} {change}: {told}");
    }
    let allowed =
        [(&*node, label("topology.weir.dev/test", json!("b"))), (&ours, note("weir.dev/cached"))];
    for (object, change) in &allowed {
        patch(object, change).unwrap_or_else(|told| panic!("{object} {change}: {told}"));
    }
    let silent = json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "WeirNode", "metadata": {"name": name},
        "status": {"ready": false, "problem": "NoReport: of a test"},
    });
    cluster.apply_as(token.trim(), &silent.to_string()).unwrap();
    // Also where there are no policies it names the driver of a volume, which nobody can change.
    let named = json!({"spec": {"csi": {"driver": "s3.csi.weir.dev"}}}).to_string();
    for (volume, takes) in [("ours", true), ("theirs", false), ("host", false)] {
        let patched = cluster.try_kubectl(&["patch", "pv", volume, "--type=merge", "-p", &named]);
        assert_eq!(patched.is_ok(), takes, "{volume}: {patched:?}");
    }
    volumes.iter().for_each(|volume| cluster.delete(volume));
    cluster.kubectl(&["taint", "node", &name, "example.com/other-"]);
    cluster.kubectl(&["label", "node", &name, "topology.weir.dev/test-"]);
    // What it says in a node's place lasts until the node reports.
    let said = "jsonpath={.status.ready} {.status.problem}";
    let said = || cluster.kubectl(&["get", "weirnode", &name, "-o", said]);
    assert_eq!(said(), "false NoReport: of a test");
    let plugin = ["-n", "weir", "-l", "app.kubernetes.io/component=node"];
    cluster.kubectl(&[&["delete", "pods"][..], &plugin].concat());
    cluster.eventually("the node takes it back", |_| said() == "true ");
    let told = cluster.kubectl(&["get", "weirnode", &name]);
    assert!(told.contains("LAST REPORT"), "{told}");
}

#[test]
fn who_breaks_into_the_controller_makes_and_changes_volumes_of_weir_alone() {
    let bucket = Bucket::new(Server::Minio);
    let cluster = installed(&bucket);
    let token = cluster.kubectl(&["create", "token", "weir-controller", "-n", "weir"]);
    let token = token.trim();
    let of = |name: &str, driver: &str| {
        volume(name, "csi", &json!({"driver": driver, "volumeHandle": name})).to_string()
    };
    let on_host = |name: &str| volume(name, "hostPath", &json!({"path": "/"})).to_string();
    let (theirs, host) = (of("theirs", "example.com"), on_host("host"));
    cluster.apply(&theirs);
    cluster.apply(&host);

    let path = |name: &str| format!("/api/v1/persistentvolumes/{name}");
    let note = json!({"metadata": {"annotations": {"example.com/x": "y"}}});
    let is_refused = |what: &str, done: Result<(), String>| {
        let told = done.expect_err(what);
        assert!(told.contains("PersistentVolumes of s3.csi.weir.dev alone"), "{what}: {told}");
    };
    // A policy counts some moments after it is made.
    cluster.eventually("the policy counts", |cluster| {
        cluster.patch_as(token, &path("host"), &note).is_err()
    });
    let make = |manifest: &str| cluster.apply_as(token, manifest).map(|_| ());
    is_refused("make a folder of the host", make(&on_host("stolen")));
    is_refused("make one of another driver", make(&of("stolen", "example.com")));
    for other in ["theirs", "host"] {
        is_refused("change it", cluster.patch_as(token, &path(other), &note));
        is_refused("remove it", cluster.delete_as(token, &path(other)));
    }
    assert!(cluster.try_kubectl(&["get", "pv", "stolen"]).is_err());

    make(&of("ours", "s3.csi.weir.dev")).unwrap();
    cluster.patch_as(token, &path("ours"), &note).unwrap();
    cluster.delete_as(token, &path("ours")).unwrap();
    cluster.delete(&theirs);
    cluster.delete(&host);
}
