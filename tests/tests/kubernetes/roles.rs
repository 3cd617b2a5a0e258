//! Pods that read with the role of their service account.

use std::sync::MutexGuard;

use serde_json::{Value, json};
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

/// Takes the right to read service accounts, which is the last of the node plugin's, or gives it back.
fn change_right(cluster: &Cluster, change: &Value) {
    let change = json!([change]).to_string();
    cluster.kubectl(&["patch", "clusterrole", "weir-node", "--type=json", "-p", &change]);
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

/// The cluster, with a token service that knows the roles, and a service account without annotation.
fn with_roles(bucket: &Bucket) -> (MutexGuard<'static, Cluster>, RoleService) {
    let cluster = installed(bucket);
    let service = RoleService::start(cluster.listen(0), &[READER, WRITER, NAMED], bucket);
    install(&cluster, &service, true);
    cluster.apply(ACCOUNT);
    (cluster, service)
}

/// Installs a node plugin that reads service accounts, or does not.
fn install(cluster: &Cluster, service: &RoleService, reads: bool) {
    let mut values = cluster.values();
    let sts = &service.url;
    values["podIdentity"] = json!({"stsEndpointUrl": sts, "roleFromServiceAccount": reads});
    cluster.install(&values);
    cluster.eventually("the right is as the value says", |cluster| {
        may_read_accounts(cluster) == reads
    });
}

/// A role that was asked for, and the session's name.
fn session(role: &str) -> (String, String) {
    (role.to_owned(), "default.app".to_owned())
}

#[test]
fn a_pod_has_the_role_that_its_service_account_names_when_it_starts() {
    let bucket = Bucket::new(Server::Minio);
    for key in ["f", "g"] {
        bucket.put(key, "bytes");
    }
    let (cluster, service) = with_roles(&bucket);
    annotate(&cluster, READER);
    let one = pod("one", &bucket, None);
    cluster.apply(&one);
    cluster.until_ready("one");
    assert_eq!(cluster.exec("one", "cat /assets/f").unwrap(), "bytes");

    // A node plugin that may not ask: the pod goes on with the role that it has.
    annotate(&cluster, WRITER);
    install(&cluster, &service, false);
    cluster.eventually("kubelet publishes again", |cluster| publishes(cluster) > 0);
    assert_eq!(cluster.exec("one", "cat /assets/g").unwrap(), "bytes");
    let asked = service.asked();
    assert!(!asked.is_empty() && asked.iter().all(|asked| *asked == session(READER)), "{asked:?}");
    let described = cluster.kubectl(&["describe", "pod", "one"]);
    for told in ["CredentialsRefused", "SettingsChanged"] {
        assert!(!described.contains(told), "{described}");
    }

    // A pod that starts has the role of then, unless its volume names one.
    install(&cluster, &service, true);
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

#[test]
fn what_keeps_a_pod_from_its_role_is_told_and_can_be_mended() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("f", "bytes");
    let (cluster, service) = with_roles(&bucket);
    let rules = cluster.get(&["clusterrole", "weir-node"])["rules"].clone();
    let last = rules.as_array().unwrap().len() - 1;
    let path = format!("/rules/{last}");
    change_right(&cluster, &json!({"op": "remove", "path": path}));
    cluster.eventually("the right is gone", |cluster| !may_read_accounts(cluster));
    let one = pod("one", &bucket, None);
    cluster.apply(&one);
    let is_told = |words: &str| {
        cluster.eventually(words, |cluster| {
            cluster.kubectl(&["describe", "pod", "one"]).contains(words)
        });
    };
    is_told("set podIdentity.roleFromServiceAccount of the chart");
    change_right(&cluster, &json!({"op": "add", "path": path, "value": rules[last]}));
    is_told("service account default/app has no annotation");
    annotate(&cluster, "reader");
    is_told("which is no ARN of a role");
    assert_eq!(service.asked(), []);
    annotate(&cluster, REFUSED);
    is_told("no such role");
    // Sooner than an answer is forgotten by itself.
    annotate(&cluster, READER);
    cluster.until_ready("one");
    assert_eq!(cluster.exec("one", "cat /assets/f").unwrap(), "bytes");
    assert_eq!(service.asked().last(), Some(&session(READER)));
    for manifest in [&*one, ACCOUNT] {
        cluster.delete(manifest);
    }
    nothing_is_left(&cluster);
}
