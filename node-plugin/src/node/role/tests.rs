use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::Code;
use weir_csi::request::{Access, AccessMode, Capability, Context, Secrets, TargetPath, VolumeId};
use weir_fuse::adapter::Handshake;

use super::super::credentials::Tokens;
use super::super::record::Record;
use super::super::volume::Volume;
use super::*;
use crate::cli::S3Args;
use crate::kubernetes::accounts::Accounts;
use crate::kubernetes::accounts::twin::Server;

const READER: &str = "arn:aws:iam::111122223333:role/reader";
const WRITER: &str = "arn:aws:iam::111122223333:role/writer";

/// A publish of a volume with these attributes to a pod of the service account `team/app`.
pub(in super::super) fn publish(attributes: &[(&str, &str)]) -> Publish {
    let tokens = r#"{"sts.amazonaws.com":{"token":"a"},"pods.eks.amazonaws.com":{"token":"b"}}"#;
    let of_all = [
        ("bucketName", "assets"),
        ("region", "us-east-1"),
        ("csi.storage.k8s.io/pod.namespace", "team"),
        ("csi.storage.k8s.io/serviceAccount.name", "app"),
        ("csi.storage.k8s.io/serviceAccount.tokens", tokens),
    ];
    let all = of_all.iter().chain(attributes);
    let context: BTreeMap<_, _> = all.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let target = "/var/lib/kubelet/pods/8b0e/volumes/kubernetes.io~csi/data/mount";
    let mode = AccessMode { access: Access::Write, single: false };
    Publish {
        volume_id: VolumeId::parse("vol-1".into()).unwrap(),
        target: TargetPath::parse(target, "target_path").unwrap(),
        capability: Capability { mode, mount_flags: Vec::new(), mount_group: None },
        read_only: false,
        context: Context::parse(context, "volume_context").unwrap(),
        secrets: Secrets::parse(BTreeMap::new()).unwrap(),
    }
}

fn of_pod() -> Publish {
    publish(&[("authenticationSource", "pod")])
}

pub(in super::super) fn defaults(accounts: Option<Accounts>, has_agent: bool) -> Defaults {
    Defaults {
        s3: S3Args::default(),
        inline_driver_credentials: false,
        has_region: false,
        tokens: Tokens { audience: "sts.amazonaws.com".into(), has_agent },
        accounts: accounts.map(Arc::new),
    }
}

/// The volume that a publish asks for; `made` is what its target shows already.
async fn volume(
    publish: &Publish,
    defaults: &Defaults,
    made: Option<&Settings>,
) -> Result<Volume, Error> {
    let annotated = annotated(publish, defaults, made).await?;
    Volume::parse(publish, defaults, annotated)
}

fn role_of(volume: &Volume) -> Option<String> {
    match &volume.credentials {
        Source::Pod(web) => web.role_arn.clone(),
        Source::Driver | Source::Secret(_) => None,
    }
}

fn signer(volume: &Volume) -> &str {
    &volume.settings.session.names.access.identity
}

#[tokio::test]
async fn the_account_of_a_pod_is_asked_where_its_volume_names_no_role_and_not_else() {
    let server = Server::default();
    server.annotate(Some(READER));
    let asks = defaults(Some(server.accounts()), false);
    let named = [("authenticationSource", "pod"), ("roleArn", WRITER)];
    let named = volume(&publish(&named), &asks, None).await.unwrap();
    assert_eq!(role_of(&named).as_deref(), Some(WRITER));
    volume(&publish(&[]), &asks, None).await.unwrap();
    assert!(server.asked().is_empty(), "{:?}", server.asked());
    let annotated = volume(&of_pod(), &asks, None).await.unwrap();
    assert_eq!(role_of(&annotated).as_deref(), Some(READER));
    assert_eq!(server.asked(), ["GET /api/v1/namespaces/team/serviceaccounts/app"]);
    // Unless the node may ask, all is as it was.
    let silent = volume(&of_pod(), &defaults(None, false), None).await.unwrap();
    assert_eq!((role_of(&silent), &silent.settings.annotated), (None, &None));
}

#[tokio::test]
async fn the_role_of_an_annotation_is_who_signs() {
    let server = Server::default();
    server.annotate(Some(READER));
    let asks = defaults(Some(server.accounts()), false);
    let reader = volume(&of_pod(), &asks, None).await.unwrap();
    server.annotate(Some(WRITER));
    forget(&of_pod(), &asks);
    let writer = volume(&of_pod(), &asks, None).await.unwrap();
    let silent = volume(&of_pod(), &defaults(None, false), None).await.unwrap();
    assert_ne!(signer(&reader), signer(&writer));
    assert_ne!(signer(&reader), signer(&silent));
    // Wherever it stands, it is the same role.
    let named = [("authenticationSource", "pod"), ("roleArn", READER)];
    let named = volume(&publish(&named), &asks, None).await.unwrap();
    assert_eq!(signer(&reader), signer(&named));
    // Nobody's settings have changed by it.
    assert!(reader.settings.serves_as(&silent.settings));
}

#[tokio::test]
async fn a_session_keeps_the_role_that_it_was_made_with_and_asks_nobody_again() {
    let server = Server::default();
    server.annotate(Some(READER));
    let asks = defaults(Some(server.accounts()), false);
    let made = volume(&of_pod(), &asks, None).await.unwrap().settings;
    server.annotate(Some(WRITER));
    forget(&of_pod(), &asks);
    // What the node finds in custody when it starts again.
    let handshake = Handshake { request: vec![1], reply: vec![2] };
    let bytes = Record::new(made, handshake, "0:50".into(), "name".into()).bytes();
    let kept = Record::read(&bytes).unwrap().settings;
    let server_away = defaults(Some(Accounts::new(None)), false);
    for node in [&asks, &server_away, &defaults(None, false)] {
        let again = volume(&of_pod(), node, Some(&kept)).await.unwrap();
        assert_eq!(role_of(&again).as_deref(), Some(READER));
        assert_eq!(again.settings.annotated, kept.annotated);
    }
    assert_eq!(server.asked().len(), 1);
    // A pod that starts anew has another target.
    let new = volume(&of_pod(), &asks, None).await.unwrap();
    assert_eq!(role_of(&new).as_deref(), Some(WRITER));
    // And one that was made while nobody was asked goes on without.
    let before = volume(&of_pod(), &defaults(None, false), None).await.unwrap().settings;
    assert!(
        !String::from_utf8(serde_json::to_vec(&before).unwrap()).unwrap().contains("annotated")
    );
    let again = volume(&of_pod(), &asks, Some(&before)).await.unwrap();
    assert_eq!(role_of(&again), None);
}

#[tokio::test]
async fn an_account_without_an_annotation_is_the_agents_or_an_error_that_says_what_to_do() {
    let server = Server::default();
    server.annotate(None);
    let error = volume(&of_pod(), &defaults(Some(server.accounts()), false), None).await;
    let error = error.err().unwrap();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let words = ["service account team/app", "eks.amazonaws.com/role-arn", "roleArn"];
    assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    let with_agent = defaults(Some(server.accounts()), true);
    let volume_of = async |made: Option<&Settings>| {
        let volume = volume(&of_pod(), &with_agent, made).await.unwrap();
        let token = match &volume.credentials {
            Source::Pod(web) => web.token.clone(),
            Source::Driver | Source::Secret(_) => String::new(),
        };
        (token, volume.settings)
    };
    let (token, made) = volume_of(None).await;
    assert_eq!(token, "b");
    // One that has got an annotation since is traded as before, until the pod starts anew.
    server.annotate(Some(READER));
    forget(&of_pod(), &with_agent);
    assert_eq!(volume_of(Some(&made)).await.0, "b");
    assert_eq!(volume_of(None).await.0, "a");
}

#[tokio::test]
async fn what_keeps_the_role_from_being_known_is_told_by_its_code_and_asked_again() {
    let server = Server::default();
    let asks = defaults(Some(server.accounts()), false);
    let mut codes = Vec::new();
    for refusal in [403, 404, 500] {
        server.refuse(refusal, "no");
        codes.push(volume(&of_pod(), &asks, None).await.err().unwrap().code());
    }
    server.annotate(Some("reader"));
    codes.push(volume(&of_pod(), &asks, None).await.err().unwrap().code());
    assert_eq!(
        codes,
        [
            Code::PermissionDenied,
            Code::FailedPrecondition,
            Code::Unavailable,
            Code::FailedPrecondition
        ]
    );
    server.annotate(Some(READER));
    volume(&of_pod(), &asks, None).await.unwrap();
    let elsewhere = [
        ("authenticationSource", "pod"),
        ("csi.storage.k8s.io/serviceAccount.name", "../secrets/keys"),
    ];
    let error = volume(&publish(&elsewhere), &asks, None).await.err().unwrap();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(server.asked().len(), 5);
}
