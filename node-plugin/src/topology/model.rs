//! What a machine has that matters for where pods and bytes go. Plain values: what is not known
//! is absent, never invented.

use serde::{Deserialize, Serialize};

use super::pci::{Locality, PciAddress, Proximity};

/// A machine.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Topology {
    /// What the GPU driver says.
    pub gpu: GpuReport,
    /// CPUs by NUMA node.
    pub numa_nodes: Vec<NumaNode>,
    /// NVMe drives.
    pub nvme: Vec<Device>,
    /// Network interfaces with hardware below them.
    pub nics: Vec<Device>,
}

/// What the GPU driver says.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GpuReport {
    /// Why nothing, or not all, is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<GpuProblem>,
    /// Version of the kernel driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// Newest CUDA version that the driver supports, as `12.4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cuda_version: Option<String>,
    /// The GPUs.
    pub gpus: Vec<Gpu>,
}

/// Why nothing is known of GPUs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind", content = "text")]
pub enum GpuProblem {
    /// There is no NVIDIA driver: no library, or no kernel module.
    NoDriver(String),
    /// The driver is there and refuses.
    Failed(String),
    /// The driver does not answer.
    Hangs(String),
}

impl GpuProblem {
    /// A sentence for people.
    pub fn text(&self) -> &str {
        match self {
            Self::NoDriver(text) | Self::Failed(text) | Self::Hangs(text) => text,
        }
    }
}

/// A GPU.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gpu {
    /// Its index in the driver.
    pub index: u32,
    /// Its UUID, as `GPU-...`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Its product, as `NVIDIA H100 80GB HBM3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Its memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Its PCI address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci: Option<PciAddress>,
    /// Where it is.
    #[serde(flatten)]
    pub locality: Locality,
    /// Whether it is divided (MIG), and into what; absent where it cannot be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig: Option<Mig>,
    /// Active NVLinks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nvlinks: Vec<NvLink>,
    /// The NVLink fabric of several machines that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clique: Option<Clique>,
}

/// How a GPU is divided.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mig {
    /// Whether the mode is on.
    pub enabled: bool,
    /// The instances.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<MigInstance>,
}

/// A part of a divided GPU.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MigInstance {
    /// Its UUID, as `MIG-...`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Its profile, as `1g.5gb`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Its memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// What is at the other end of an NVLink.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RemoteEnd {
    /// Another GPU.
    Gpu,
    /// An NVSwitch.
    Switch,
    /// A CPU.
    Cpu,
    /// The driver does not tell.
    Unknown,
}

/// An active NVLink.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NvLink {
    /// Its number at this GPU.
    pub link: u32,
    /// What is at its other end.
    pub remote: RemoteEnd,
    /// PCI address of the other end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_pci: Option<PciAddress>,
}

/// A set of GPUs of several machines that NVLink connects.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Clique {
    /// UUID of the fabric.
    pub cluster_uuid: String,
    /// Number of the clique in it.
    pub clique_id: u32,
}

/// CPUs of one NUMA node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NumaNode {
    /// Its number.
    pub node: u32,
    /// Its CPUs, as `0-31,64-95`.
    pub cpus: String,
}

/// A device that is no GPU.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    /// Its name in the system, as `nvme0` or `eth0`.
    pub name: String,
    /// Its model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Size of a drive in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Speed of an interface, in Mbit/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed_mbps: Option<u32>,
    /// Its PCI address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci: Option<PciAddress>,
    /// Where it is.
    #[serde(flatten)]
    pub locality: Locality,
}

impl Topology {
    /// The devices nearest to a place, all equally near, and how near they are.
    pub fn nearest<'a>(from: &Locality, among: &'a [Device]) -> (Vec<&'a Device>, Proximity) {
        let near = |device: &Device| from.proximity(&device.locality);
        let best = among.iter().map(near).max().unwrap_or(Proximity::Unknown);
        (among.iter().filter(|device| near(device) == best).collect(), best)
    }

    /// Where the GPUs with these ids are; those of MIG instances are where their GPU is.
    pub fn localities_of(&self, ids: &[String]) -> Vec<Locality> {
        let is_meant = |gpu: &&Gpu| {
            let instances = gpu.mig.iter().flat_map(|mig| &mig.instances);
            let uuids = gpu.uuid.iter().chain(instances.filter_map(|i| i.uuid.as_ref()));
            let index = gpu.index.to_string();
            // Shared GPUs have a suffix: `GPU-...::3`.
            let plain = |id: &String| id.split("::").next().unwrap_or(id).to_owned();
            let uuids: Vec<&String> = uuids.collect();
            ids.iter().map(plain).any(|id| id == index || uuids.contains(&&id))
        };
        self.gpu.gpus.iter().filter(is_meant).map(|gpu| gpu.locality.clone()).collect()
    }
}
