//! What the chart makes, as helm renders it without a cluster.

use std::path::Path;
use std::process::Command;

use weir_tests::cluster::Cluster;
use weir_tests::tools;

/// What helm prints for a Kubernetes of today.
fn template(args: &[&str]) -> Result<String, String> {
    template_for("1.34.0", args)
}

/// What helm prints for a version of Kubernetes, or its error.
fn template_for(version: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(tools::path("helm"))
        .args([
            "template",
            "weir",
            &Cluster::chart(),
            "--namespace",
            "weir",
            "--kube-version",
            version,
        ])
        .args(args)
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// The documents of this kind and name.
fn object<'a>(all: &'a str, kind: &str, name: &str) -> Option<&'a str> {
    let is_it = |text: &&str| {
        let lines: Vec<_> = text.lines().collect();
        lines.contains(&&*format!("kind: {kind}")) && lines.contains(&&*format!("  name: {name}"))
    };
    all.split("\n---\n").find(is_it)
}

#[test]
fn a_node_may_write_its_own_report_alone_however_weir_is_installed() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kustomize/base/weir.yaml");
    let base = std::fs::read_to_string(base).unwrap();
    let today = template(&[]).unwrap();
    assert_eq!(base, today, "deploy/kustomize/build has not been run");
    for rendered in [base, template_for("1.30.0", &[]).unwrap()] {
        let of_reconciler = ["nodes", "persistentvolumes", "weirnodes"];
        let of_reconciler = of_reconciler.map(|kind| format!("weir-reconciler-{kind}"));
        let others = ["weir-own-weirnode", "weir-controller-persistentvolumes"].map(str::to_owned);
        for name in [&others[..], &of_reconciler].concat() {
            assert!(object(&rendered, "ValidatingAdmissionPolicy", &name).is_some(), "{name}");
            let binding = object(&rendered, "ValidatingAdmissionPolicyBinding", &name).unwrap();
            assert!(binding.contains("validationActions: [Deny]"), "{binding}");
        }
        // Each kind that it patches has a policy, which is for the account that it has.
        let rights = object(&rendered, "ClusterRole", "weir-reconciler").unwrap();
        assert_eq!(rights.matches("patch]").count(), of_reconciler.len());
        let who = "system:serviceaccount:weir:weir-reconciler";
        assert_eq!(rendered.matches(who).count(), of_reconciler.len());
        // Who makes PersistentVolumes makes, changes and removes those of Weir.
        let rights = object(&rendered, "ClusterRoleBinding", "weir-provisioner").unwrap();
        assert!(rights.contains("name: weir-controller, namespace: weir}"), "{rights}");
        let policy = "weir-controller-persistentvolumes";
        let policy = object(&rendered, "ValidatingAdmissionPolicy", policy).unwrap();
        for wanted in [
            "operations: [CREATE, UPDATE, DELETE]",
            "\"system:serviceaccount:weir:weir-controller\"",
            "has(object.spec.csi) && object.spec.csi.driver == \"s3.csi.weir.dev\"",
            "has(oldObject.spec.csi) && oldObject.spec.csi.driver == \"s3.csi.weir.dev\"",
        ] {
            assert!(policy.contains(wanted), "{wanted}: {policy}");
        }
    }
    let before = template_for("1.29.0", &[]).unwrap();
    assert!(!before.contains("ValidatingAdmissionPolicy"));
}

#[test]
fn secrets_are_read_in_named_namespaces_alone() {
    let usual = template(&[]).unwrap();
    assert!(!usual.contains("resources: [secrets]"));
    let named = template(&["--set", "controller.secretNamespaces={team-a}"]).unwrap();
    let role = object(&named, "Role", "weir-provisioner-secrets").unwrap();
    assert!(role.contains("namespace: team-a") && role.contains("resources: [secrets]"));
    assert!(object(&named, "ClusterRole", "weir-provisioner").unwrap().contains("claims"));
    assert_eq!(named.matches("resources: [secrets]").count(), 1);
}

#[test]
fn each_role_has_an_account_of_its_own_with_annotations() {
    let annotation = "serviceAccounts.node.annotations.eks\\.amazonaws\\.com/role-arn=arn";
    let all = template(&["--set", annotation]).unwrap();
    let node = object(&all, "ServiceAccount", "weir-node").unwrap();
    assert!(node.contains("eks.amazonaws.com/role-arn: arn"), "{node}");
    let check = template(&["--show-only", "templates/uninstall.yaml"]).unwrap();
    assert!(check.contains("serviceAccountName: weir-uninstall-check"));
    let controller = object(&all, "Deployment", "weir-controller").unwrap();
    assert!(controller.contains("serviceAccountName: weir-controller"));
    // Who has S3 and the provisioner has no right to change Nodes.
    let rights = object(&all, "ClusterRoleBinding", "weir-reconciler").unwrap();
    assert!(rights.contains("name: weir-reconciler, namespace") && !rights.contains("controller"));
    let provisioner = object(&all, "ClusterRole", "weir-provisioner").unwrap();
    assert!(provisioner.contains("resources: [nodes], verbs: [get, list, watch]"));
}

#[test]
fn kubelet_is_asked_for_the_tokens_that_a_value_names_and_no_other() {
    let of = |flags: &[&str]| {
        let all = template(flags).unwrap();
        let driver = object(&all, "CSIDriver", "s3.csi.weir.dev").unwrap();
        (driver.to_owned(), object(&all, "DaemonSet", "weir-node").unwrap().to_owned())
    };
    let (driver, node) = of(&[]);
    assert!(driver.contains("audience: sts.amazonaws.com") && !driver.contains("eks"), "{driver}");
    assert!(node.contains("--sts-audience=sts.amazonaws.com") && !node.contains("agent-url"));
    let (driver, _) = of(&["--set", "podIdentity.enabled=false"]);
    assert!(!driver.contains("tokenRequests"), "{driver}");
    let mine = "podIdentity.audience=minio,podIdentity.stsCaConfigMap=minio-ca";
    let (driver, node) = of(&["--set", mine]);
    assert!(driver.contains("audience: minio"), "{driver}");
    for wanted in ["--sts-audience=minio", "--sts-ca-bundle=/etc/weir/sts/ca.crt", "minio-ca"] {
        assert!(node.contains(wanted), "{wanted}");
    }
    let (driver, node) = of(&["--set", "podIdentity.enabled=false,podIdentity.eks=true"]);
    assert!(driver.contains("pods.eks.amazonaws.com") && !driver.contains("sts."), "{driver}");
    assert!(node.contains("--pod-identity-agent-url=http://169.254.170.23"));
}

#[test]
fn a_feed_is_followed_with_what_its_values_name_and_without_a_url_there_is_none() {
    let node = |values: &str| {
        let all = template(&["--set", values]).unwrap();
        object(&all, "DaemonSet", "weir-node").unwrap().to_owned()
    };
    let without = node("feed.credentialsSecretName=k,feed.caConfigMap=ca");
    assert!(!without.contains("feed"), "{without}");
    let all = "feed.urls={nats://a:4222,tls://b/x.y},feed.timeoutSeconds=7";
    let plain = node(all);
    for wanted in [
        "- --feed=nats://a:4222\n",
        "- --feed=tls://b/x.y\n",
        "- --feed-timeout=7\n",
        "- --feed-metadata-ttl=300\n",
    ] {
        assert!(plain.contains(wanted), "{wanted}: {plain}");
    }
    assert!(!plain.contains("/etc/weir/feed"), "{plain}");
    let full = node(&format!("{all},feed.credentialsSecretName=keys,feed.caConfigMap=nats-ca"));
    for wanted in [
        "- --feed-credentials-file=/etc/weir/feed/keys/credentials\n",
        "- --feed-ca-bundle=/etc/weir/feed/ca/ca.crt\n",
        "- {name: feed-keys, mountPath: /etc/weir/feed/keys, readOnly: true}\n",
        "secretName: keys",
        "- {name: feed-ca, mountPath: /etc/weir/feed/ca, readOnly: true}\n",
        "name: nats-ca",
    ] {
        assert!(full.contains(wanted), "{wanted}: {full}");
    }
    for bad in ["feed.urls={http://a}", "feed.urls={nats://u:p@a}", "feed.timeoutSeconds=0"] {
        template(&["--set", bad]).unwrap_err();
    }
}

#[test]
fn what_a_store_says_is_published_by_one_controller_with_what_the_values_name() {
    let controller = |values: &str| {
        let all = template(&["--set", values])?;
        let policy = object(&all, "NetworkPolicy", "weir-webhook").map(str::to_owned);
        let service = object(&all, "Service", "weir-webhook").map(str::to_owned);
        let controller = object(&all, "Deployment", "weir-controller").unwrap().to_owned();
        Ok::<_, String>((controller, service.zip(policy)))
    };
    let has = |text: &str, wanted: &[&str]| {
        wanted.iter().for_each(|wanted| assert!(text.contains(wanted), "{wanted}: {text}"));
    };
    let urls = "feed.urls={nats://a:4222},feed.credentialsSecretName=keys";
    let (without, none) = controller(urls).unwrap();
    assert!(!without.contains("feed") && none.is_none(), "{without}");
    let queue = format!("{urls},feed.from.source=sqs://events,feed.from.buckets={{assets,more}}");
    let (queued, none) = controller(&queue).unwrap();
    has(
        &queued,
        &[
            "strategy: {type: Recreate}",
            "- --feed=nats://a:4222\n",
            "- --feed-credentials-file=/etc/weir/feed/keys/credentials\n",
            "- --feed-from=sqs://events\n",
            "- --feed-bucket=assets\n",
            "- --feed-bucket=more\n",
            "- {name: feed-keys, mountPath: /etc/weir/feed/keys, readOnly: true}\n",
        ],
    );
    assert!(!queued.contains("webhook") && none.is_none());
    let secrets = "feed.from.webhook.tokenSecretName=token,feed.from.webhook.tlsSecretName=tls";
    let from = "feed.from.source=webhook://0.0.0.0:8443,feed.from.canaries={s3://assets/canary}";
    let (posted, open) = controller(&format!("{urls},{from},{secrets}")).unwrap();
    has(
        &posted,
        &[
            "- --feed-from=webhook://0.0.0.0:8443\n",
            "- --feed-canary=s3://assets/canary\n",
            "- --feed-webhook-token-file=/etc/weir/webhook/token/token\n",
            "- --feed-webhook-cert=/etc/weir/webhook/tls/tls.crt\n",
            "- --feed-webhook-key=/etc/weir/webhook/tls/tls.key\n",
            "- {name: webhook, containerPort: 8443}\n",
            "- {name: webhook-token, mountPath: /etc/weir/webhook/token, readOnly: true}\n",
            "- {name: webhook-tls, mountPath: /etc/weir/webhook/tls, readOnly: true}\n",
        ],
    );
    let (service, policy) = open.unwrap();
    has(&service, &["type: ClusterIP", "port: 8443, targetPort: webhook"]);
    assert!(policy.contains("port: 8443}") && !policy.contains("from:"), "{policy}");
    for (bad, said) in [
        ("feed.from.source=sqs://events".to_owned(), "needs feed.urls"),
        (format!("{queue},controller.replicas=2"), "controller.replicas is 1"),
        (format!("{urls},{from}"), "tokenSecretName and .tlsSecretName"),
        (format!("{urls},feed.from.source=kafka://q"), "source"),
        (format!("{urls},feed.from.source=sqs://KEY:HUSH@q"), "source"),
    ] {
        let error = controller(&bad).unwrap_err();
        assert!(error.contains(said), "{bad}: {error}");
    }
}

#[test]
fn a_region_is_asked_with_what_its_values_name_and_without_a_url_there_is_none() {
    let node = |values: &str| {
        let all = template(&["--set", values]).unwrap();
        object(&all, "DaemonSet", "weir-node").unwrap().to_owned()
    };
    let has = |node: &str, wanted: &[&str]| {
        wanted.iter().for_each(|wanted| assert!(node.contains(wanted), "{wanted}: {node}"));
    };
    let without = node("region.tokenSecretName=t,region.caConfigMap=ca");
    assert!(!without.contains("region"), "{without}");
    let plain = node("region.url=http://ais:51080");
    has(&plain, &["- --region-url=http://ais:51080\n", "- --region-kind=aistore\n"]);
    assert!(!plain.contains("/etc/weir/region"), "{plain}");
    let all = "region.url=https://ais,region.allow={t1,t2:51081},region.caConfigMap=ais-ca";
    has(
        &node(&format!("{all},region.tokenSecretName=ais-token")),
        &[
            "- --region-allow=t1,t2:51081\n",
            "- --region-token-file=/etc/weir/region/token/token\n",
            "- {name: region-token, mountPath: /etc/weir/region/token, readOnly: true}\n",
            "secretName: ais-token\n",
            "- --region-ca-bundle=/etc/weir/region/ca/ca.crt\n",
            "- {name: region-ca, mountPath: /etc/weir/region/ca, readOnly: true}\n",
            "name: ais-ca",
        ],
    );
    has(
        &node(&format!("{all},region.tokenAudience=ais")),
        &["- --region-token-file=/etc/weir/region/token/token\n", "audience: ais"],
    );
    has(
        &node("region.url=http://s3,region.kind=s3,region.credentialsSecretName=keys"),
        &[
            "- --region-kind=s3\n",
            "- --region-profile=region\n",
            "- {name: AWS_SHARED_CREDENTIALS_FILE, value: /etc/weir/region/keys/credentials}\n",
            "secretName: keys",
        ],
    );
    let both = "region.url=http://a,region.tokenSecretName=t,region.tokenAudience=a";
    assert!(template(&["--set", both]).unwrap_err().contains("one of them"));
    for bad in ["region.kind=swift", "region.url=ais", "region.allow={http://t/}"] {
        template(&["--set", bad]).unwrap_err();
    }
}

#[test]
fn service_accounts_are_read_where_a_value_says_so_alone() {
    let of = |value: &str| {
        let all = template(&["--set", value]).unwrap();
        let node = object(&all, "DaemonSet", "weir-node").unwrap().to_owned();
        let rights = object(&all, "ClusterRole", "weir-node").unwrap().to_owned();
        // Nobody else reads them.
        let right = "resources: [serviceaccounts]";
        assert_eq!(all.matches(right).count(), rights.matches(right).count());
        assert!(!all.contains("serviceaccounts/token"));
        let get_alone = rights.contains("resources: [serviceaccounts], verbs: [get]}");
        (node.contains("- --role-from-service-account\n"), rights.contains(right), get_alone)
    };
    assert_eq!(of("podIdentity.enabled=true"), (false, false, false));
    assert_eq!(of("podIdentity.roleFromServiceAccount=true"), (true, true, true));
    // Without tokens for them roles are of no use.
    let without = "podIdentity.roleFromServiceAccount=true,podIdentity.enabled=false";
    assert_eq!(of(without), (false, false, false));
}

#[test]
fn a_class_may_say_where_its_volumes_are() {
    let class = r#"storageClasses=[{"name": "near", "parameters": {"bucketName": "b"},
        "allowedTopologies": [{"matchLabelExpressions":
        [{"key": "topology.weir.dev/gpu-product", "values": ["H200"]}]}]}]"#;
    let all = template(&["--set-json", class]).unwrap();
    assert!(object(&all, "StorageClass", "near").unwrap().contains("gpu-product"));
}

#[test]
fn probes_have_ports_of_their_own_and_metrics_are_read_from_where_a_value_says() {
    let all = template(&["--set", "node.maxUnavailable=10%"]).unwrap();
    let node = object(&all, "DaemonSet", "weir-node").unwrap();
    for wanted in
        ["maxUnavailable: 10%", "path: /readyz, port: health", "path: /healthz, port: health"]
    {
        assert!(node.contains(wanted), "{wanted}");
    }
    assert!(!all.contains("port: metrics}"), "a probe asks the port of metrics");
    let policy = object(&all, "NetworkPolicy", "weir").unwrap();
    for wanted in ["metadata.name: monitoring", "port: 9464", "port: 9465", "port: 9466"] {
        assert!(policy.contains(wanted), "{wanted}");
    }
    assert!(!policy.contains("port: 9467"));
    let from = r#"networkPolicy.metricsFrom=[{"podSelector": {"matchLabels": {"app": "prom"}}}]"#;
    let policy = template(&["--set-json", from]).unwrap();
    let policy = object(&policy, "NetworkPolicy", "weir").unwrap();
    assert!(policy.contains("app: prom") && !policy.contains("monitoring"));
}

#[test]
fn the_image_is_nobodys_and_each_container_says_otherwise_where_it_must() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/Dockerfile");
    let file = std::fs::read_to_string(file).unwrap();
    assert!(file.lines().any(|line| line == "USER 65532:65532"));
    // An image is an argument, so that a release can give it by digest.
    for line in file.lines().filter(|line| line.starts_with("FROM ")) {
        assert!(line.starts_with("FROM ${"), "{line}");
    }
    let all = template(&[]).unwrap();
    let mounter = object(&all, "DaemonSet", "weir-mounter").unwrap();
    assert_eq!(mounter.matches("runAsUser: 0").count(), 1);
    let standby = object(&all, "DaemonSet", "weir-standby").unwrap();
    assert!(standby.contains("runAsUser: 65531") && standby.contains("runAsNonRoot: true"));
    // The registrar: kubelet's folder is root's, and the plugin's is not its to write in.
    assert_eq!(standby.matches("runAsUser: 0").count(), 1);
    let (_, registrar) = standby.split_once("- name: registrar\n").unwrap();
    assert!(registrar.contains("{name: plugin, mountPath: /csi, readOnly: true}"), "{registrar}");
    let node = object(&all, "DaemonSet", "weir-node").unwrap();
    assert_eq!(node.matches("runAsUser: 0").count(), 1);
}

#[test]
fn the_cache_leaves_kubelet_what_it_wants() {
    assert!(template(&[]).unwrap().contains("--cache-min-free=20%"));
}

#[test]
fn the_mounter_is_alone_with_the_hosts_pids_and_knows_its_peers_by_what_they_declare() {
    let all = template(&["--set", "standby.group=1000650000"]).unwrap();
    let set = |name: &str| object(&all, "DaemonSet", name).unwrap();
    let (mounter, standby, node) = (set("weir-mounter"), set("weir-standby"), set("weir-node"));
    assert_eq!(all.matches("hostPID: true").count(), 1);
    assert!(mounter.contains("hostPID: true") && mounter.matches("image: ").count() == 1);
    for (peer, role, sockets) in [(node, "engine", "mounter"), (standby, "visitor", "visitor")] {
        assert!(mounter.contains(&format!("--{role}-volume=weir-{role}\n")), "{mounter}");
        assert!(peer.contains(&format!("name: weir-{role}\n          emptyDir: {{}}")), "{peer}");
        // What no container mounts kubelet does not make.
        assert!(peer.contains(&format!("name: weir-{role}, mountPath: ")), "{peer}");
        // Where the mounter's socket is nobody else puts anything.
        let sockets = format!("- {{name: {sockets}, mountPath: /mounter, readOnly: true}}\n");
        assert!(
            peer.contains(&sockets) && peer.matches("mountPath: /mounter").count() == 1,
            "{peer}"
        );
        // Whose sockets are one group's.
        assert!(peer.contains("supplementalGroups: [1000650000]"), "{peer}");
        assert!(peer.contains("--csi-group=1000650000\n"), "{peer}");
    }
    assert!(mounter.contains("--visitor-group=1000650000\n"));
    let open = template(&["--set", "mounter.checkPeers=false"]).unwrap();
    assert!(!open.contains("--engine-volume") && !open.contains("--visitor-volume"));
}

#[test]
fn an_image_is_what_its_digest_says_where_there_is_one() {
    let images = |values: &str| {
        let all = template(&["--set", values]).unwrap();
        let hook = template(&["--set", values, "--show-only", "templates/uninstall.yaml"]).unwrap();
        let lines = all.lines().chain(hook.lines()).map(str::trim);
        let mut images: Vec<_> =
            lines.filter_map(|line| line.strip_prefix("image: ")).map(str::to_owned).collect();
        images.sort();
        images.dedup();
        images
    };
    let sidecars = ["csi-node-driver-registrar:v2.15.0", "csi-provisioner:v5.3.0"]
        .map(|name| format!("registry.k8s.io/sig-storage/{name}"));
    assert_eq!(images("image.tag=v7")[..2], sidecars);
    assert_eq!(images("image.tag=v7")[2..], ["weir.dev/weir:v7"]);
    let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
    let (ours, registrar, provisioner) = (digest("a"), digest("b"), digest("c"));
    // A port of the registry is no tag.
    let pinned = images(&format!(
        "image.repository=localhost:5000/weir,image.tag=v7,image.digest={ours},\
         sidecars.registrar.digest={registrar},sidecars.provisioner.digest={provisioner},\
         sidecars.provisioner.image=localhost:5000/provisioner"
    ));
    let expected = [
        format!("localhost:5000/provisioner@{provisioner}"),
        format!("localhost:5000/weir@{ours}"),
        format!("registry.k8s.io/sig-storage/csi-node-driver-registrar@{registrar}"),
    ];
    assert_eq!(pinned, expected);
    assert!(template(&["--set", "image.digest=v1"]).unwrap_err().contains("digest"));
}

#[test]
fn a_cache_that_is_to_have_a_disk_of_its_own_sees_it_once_it_is_mounted() {
    let of = |values: &str| {
        let all = template(&["--set", values]).unwrap();
        object(&all, "DaemonSet", "weir-node").unwrap().to_owned()
    };
    let usual = of("node.cache.ownDisk=false");
    assert!(!usual.contains("--cache-apart-from") && !usual.contains("mountPropagation"));
    let own = of("node.cache.ownDisk=true,node.cache.moreHostPaths={/mnt/two}");
    assert!(own.contains("- --cache-apart-from=/csi\n"), "{own}");
    for mount in ["cache, mountPath: /cache", "cache-1, mountPath: /cache-1"] {
        let mount = format!("{{name: {mount}, mountPropagation: HostToContainer}}");
        assert!(own.contains(&mount), "{own}");
    }
}

#[test]
fn the_values_of_the_edge_example_name_a_region() {
    let values = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/edge/weir-values.yaml");
    let all = template(&["--values", values.to_str().unwrap()]).unwrap();
    let node = object(&all, "DaemonSet", "weir-node").unwrap();
    assert!(node.contains("--region-url=http://10.20.0.16:51080"), "{node}");
    assert!(node.contains("10.20.0.18:51081"), "{node}");
}
