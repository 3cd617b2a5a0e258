//! What the authors of volumes and pods write, and what is kept in custody for a later release.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use tonic::Status;
use weir_csi::Error;
use weir_csi::request::{
    Access, AccessMode, Capability, Context, Publish, Secrets, TargetPath, VolumeId,
};
use weir_fuse::adapter::Handshake;
use weir_fuzz::{inputs, near, near_texts};

use super::credentials::{Kind, Source, Tokens};
use super::record::{Published, Record};
use super::volume::{Defaults, Settings, Volume};
use crate::cli::S3Args;
use crate::kubernetes::events::Subject;

const PUBLISHES: &[u8] = include_bytes!("../../tests/corpus/publishes");
const TARGET: &str = "/var/lib/kubelet/pods/8b0e/volumes/kubernetes.io~csi/data/mount";
/// How the line with the tokens begins.
const TOKENS: &str = "c csi.storage.k8s.io/serviceAccount.tokens=";
/// What is secret in the corpus.
const SECRET: &str = "wJalrXUtnFEMI";

/// A request, by lines: `c` before an entry of the context, `s` of the secrets, `f` before mount
/// options, `g` before a group, `r` for a reader.
fn publish(text: &str) -> Option<Publish> {
    let mut maps = [BTreeMap::new(), BTreeMap::new()];
    let (mut mount_flags, mut mount_group, mut read_only) = (Vec::new(), None, false);
    for line in text.lines() {
        match line.split_at_checked(2).unwrap_or((line, "")) {
            (kind @ ("c " | "s "), entry) => {
                let (key, value) = entry.split_once('=')?;
                maps[usize::from(kind == "s ")].insert(key.to_owned(), value.to_owned());
            }
            ("f ", options) => mount_flags.push(options.to_owned()),
            ("g ", group) => mount_group = group.parse().ok(),
            _ => read_only = true,
        }
    }
    let [context, secrets] = maps;
    let mode = AccessMode { access: Access::Write, single: false };
    Some(Publish {
        volume_id: VolumeId::parse("vol-1".into()).ok()?,
        target: TargetPath::parse(TARGET, "target_path").ok()?,
        capability: Capability { mode, mount_flags, mount_group },
        read_only,
        context: Context::parse(context, "volume_context").ok()?,
        secrets: Secrets::parse(secrets).ok()?,
    })
}

/// The same with other secrets, of the same length.
fn masked(text: &str) -> String {
    const NAMES: [&str; 4] = ["access_key", "secretAccessKey", "session_token", "sessionToken"];
    let plain = |c: char| if c.is_ascii_alphanumeric() { 'x' } else { c };
    let line = |line: &str| match line.strip_prefix("s ").and_then(|entry| entry.split_once('=')) {
        Some((name, value)) if NAMES.contains(&name) => {
            format!("s {name}={}", value.chars().map(plain).collect::<String>())
        }
        _ if line.starts_with(TOKENS) => line.replace(SECRET, &"x".repeat(SECRET.len())),
        _ => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn is_said_well(error: Error) {
    let status = Status::from(error);
    let text = status.message();
    assert!(text.len() <= 2048, "{text}");
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

fn tokens() -> Tokens {
    Tokens { audience: "sts.amazonaws.com".into(), has_agent: false }
}

#[test]
fn a_volume_of_any_text_is_one_that_can_be_kept_or_is_refused_without_its_secrets() {
    let defaults = Defaults {
        s3: S3Args::default(),
        inline_driver_credentials: false,
        tokens: tokens(),
        has_region: true,
        accounts: None,
    };
    near_texts(&inputs(PUBLISHES), |text| {
        let Some(publish) = publish(text) else { return };
        let volume = match Volume::parse(&publish, &defaults, None) {
            Ok(volume) => volume,
            Err(error) => {
                // It is the same whatever the secrets are.
                let other = self::publish(&masked(text)).unwrap();
                let same = Volume::parse(&other, &defaults, None).err();
                assert_eq!(same.map(|error| error.to_string()), Some(error.to_string()));
                return is_said_well(error);
            }
        };
        let (settings, s3) = (&volume.settings, &volume.settings.s3);
        if publish.context.get("csi.storage.k8s.io/ephemeral") == Some("true") {
            // The author of a pod reaches nothing that is the node's.
            let of_the_node = std::env::var_os("AWS_CA_BUNDLE").map(std::path::PathBuf::from);
            assert!(s3.endpoint_url.is_none() && s3.profile.is_none());
            assert_eq!(s3.ca_bundle, of_the_node);
            assert!(!s3.no_sign_request && s3.expected_bucket_owner.is_none());
            assert!(volume.credentials.kind() != Kind::Driver);
        }
        let kept = serde_json::to_string(settings).unwrap();
        assert!(kept.len() <= 16 << 10);
        let again: Settings = serde_json::from_str(&kept).unwrap();
        assert!(settings.serves_as(&again));
        let id = volume.session_id(&publish.volume_id, TARGET);
        assert!(id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit()));
        let keys = volume.credentials.keys();
        let back = Source::kept(volume.credentials.kind(), keys.as_ref().map(|(keys, _)| &**keys));
        assert!(back == Some(volume.credentials.clone()));
        assert!(!format!("{:?}", volume.credentials).contains(SECRET));
    });
}

#[test]
fn keys_of_any_bytes_are_those_of_their_kind_or_none() {
    let kept = |text: &[u8]| {
        let publish = publish(&String::from_utf8_lossy(text)).unwrap();
        Source::parse(&publish, &tokens(), None).unwrap().keys().map(|(keys, _)| keys)
    };
    let real: Vec<_> = inputs(PUBLISHES).iter().filter_map(|text| kept(text)).collect();
    near(&real, |bytes| {
        for kind in [Kind::Secret, Kind::Pod] {
            let Some(source) = Source::kept(kind, Some(bytes)) else { continue };
            assert_eq!(source.kind(), kind);
            let (again, expiry) = source.keys().unwrap();
            assert!(Source::kept(kind, Some(&again)).as_ref() == Some(&source));
            assert!(kind == Kind::Pod || expiry.at.is_none());
        }
    });
}

#[test]
fn a_record_of_any_bytes_is_one_that_can_be_served_or_is_refused() {
    let handshake = Handshake { request: vec![40, 0, 0, 0, 26], reply: vec![80; 64] };
    let mut settings = Settings::default();
    settings.s3.bucket = "assets".into();
    let mut record = Record::new(settings, handshake, "0:50".into(), "name".into());
    let subject = Subject { pod: "pod".into(), ..Subject::default() };
    let published = Published { volume_id: "vol-1".into(), read_only: true, subject };
    record.targets.insert(TARGET.into(), published);
    near(&[record.bytes()], |bytes| {
        let Ok(record) = Record::read(bytes) else { return };
        let again = Record::read(&record.bytes()).unwrap();
        assert_eq!(again.bytes(), record.bytes());
        assert_eq!(again.handshake.allows_resend(), record.handshake.allows_resend());
        let names = &record.settings.session.names;
        for ttl in [names.ttl, names.negative_ttl] {
            Instant::now().checked_add(ttl.duration()).unwrap();
            SystemTime::now().checked_add(ttl.duration()).unwrap();
        }
        assert!(record.settings.source().starts_with("s3://"));
    });
}
