//! The two NVML calls that nvml-wrapper lacks, made through its bindings: the fabric of a GPU has
//! no safe wrapper, and the one for the kind of an NVLink's other end (0.13) drops the answer.
#![allow(unsafe_code, reason = "calls of a C library by its documented signatures")]

use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    NVML_AFFINITY_SCOPE_NODE, nvmlGpuFabricInfo_t, nvmlGpuFabricInfo_v2_t, nvmlGpuFabricInfo_v3_t,
    nvmlReturn_t,
};

use super::model::{Clique, RemoteEnd};

/// `NVML_AFFINITY_SCOPE_NODE`.
pub(super) const AFFINITY_SCOPE_NODE: u32 = NVML_AFFINITY_SCOPE_NODE;
/// `NVML_SUCCESS`.
const SUCCESS: nvmlReturn_t = 0;
/// `NVML_GPU_FABRIC_STATE_COMPLETED`.
const COMPLETED: u8 = 3;

/// The fabric that a GPU has joined. Boards with a switch of their own report one of zeros: that
/// one ends with the machine.
pub(super) fn clique(nvml: &Nvml, device: &Device<'_>) -> Option<Clique> {
    let (state, status, uuid, clique_id) =
        versioned(nvml, device).or_else(|| unversioned(nvml, device))?;
    let joined = state == COMPLETED && status == SUCCESS && uuid != [0; 16];
    joined.then(|| Clique { cluster_uuid: text(&uuid), clique_id })
}

type Fabric = (u8, nvmlReturn_t, [u8; 16], u32);

fn versioned(nvml: &Nvml, device: &Device<'_>) -> Option<Fabric> {
    let call = nvml.lib().nvmlDeviceGetGpuFabricInfoV.as_ref().ok()?;
    let mut info = nvmlGpuFabricInfo_v3_t {
        // NVML_STRUCT_VERSION(GpuFabricInfo, 2), which is older and begins like 3.
        version: size_of::<nvmlGpuFabricInfo_v2_t>() as u32 | (2 << 24),
        clusterUuid: [0; 16],
        status: 0,
        cliqueId: 0,
        state: 0,
        healthMask: 0,
        healthSummary: 0,
    };
    // SAFETY: the handle is of this library, which `nvml` keeps; `info` is larger than the
    // version that it names.
    let code = unsafe { call(device.handle(), &mut info) };
    (code == SUCCESS).then_some((info.state, info.status, info.clusterUuid, info.cliqueId))
}

fn unversioned(nvml: &Nvml, device: &Device<'_>) -> Option<Fabric> {
    let call = nvml.lib().nvmlDeviceGetGpuFabricInfo.as_ref().ok()?;
    let mut info = nvmlGpuFabricInfo_t { clusterUuid: [0; 16], status: 0, cliqueId: 0, state: 0 };
    // SAFETY: as above.
    let code = unsafe { call(device.handle(), &mut info) };
    (code == SUCCESS).then_some((info.state, info.status, info.clusterUuid, info.cliqueId))
}

/// A UUID as people write it.
fn text(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// What is at the other end of an NVLink (nvml.h: `nvmlIntNvLinkDeviceType_t`).
pub(super) fn remote_end(nvml: &Nvml, device: &Device<'_>, link: u32) -> RemoteEnd {
    let Ok(call) = nvml.lib().nvmlDeviceGetNvLinkRemoteDeviceType.as_ref() else {
        return RemoteEnd::Unknown;
    };
    let mut kind = u32::MAX;
    // SAFETY: the handle is of this library, which `nvml` keeps; `kind` outlives the call.
    let code = unsafe { call(device.handle(), link, &mut kind) };
    match (code, kind) {
        (SUCCESS, 0) => RemoteEnd::Gpu,
        (SUCCESS, 1) => RemoteEnd::Cpu,
        (SUCCESS, 2) => RemoteEnd::Switch,
        _ => RemoteEnd::Unknown,
    }
}
