//! Volumes of every kind, read and written by pods.

use serde_json::{Value, json};
use weir_tests::bucket::{Bucket, Server};
use weir_tests::cluster::Cluster;
use weir_tests::random_bytes;

use super::{MIB, example, fetched, installed, md5, nothing_is_left, with_static_pod};

#[test]
fn a_bucket_as_a_persistent_volume() {
    let bucket = Bucket::new(Server::Minio);
    let bytes = random_bytes(1, 20 * MIB);
    bucket.put("model", bytes.clone());
    let cluster = installed(&bucket);
    let manifest = example("static.yaml", &bucket);
    cluster.dry_run(&manifest).unwrap();
    cluster.apply(&manifest);
    cluster.until_ready("static");
    let sum = |pod: &str| cluster.exec(pod, "md5sum /assets/model").unwrap();
    assert!(sum("static").starts_with(&md5(&bytes)));
    let space = cluster.exec("static", "df -Pk /assets | tail -1").unwrap();
    assert!(space.contains("s3://") && space.contains("0%"), "{space}");

    // A second pod of the same volume, in little memory: one download, and each sees the other.
    let second = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"second"},"spec":{
        "terminationGracePeriodSeconds":1,
        "containers":[{"name":"app","image":"busybox:local","command":["sleep","infinity"],
            "resources":{"limits":{"memory":"16Mi"}},
            "volumeMounts":[{"name":"assets","mountPath":"/assets"}]}],
        "volumes":[{"name":"assets","persistentVolumeClaim":{"claimName":"assets"}}]}}"#;
    cluster.apply(second);
    cluster.until_ready("second");
    let before = fetched(&cluster);
    assert!(sum("second").starts_with(&md5(&bytes)));
    assert_eq!(fetched(&cluster), before, "the second pod downloaded again");
    cluster.exec("second", "echo hello >/assets/note").unwrap();
    assert_eq!(bucket.get("note").unwrap(), b"hello\n");
    assert_eq!(cluster.exec("static", "cat /assets/note").unwrap(), "hello\n");

    let described = cluster.kubectl(&["describe", "pv", "assets"]);
    for words in ["s3.csi.weir.dev", &bucket.name, "VolumeHandle:      assets", "Bound"] {
        assert!(described.contains(words), "{words}: {described}");
    }
    cluster.eventually("it is told where how much of it is cached", |cluster| {
        let described = cluster.kubectl(&["describe", "pv", "assets"]);
        described.contains("weir.dev/cached") && described.contains("20.0 MiB")
    });
    cluster.eventually("and how long it took to get there", |cluster| {
        let described = cluster.kubectl(&["describe", "pv", "assets"]);
        described.contains("CacheWarmed") && described.contains("20.0 MiB fetched in")
    });
    let nodes = cluster.kubectl(&["get", "weirnodes"]);
    let words = ["READY", "GPU", "CACHED", "VOLUMES", "true", "NVIDIA-H200"];
    assert!(words.iter().all(|word| nodes.contains(word)), "{nodes}");
    for object in ["pv", "pvc"] {
        cluster.eventually("the mount is told", |cluster| {
            let described = cluster.kubectl(&["describe", object, "assets"]);
            described.contains("Mounted") && described.contains("is shown to pods of this node")
        });
    }
    cluster.delete(second);
    cluster.delete(&manifest);
    nothing_is_left(&cluster);
}

#[test]
fn a_claim_gets_a_prefix_of_its_own_and_takes_it_along() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("claims/other/kept", "x");
    bucket.put("claims/default/scratch-2/kept", "x");
    let cluster = installed(&bucket);
    let manifest = example("dynamic.yaml", &bucket);
    cluster.dry_run(&manifest).unwrap();
    cluster.apply(&manifest);
    cluster.until_ready("dynamic");
    cluster.eventually("its file is at S3", |_| {
        bucket.keys().iter().any(|key| key == "claims/default/scratch/started")
    });
    cluster.delete(&manifest);
    cluster.eventually("the volume's objects are gone", |_| {
        bucket.keys() == ["claims/default/scratch-2/kept", "claims/other/kept"]
    });
    nothing_is_left(&cluster);
}

#[test]
fn inline_volumes_sessions_and_nim() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("games/chess/board", "8x8");
    let cluster = installed(&bucket);
    let inline = example("ephemeral.yaml", &bucket);
    cluster.apply(&inline);
    cluster.until_ready("ephemeral");
    assert_eq!(cluster.exec("ephemeral", "cat /assets/games/chess/board").unwrap(), "8x8");
    let refused = cluster.exec("ephemeral", "echo x >/assets/new").unwrap_err();
    assert!(refused.contains("Read-only"), "{refused}");

    let games = example("game-assets.yaml", &bucket);
    cluster.apply(&games);
    for pod in ["game-session-0", "game-session-1"] {
        cluster.until_ready(pod);
        assert_eq!(cluster.exec(pod, "cat /assets/chess/board").unwrap(), "8x8");
    }

    let nim = example("nim.yaml", &bucket);
    cluster.apply(&nim);
    cluster.kubectl(&["rollout", "status", "deployment/nim", "--timeout=120s"]);
    let layout = "cd /opt/nim/.cache && id -u && mkdir -p hub/blobs && \
        echo weights >hub/blobs/abc.incomplete && mv hub/blobs/abc.incomplete hub/blobs/abc && \
        stat -c '%g %a' hub/blobs/abc";
    let told = cluster.exec("deployment/nim", layout).unwrap();
    assert_eq!(told, "1000\n2000 664\n");
    assert_eq!(bucket.get("nim/hub/blobs/abc").unwrap(), b"weights\n");
    for manifest in [nim, games, inline] {
        cluster.delete(&manifest);
    }
    nothing_is_left(&cluster);
}

#[test]
fn the_plugins_pods_may_go_while_a_pod_reads() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("model", random_bytes(1, 4 * MIB));
    let (cluster, manifest) = with_static_pod(&bucket);
    let sum = md5(&random_bytes(1, 4 * MIB));
    for role in ["node", "mounter", "node"] {
        let selector = format!("app.kubernetes.io/component={role}");
        cluster.kubectl(&["delete", "pods", "-n", "weir", "-l", &selector]);
        let read = cluster.exec("static", "md5sum /assets/model").unwrap();
        assert!(read.starts_with(&sum), "{role}: {read}");
        cluster.exec("static", &format!("echo {role} >/assets/written")).unwrap();
        assert_eq!(bucket.get("written").unwrap(), format!("{role}\n").as_bytes());
        let set = format!("daemonset/weir-{role}");
        cluster.eventually("its pod is back", |cluster| {
            let path = "jsonpath={.status.numberReady}";
            cluster.kubectl(&["get", "-n", "weir", &set, "-o", path]) == "1"
        });
    }
    cluster.delete(&manifest);
    nothing_is_left(&cluster);
}

#[test]
fn what_is_wrong_is_told_and_can_be_mended() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let cluster = installed(&bucket);
    let good = example("static.yaml", &bucket);
    let wrong = good.replace(&bucket.name, "no-such-bucket-here");
    cluster.apply(&wrong);
    let told = |words: &str| {
        cluster.eventually(words, |cluster| {
            let events = cluster.kubectl(&["describe", "pod", "static"]);
            events.contains("FailedMount") && events.contains(words)
        });
    };
    told("the bucket does not exist");
    for object in ["pv", "pvc"] {
        cluster.eventually("the volume tells it, too", |cluster| {
            let described = cluster.kubectl(&["describe", object, "assets"]);
            described.contains("MountFailed") && described.contains("no-such-bucket-here")
        });
    }
    // A volume's source cannot be changed: what a person does is to make it anew.
    cluster.delete(&wrong);
    cluster.apply(&good.replace("metadata-ttl 10", "metadata-tll 10"));
    told("did you mean metadata-ttl?");
    cluster.delete(&good);
    cluster.apply(&good);
    cluster.until_ready("static");
    cluster.delete(&good);
    // A missing secret comes while the pod waits.
    let inline = example("ephemeral.yaml", &bucket);
    let (secret, pod) = inline.split_once("---").unwrap();
    cluster.apply(pod);
    cluster.eventually("the missing secret is named", |cluster| {
        cluster.kubectl(&["describe", "pod", "ephemeral"]).contains("assets-reader")
    });
    cluster.apply(&secret.replace(&bucket.secret_key, "wrong"));
    cluster.eventually("refused keys are told with the S3 error code", |cluster| {
        cluster.kubectl(&["describe", "pod", "ephemeral"]).contains("SignatureDoesNotMatch")
    });
    cluster.apply(secret);
    cluster.until_ready("ephemeral");
    cluster.delete(&inline);
    nothing_is_left(&cluster);
}

#[test]
fn an_origin_that_goes_away_is_told_and_so_is_its_return() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let (cluster, manifest) = with_static_pod(&bucket);
    cluster.exec("static", "cat /assets/f").unwrap();
    cluster.cut_s3(true);
    cluster.eventually("pod and volume tell it", |cluster| {
        let _ = cluster.exec("static", "ls /assets; cat /assets/other");
        ["pv/assets", "pvc/assets", "pod/static"]
            .iter()
            .all(|object| cluster.kubectl(&["describe", object]).contains("OriginUnavailable"))
    });
    // With the feature gate CSIVolumeHealth kubelet passes the condition on.
    cluster.eventually("the volume is abnormal", |cluster| {
        let _ = cluster.exec("static", "cat /assets/other");
        cluster.kubectl(&["describe", "pod", "static"]).contains("VolumeConditionAbnormal")
    });
    cluster.cut_s3(false);
    cluster.eventually("and that it is over", |cluster| {
        let _ = cluster.exec("static", "ls /assets");
        cluster.kubectl(&["describe", "pv", "assets"]).contains("OriginAnswers")
    });
    cluster.delete(&manifest);
    nothing_is_left(&cluster);
}

#[test]
fn the_node_has_no_capability_and_logs_no_secret() {
    let bucket = Bucket::new(Server::Minio);
    let cluster = installed(&bucket);
    let inline = example("ephemeral.yaml", &bucket);
    let canary = "canary-3f9a1c";
    cluster.apply(&inline.replace(&bucket.secret_key, canary));
    cluster.eventually("refused keys are told", |cluster| {
        cluster.kubectl(&["describe", "pod", "ephemeral"]).contains("SignatureDoesNotMatch")
    });
    assert!(!cluster.logs().contains(canary));
    assert!(!cluster.kubectl(&["get", "events", "-A", "-o", "yaml"]).contains(canary));
    cluster.delete(&inline);
    let status = |role: &str| {
        let find = format!("cat /proc/$(pgrep -f '/bin/weir {role}' | head -1)/status");
        let output = cluster.on_node(&["sh", "-c", &find]);
        String::from_utf8(output.stdout).unwrap()
    };
    let field = |status: &str, name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    let (node, mounter) = (status("node"), status("mounter"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&node, set), 0, "{set}");
    }
    // CAP_SYS_ADMIN.
    assert_eq!((field(&mounter, "CapEff"), field(&mounter, "CapBnd")), (1 << 21, 1 << 21));
}

/// A pod that has the claim of the static example at /assets.
fn pod(name: &str, spec: &Value, mount: &Value) -> String {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "app", "image": "busybox:local", "command": ["sleep", "infinity"],
                "volumeMounts": [{"name": "assets", "mountPath": "/assets"}],
            }],
            "volumes": [{"name": "assets", "persistentVolumeClaim": {"claimName": "assets"}}],
        },
    });
    merge(&mut pod["spec"], spec);
    merge(&mut pod["spec"]["containers"][0]["volumeMounts"][0], mount);
    pod.to_string()
}

fn merge(into: &mut Value, more: &Value) {
    for (key, value) in more.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

#[test]
fn groups_parts_and_read_only_mounts_of_one_volume() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("games/chess/board", "8x8");
    bucket.put("games/go/board", "19x19");
    let (cluster, manifest) = with_static_pod(&bucket);
    let group = |gid: u32| json!({"securityContext": {"fsGroup": gid}});
    let pods = [
        pod("one", &group(1000), &json!({})),
        pod("two", &group(2000), &json!({})),
        pod("part", &json!({}), &json!({"subPath": "games/go"})),
        pod("file", &json!({}), &json!({"subPath": "games/chess/board", "mountPath": "/board"})),
        pod("reader", &json!({}), &json!({"readOnly": true})),
    ];
    for pod in &pods {
        cluster.apply(pod);
    }
    for (pod, gid) in [("one", "1000"), ("two", "2000")] {
        cluster.until_ready(pod);
        let shown = cluster
            .exec(pod, "stat -c %g /assets/games/chess/board && cat /assets/games/chess/board");
        assert_eq!(shown.unwrap(), format!("{gid}\n8x8"));
        cluster.exec(pod, &format!("echo {pod} >/assets/{pod}")).unwrap();
    }
    assert_eq!(bucket.get("two").unwrap(), b"two\n");
    cluster.until_ready("part");
    assert_eq!(cluster.exec("part", "ls /assets && cat /assets/board").unwrap(), "board\n19x19");
    cluster.until_ready("file");
    assert_eq!(cluster.exec("file", "cat /board").unwrap(), "8x8");
    cluster.until_ready("reader");
    let refused = cluster.exec("reader", "echo x >/assets/new").unwrap_err();
    assert!(refused.contains("Read-only"), "{refused}");
    for pod in &pods {
        cluster.delete(pod);
    }
    cluster.delete(&manifest);
    nothing_is_left(&cluster);
}

#[test]
fn every_manifest_is_taken_by_the_api_server() {
    let bucket = Bucket::new(Server::Minio);
    let cluster = installed(&bucket);
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        let name = match file.file_type().unwrap().is_dir() {
            // Of an edge cluster, what is of kinds that every API server has.
            true => "edge/volume.yaml".to_owned(),
            false => file.file_name().into_string().unwrap(),
        };
        cluster.dry_run(&example(&name, &bucket)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    // What is made only where somebody brought its kind.
    let chart = cluster.helm(&[
        "template",
        "weir",
        &Cluster::chart(),
        "--api-versions",
        "monitoring.coreos.com/v1",
        "--kube-version",
        "1.34.0",
        "--show-only",
        "templates/monitoring.yaml",
    ]);
    assert!(chart.contains("kind: PodMonitor") && chart.contains("port: metrics"), "{chart}");
}
