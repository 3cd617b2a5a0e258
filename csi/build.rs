//! Generates the CSI messages and services from the specification's names and numbers.

/// Messages that carry secrets or tokens: they get no `Debug`, so that none can be printed.
const UNPRINTABLE: [&str; 12] = [
    "CreateVolumeRequest",
    "DeleteVolumeRequest",
    "ControllerPublishVolumeRequest",
    "ControllerUnpublishVolumeRequest",
    "ControllerExpandVolumeRequest",
    "ControllerModifyVolumeRequest",
    "ValidateVolumeCapabilitiesRequest",
    "CreateSnapshotRequest",
    "NodeStageVolumeRequest",
    "NodePublishVolumeRequest",
    "NodeExpandVolumeRequest",
    "DeleteSnapshotRequest",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/csi.proto");
    let files = protox::compile(["proto/csi.proto"], ["proto"])?;
    let mut config = tonic_prost_build::Config::new();
    config.btree_map(["."]);
    config.skip_debug(UNPRINTABLE.map(|name| format!(".csi.v1.{name}")));
    config.skip_debug([".csi.v1.ListSnapshotsRequest", ".csi.v1.GetSnapshotRequest"]);
    tonic_prost_build::configure().compile_fds_with_config(files, config)?;
    Ok(())
}
