//! Pods that read with the role of their service account.

use serde_json::json;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::cluster::Cluster;
use weir_tests::sts::RoleService;

use super::{installed, node_pod, nothing_is_left};

const READER: &str = "arn:aws:iam::111122223333:role/teams/reader";
const WRITER: &str = "arn:aws:iam::111122223333:role/teams/writer";
const REFUSED: &str = "arn:aws:iam::111122223333:role/refused";
const NAMED: &str = "arn:aws:iam::111122223333:role/named";
const ACCOUNT: &str = r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"app"}}"#;

/// A pod of the service account, with all of the bucket at /assets.
fn pod(name: &str, bucket: &Bucket, role: Option<&str>) -> String {
    let mut attributes = json!({"bucketName": bucket.name, "authenticationSource": "pod"});
    if let Some(role) = role {
        attributes["roleArn"] = role.into();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "serviceAccountName": "app",
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "app", "image": "busybox:local", "command": ["sleep", "infinity"],
                "volumeMounts": [{"name": "assets", "mountPath": "/assets"}],
            }],
            "volumes": [{"name": "assets", "csi": {
                "driver": "s3.csi.weir.dev", "volumeAttributes": attributes,
            }}],
        },
    })
    .to_string()
}

fn annotate(cluster: &Cluster, role: &str) {
    let annotation = format!("eks.amazonaws.com/role-arn={role}");
    cluster.kubectl(&["annotate", "--overwrite", "serviceaccount", "app", &annotation]);
}

fn may_read_accounts(cluster: &Cluster) -> bool {
    let node = "system:serviceaccount:weir:weir-node";
    let right = ["auth", "can-i", "get", "serviceaccounts", "-A", "--as", node];
    cluster.try_kubectl(&right).is_ok_and(|told| told.starts_with("yes"))
}

/// How often kubelet has published volumes to the node plugin that runs now.
fn publishes(cluster: &Cluster) -> u64 {
    let address = node_pod(cluster, "status.podIP");
    let page = cluster.on_node(&["curl", "-s", &format!("http://{address}:9464/metrics")]);
    let page = String::from_utf8(page.stdout).unwrap();
    let of_publishes = |line: &&str| {
        line.starts_with("csi_operations_seconds_count{") && line.contains("NodePublishVolume\"")
    };
    let counts = page.lines().filter(of_publishes);
    counts.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn a_pod_has_the_role_that_its_service_account_names_when_it_starts() {
    let bucket = Bucket::new(Server::Minio);
    for key in ["f", "g"] {
        bucket.put(key, "bytes");
    }
    let cluster = installed(&bucket);
    let service = RoleService::start(cluster.listen(0), &[READER, WRITER, NAMED], &bucket);
    let with = |reads: bool| {
        let mut values = cluster.values();
        let sts = &service.url;
        values["podIdentity"] = json!({"stsEndpointUrl": sts, "roleFromServiceAccount": reads});
        values
    };
    cluster.install(&with(true));
    assert!(may_read_accounts(&cluster));
    cluster.apply(ACCOUNT);
    let one = pod("one", &bucket, None);
    cluster.apply(&one);
    cluster.eventually("what is missing is told", |cluster| {
        let described = cluster.kubectl(&["describe", "pod", "one"]);
        described.contains("service account default/app has no annotation")
    });
    annotate(&cluster, "reader");
    cluster.eventually("what is wrong is told", |cluster| {
        cluster.kubectl(&["describe", "pod", "one"]).contains("which is no ARN of a role")
    });
    assert_eq!(service.asked(), []);
    annotate(&cluster, REFUSED);
    cluster.eventually("what is refused is told", |cluster| {
        cluster.kubectl(&["describe", "pod", "one"]).contains("no such role")
    });
    // Sooner than an answer is forgotten by itself.
    annotate(&cluster, READER);
    cluster.until_ready("one");
    assert_eq!(cluster.exec("one", "cat /assets/f").unwrap(), "bytes");
    let session = |role: &str| (role.to_owned(), "default.app".to_owned());
    let before = service.asked().len();
    assert_eq!(service.asked().last(), Some(&session(READER)));

    // A node plugin that may not ask: the pod goes on with the role that it has.
    annotate(&cluster, WRITER);
    cluster.install(&with(false));
    assert!(!may_read_accounts(&cluster));
    cluster.eventually("kubelet publishes again", |cluster| publishes(cluster) > 0);
    assert_eq!(cluster.exec("one", "cat /assets/g").unwrap(), "bytes");
    let since = service.asked().split_off(before);
    assert!(since.iter().all(|asked| *asked == session(READER)), "{since:?}");
    let described = cluster.kubectl(&["describe", "pod", "one"]);
    for told in ["CredentialsRefused", "SettingsChanged"] {
        assert!(!described.contains(told), "{described}");
    }

    // A pod that starts has the role of then, unless its volume names one.
    cluster.install(&with(true));
    cluster.delete(&one);
    cluster.apply(&one);
    cluster.until_ready("one");
    assert_eq!(service.asked().last(), Some(&session(WRITER)));
    let two = pod("two", &bucket, Some(NAMED));
    cluster.apply(&two);
    cluster.until_ready("two");
    assert_eq!(service.asked().last(), Some(&session(NAMED)));
    for manifest in [&two, &one, ACCOUNT] {
        cluster.delete(manifest);
    }
    nothing_is_left(&cluster);
}
