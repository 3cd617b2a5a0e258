//! Pods and volumes meet on the right GPUs. The node's GPUs are those of a described machine; other
//! nodes are Node objects alone, which is all that the scheduler looks at.

use std::sync::MutexGuard;

use serde_json::{Value, json};
use weir_tests::bucket::{Bucket, Server};
use weir_tests::cluster::Cluster;

use super::{example, installed, nothing_is_left};

const PRODUCT: &str = "topology.weir.dev/gpu-product";

/// A node with these labels, on which nothing runs.
fn node(name: &str, labels: &Value) -> String {
    let capacity = json!({"cpu": "64", "memory": "512Gi", "pods": "110"});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {
            "capacity": capacity, "allocatable": capacity,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                            "message": "", "lastHeartbeatTime": null, "lastTransitionTime": null}],
        },
    })
    .to_string()
}

/// A PersistentVolume that is where `key` has this value, with its claim and a pod.
fn placed(name: &str, key: &str, value: &str) -> String {
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Ti"}, "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "",
            "claimRef": {"namespace": "default", "name": name},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]},
            ]}},
            "csi": {"driver": "s3.csi.weir.dev", "volumeHandle": name,
                    "volumeAttributes": {"bucketName": "models"}},
        },
    });
    [volume, claim(name, &json!({"storageClassName": "", "volumeName": name})), pod(name)]
        .map(|object| object.to_string())
        .join("\n---\n")
}

fn claim(name: &str, spec: &Value) -> Value {
    let mut claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Ti"}}},
    });
    for (key, value) in spec.as_object().unwrap() {
        claim["spec"][key] = value.clone();
    }
    claim
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "app", "image": "busybox:local", "command": ["sleep", "infinity"],
                "volumeMounts": [{"name": "models", "mountPath": "/models"}],
            }],
            "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": name}}],
        },
    })
}

/// The product in the real node's label.
fn label(cluster: &Cluster) -> String {
    let path = format!("jsonpath={{.metadata.labels.{}}}", PRODUCT.replace('.', "\\."));
    cluster.kubectl(&["get", "node", &cluster.node_name(), "-o", &path])
}

fn with_h200(bucket: &Bucket) -> MutexGuard<'static, Cluster> {
    let cluster = installed(bucket);
    cluster.set_gpus("h200");
    cluster.eventually("the node says its GPU", |cluster| label(cluster) == "NVIDIA-H200");
    cluster
}

#[test]
fn static_volumes_bring_pods_to_their_gpus() {
    let bucket = Bucket::new(Server::Minio);
    let cluster = with_h200(&bucket);
    let table = cluster.kubectl(&["get", "nodes", "-L", PRODUCT]);
    assert!(table.contains("GPU-PRODUCT") && table.contains("NVIDIA-H200"), "{table}");
    let nodes = [
        node("gpu-h100", &json!({PRODUCT: "NVIDIA-H100-80GB-HBM3"})),
        node("gpu-l40s", &json!({PRODUCT: "NVIDIA-L40S", "nvidia.com/gpu.product": "NVIDIA-L40S"})),
        node("gpu-gb200", &json!({"topology.weir.dev/nvlink-domain": "c0c1.32766"})),
    ];
    for node in &nodes {
        cluster.apply(node);
    }
    let placed = [
        (placed("on-h100", PRODUCT, "NVIDIA-H100-80GB-HBM3"), "on-h100", "gpu-h100"),
        (placed("on-l40s", "nvidia.com/gpu.product", "NVIDIA-L40S"), "on-l40s", "gpu-l40s"),
        (
            placed("on-gb200", "topology.weir.dev/nvlink-domain", "c0c1.32766"),
            "on-gb200",
            "gpu-gb200",
        ),
    ];
    for (manifest, pod, node) in &placed {
        cluster.apply(manifest);
        cluster.eventually("the pod is where its volume is", |cluster| {
            cluster.kubectl(&["get", "pod", pod, "-o", "jsonpath={.spec.nodeName}"]) == *node
        });
    }
    let described = cluster.kubectl(&["describe", "pv", "on-h100"]);
    assert!(described.contains(&format!("{PRODUCT} in [NVIDIA-H100-80GB-HBM3]")), "{described}");
    let nowhere = self::placed("nowhere", PRODUCT, "NVIDIA-B300");
    cluster.apply(&nowhere);
    cluster.eventually("the scheduler says why it cannot", |cluster| {
        let described = cluster.kubectl(&["describe", "pod", "nowhere"]);
        described.contains("FailedScheduling") && described.contains("affinity")
    });
    // Nobody ends pods of nodes that are not there.
    let pods = placed.iter().map(|(_, pod, _)| *pod).chain(["nowhere"]);
    for pod in pods {
        cluster.kubectl(&["delete", "pod", pod, "--force", "--grace-period=0"]);
    }
    for (manifest, _, _) in &placed {
        cluster.delete(manifest);
    }
    cluster.delete(&nowhere);
    nodes.iter().for_each(|node| cluster.delete(node));
    nothing_is_left(&cluster);
}

#[test]
fn a_class_that_names_gpus_makes_volumes_there() {
    let bucket = Bucket::new(Server::Minio);
    let cluster = with_h200(&bucket);
    let class = |name: &str, topologies: Value| {
        let mut class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
            "provisioner": "s3.csi.weir.dev", "volumeBindingMode": "WaitForFirstConsumer",
            "parameters": {"bucketName": bucket.name, "prefix": name},
        });
        if !topologies.is_null() {
            let expressions = json!([{"key": PRODUCT, "values": topologies}]);
            class["allowedTopologies"] = json!([{"matchLabelExpressions": expressions}]);
        }
        class.to_string()
    };
    let classes = [
        class("on-h200", json!(["NVIDIA-H200"])),
        class("on-b300", json!(["NVIDIA-B300"])),
        class("anywhere", Value::Null),
    ];
    for class in &classes {
        cluster.apply(class);
    }
    let used = |name: &str| {
        let claim = claim(name, &json!({"storageClassName": name}));
        format!("{claim}\n---\n{}", pod(name))
    };
    for name in ["on-h200", "anywhere"] {
        cluster.apply(&used(name));
        cluster.until_ready(name);
        let claim = cluster.get(&["pvc", name]);
        let volume = cluster.get(&["pv", claim["spec"]["volumeName"].as_str().unwrap()]);
        let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
        let expected = match name {
            "on-h200" => json!([{"matchExpressions": [
                {"key": PRODUCT, "operator": "In", "values": ["NVIDIA-H200"]}]}]),
            _ => Value::Null,
        };
        assert_eq!(*terms, expected, "{name}");
    }
    cluster.apply(&used("on-b300"));
    cluster.eventually("the scheduler says why it cannot", |cluster| {
        cluster.kubectl(&["describe", "pod", "on-b300"]).contains("FailedScheduling")
    });
    for name in ["on-h200", "anywhere", "on-b300"] {
        cluster.delete(&used(name));
    }
    classes.iter().for_each(|class| cluster.delete(class));
    nothing_is_left(&cluster);
}

#[test]
fn a_nim_deployment_finds_its_gpu() {
    let bucket = Bucket::new(Server::Minio);
    let cluster = with_h200(&bucket);
    let manifest = example("nim-on-gpu.yaml", &bucket);
    cluster.apply(&manifest);
    cluster.kubectl(&["rollout", "status", "deployment/nim-h200", "--timeout=120s"]);
    let described = cluster.kubectl(&["describe", "pv", "nim-h200"]);
    assert!(described.contains(&format!("{PRODUCT} in [NVIDIA-H200]")), "{described}");
    cluster.delete(&manifest);
    nothing_is_left(&cluster);
}

#[test]
fn a_changed_gpu_changes_the_label_and_never_costs_the_registration() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let cluster = with_h200(&bucket);
    let drivers =
        |cluster: &Cluster| cluster.kubectl(&["get", "csinodes", "-o", "jsonpath={..drivers[*]}"]);
    let restarts = |cluster: &Cluster| -> u32 {
        let path = "jsonpath={..containerStatuses[?(@.name==\"registrar\")].restartCount}";
        let label = "app.kubernetes.io/component=standby";
        let text = cluster.kubectl(&["get", "pods", "-n", "weir", "-l", label, "-o", path]);
        text.split_whitespace().next().unwrap().parse().unwrap()
    };
    let before = restarts(&cluster);
    cluster.set_gpus("l40s-pair");
    cluster.eventually("the label follows", |cluster| label(cluster) == "NVIDIA-L40S");
    cluster.eventually("the driver registers again", |cluster| restarts(cluster) > before);
    cluster.eventually("and is known", |cluster| drivers(cluster).contains(PRODUCT));

    // Nobody changes the label now: the old value is kept, through restarts of all of it.
    cluster.kubectl(&["scale", "-n", "weir", "deployment/weir-reconciler", "--replicas=0"]);
    cluster.eventually("nobody changes it", |cluster| {
        let label = "app.kubernetes.io/component=reconciler";
        cluster.kubectl(&["get", "pods", "-n", "weir", "-l", label, "-o", "name"]).is_empty()
    });
    cluster.set_gpus("dgx-h100");
    cluster.eventually("the node wants another", |cluster| {
        cluster.kubectl(&["get", "weirnodes"]).contains("NVIDIA-H100-80GB-HBM3")
    });
    for role in ["node", "mounter", "standby"] {
        let selector = format!("app.kubernetes.io/component={role}");
        cluster.kubectl(&["delete", "pods", "-n", "weir", "-l", &selector]);
    }
    let manifest = example("static.yaml", &bucket);
    cluster.apply(&manifest);
    cluster.until_ready("static");
    assert_eq!(cluster.exec("static", "cat /assets/f").unwrap(), "bytes");
    assert_eq!(label(&cluster), "NVIDIA-L40S");
    assert!(drivers(&cluster).contains("s3.csi.weir.dev"));
    // When it can be changed again, it is.
    cluster.kubectl(&["scale", "-n", "weir", "deployment/weir-reconciler", "--replicas=1"]);
    cluster.eventually("the label follows", |cluster| label(cluster) == "NVIDIA-H100-80GB-HBM3");
    cluster.delete(&manifest);
    nothing_is_left(&cluster);
    cluster.set_gpus("h200");
}

#[test]
fn a_label_of_nvidias_that_says_otherwise_is_told_and_left() {
    let bucket = Bucket::new(Server::Minio);
    let cluster = with_h200(&bucket);
    let node = cluster.node_name();
    cluster.kubectl(&["label", "node", &node, "nvidia.com/gpu.product=NVIDIA-L4"]);
    cluster.eventually("the node tells it", |cluster| {
        let described = cluster.kubectl(&["describe", "node", &node]);
        described.contains("GpuLabelMismatch") && described.contains("says NVIDIA-L4, Weir sees")
    });
    let path = "jsonpath={.metadata.labels.nvidia\\.com/gpu\\.product}";
    assert_eq!(cluster.kubectl(&["get", "node", &node, "-o", path]), "NVIDIA-L4");
    cluster.kubectl(&["label", "node", &node, "nvidia.com/gpu.product-"]);
}
