//! Requests as they come over the socket: protobuf of any content.

use std::collections::BTreeMap;

use prost::Message;
use tonic::Status;
use weir_fuzz::near;

use super::*;
use crate::Error;
use crate::proto;
use crate::proto::volume_capability::access_mode::Mode;
use crate::proto::volume_capability::{AccessMode as ProtoMode, AccessType, MountVolume};

const SECRET: &str = "wJalrXUtnFEMI";

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn capability(group: &str) -> proto::VolumeCapability {
    proto::VolumeCapability {
        access_mode: Some(ProtoMode { mode: Mode::MultiNodeMultiWriter as i32 }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: String::new(),
            mount_flags: vec!["metadata-ttl 5".into(), "uid=1000".into()],
            volume_mount_group: group.into(),
        })),
    }
}

fn publish() -> proto::NodePublishVolumeRequest {
    proto::NodePublishVolumeRequest {
        volume_id: "vol-1".into(),
        target_path: "/var/lib/kubelet/pods/8b0e/volumes/kubernetes.io~csi/data/mount".into(),
        volume_capability: Some(capability("1000")),
        secrets: map(&[("key_id", "AKIA"), ("access_key", SECRET)]),
        volume_context: map(&[("bucketName", "assets")]),
        ..Default::default()
    }
}

fn create() -> proto::CreateVolumeRequest {
    proto::CreateVolumeRequest {
        name: "pvc-1".into(),
        capacity_range: Some(proto::CapacityRange {
            required_bytes: 1 << 30,
            limit_bytes: 1 << 40,
        }),
        volume_capabilities: vec![capability("")],
        parameters: map(&[("bucketName", "assets"), ("csi.storage.k8s.io/pvc/name", "data")]),
        secrets: map(&[("access_key", SECRET)]),
        accessibility_requirements: Some(proto::TopologyRequirement {
            requisite: vec![proto::Topology { segments: map(&[("zone", "a")]) }],
            preferred: Vec::new(),
        }),
        ..Default::default()
    }
}

/// Fields that an error may be about.
const FIELDS: [&str; 16] = [
    "volume_id",
    "name",
    "target_path",
    "volume_path",
    "volume_capability",
    "volume_capabilities",
    "access_mode",
    "access type",
    "volume_mount_group",
    "block device",
    "volume_context",
    "parameters",
    "secrets",
    "required_bytes",
    "limit_bytes",
    "snapshots",
];

/// What is refused names its field, in a text that fits into a header.
fn is_said_well(error: Error) {
    let text = error.to_string();
    assert!(FIELDS.iter().any(|field| text.contains(field)), "{text}");
    let status = Status::from(error);
    assert!(status.message().len() <= 2048, "{} bytes", status.message().len());
}

fn is_plain(path: &TargetPath) {
    let path = path.as_path();
    let text = path.to_str().unwrap();
    assert!(path.is_absolute() && text.len() <= 4096 && !text.contains('\0'));
    assert!(text.split('/').all(|part| part != "." && part != ".."));
    assert_eq!(TargetPath::parse(text, "target_path").unwrap().as_path(), path);
}

fn is_id(id: &str) {
    assert!(!id.is_empty() && id.len() <= 512 && !id.chars().any(char::is_control), "{id:?}");
}

fn is_bounded(context: &Context, secrets: &Secrets) {
    for map in [context.as_map(), secrets.as_map()] {
        assert!(map.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() <= 64 << 10);
    }
    assert!(!format!("{secrets:?}").contains(SECRET));
}

#[test]
fn a_publish_of_any_bytes_is_valid_or_refused_by_the_name_of_a_field() {
    let bad = proto::NodePublishVolumeRequest {
        volume_capability: Some(capability(&"x".repeat(60_000))),
        ..publish()
    };
    near(&[publish().encode_to_vec(), bad.encode_to_vec()], |bytes| {
        let Ok(request) = proto::NodePublishVolumeRequest::decode(bytes) else { return };
        match Publish::parse(request.clone()) {
            Ok(publish) => {
                is_id(publish.volume_id.as_str());
                is_plain(&publish.target);
                is_bounded(&publish.context, &publish.secrets);
                assert!(publish.read_only || publish.capability.mode.access == Access::Write);
                assert!(publish.read_only || !request.readonly);
            }
            Err(error) => {
                let open = proto::NodePublishVolumeRequest { secrets: BTreeMap::new(), ..request };
                let is_elsewhere = String::from_utf8_lossy(&open.encode_to_vec()).contains(SECRET);
                assert!(is_elsewhere || !error.to_string().contains(SECRET), "{error}");
                is_said_well(error);
            }
        }
    });
}

#[test]
fn other_requests_of_any_bytes_are_valid_or_refused_by_the_name_of_a_field() {
    let path = publish().target_path;
    let stats =
        proto::NodeGetVolumeStatsRequest { volume_path: path.clone(), ..Default::default() };
    let unpublish =
        proto::NodeUnpublishVolumeRequest { volume_id: "vol-1".into(), target_path: path };
    let stats = proto::NodeGetVolumeStatsRequest { volume_id: "vol-1".into(), ..stats };
    let range = proto::CapacityRange { required_bytes: 9, limit_bytes: 5 };
    let bad = proto::CreateVolumeRequest { capacity_range: Some(range), ..create() };
    let real = [
        create().encode_to_vec(),
        bad.encode_to_vec(),
        unpublish.encode_to_vec(),
        stats.encode_to_vec(),
    ];
    near(&real, |bytes| {
        if let Ok(request) = proto::NodeUnpublishVolumeRequest::decode(bytes) {
            Unpublish::parse(request).map_or_else(is_said_well, |of| is_plain(&of.target));
        }
        if let Ok(request) = proto::NodeGetVolumeStatsRequest::decode(bytes) {
            StatsOf::parse(request).map_or_else(is_said_well, |of| is_plain(&of.path));
        }
        if let Ok(request) = proto::ValidateVolumeCapabilitiesRequest::decode(bytes) {
            Validate::parse(request).map_or_else(is_said_well, |of| is_id(of.volume_id.as_str()));
        }
        let Ok(request) = proto::CreateVolumeRequest::decode(bytes) else { return };
        match Create::parse(request) {
            Ok(create) => {
                is_id(create.name.as_str());
                is_bounded(&create.parameters, &create.secrets);
                assert!(!create.capabilities.is_empty());
                let limit = create.limit_bytes.unwrap_or(u64::MAX);
                assert!(limit > 0 && create.required_bytes <= limit);
            }
            Err(error) => is_said_well(error),
        }
    });
}
