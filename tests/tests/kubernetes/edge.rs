//! A cluster with a regional cache before its origin.

use serde_json::json;
use weir_tests::aistore::{AiStore, Manners};
use weir_tests::bucket::{Bucket, Server};
use weir_tests::random_bytes;

use super::{MIB, example, installed, md5, nothing_is_left};

#[test]
fn the_edge_example_reads_through_the_region_and_goes_on_without_it() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("models/board", "19x19\n");
    for n in 0..3 {
        bucket.put(&format!("models/part-{n}"), random_bytes(n, 3 * MIB));
    }
    let cluster = installed(&bucket);
    let region = AiStore::on(&bucket.name, bucket.origin(), || cluster.listen(0));
    let mut values = cluster.values();
    values["region"] = json!({"url": region.url()});
    cluster.install(&values);
    let manifest = example("edge/volume.yaml", &bucket);
    cluster.apply(&manifest);
    cluster.until_ready("edge");
    cluster.eventually("the pod has played", |_| bucket.get("results/score").is_some());
    assert!(region.has("models/board"));
    let read = |n: u64| {
        let read = cluster.exec("edge", &format!("md5sum /models/part-{n}")).unwrap();
        assert!(read.starts_with(&md5(&random_bytes(n, 3 * MIB))), "{read}");
    };
    read(0);
    assert!(region.has("models/part-0"));
    // What says region: off does not pass through it.
    assert_eq!(cluster.exec("edge", "cat /results/score").unwrap().trim(), "played");
    assert!(!region.has("results/score"));

    // Without the region pods go on; without the origin, with what is cached.
    region.behave(Manners { fails_with: Some(500), ..Manners::default() });
    read(1);
    cluster.cut_s3(true);
    read(0);
    read(1);
    let refused = cluster.exec("edge", "md5sum /models/part-2").unwrap_err();
    assert!(refused.contains("error"), "{refused}");
    // What the origin let be read a while ago the region gives without it.
    region.behave(Manners::default());
    cluster.eventually("the region is asked again", |cluster| {
        cluster.exec("edge", "md5sum /models/part-2").is_ok()
    });
    cluster.cut_s3(false);
    read(2);
    cluster.delete(&manifest);
    nothing_is_left(&cluster);
}

/// Kinds of MetalLB, OVN-Kubernetes and NVIDIA's operator.
#[test]
fn what_the_edge_example_says_to_others_is_as_their_schemas_have_it() {
    let bucket = Bucket::new(Server::Minio);
    let cluster = installed(&bucket);
    let kinds = include_str!("../../kinds.yaml");
    cluster.apply(kinds);
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]);
    let namespaces = ["ais", "metallb-system"].map(|name| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}).to_string()
    });
    namespaces.iter().for_each(|namespace| cluster.apply(namespace));
    for (name, typo) in [
        ("aistore", ("awsSecretName", "awsSecretname")),
        ("metallb", ("autoAssign: false", "autoAssign: maybe")),
        ("egress", ("dnsName", "dnsname")),
    ] {
        let text = example(&format!("edge/{name}.yaml"), &bucket);
        cluster.dry_run(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        cluster.dry_run(&text.replace(typo.0, typo.1)).unwrap_err();
    }
    cluster.delete(kinds);
    namespaces.iter().for_each(|namespace| cluster.delete(namespace));
}
