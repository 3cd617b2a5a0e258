//! The description of a machine: a JSON file, named by `WEIR_FAKE_NVML`, read at each `nvmlInit`.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A machine.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Machine {
    /// Version of the driver.
    pub(crate) driver: String,
    /// CUDA version as NVML gives it: 12040 is 12.4.
    pub(crate) cuda: i32,
    pub(crate) gpus: Vec<Gpu>,
    /// Functions that fail, with their code (nvml.h: `nvmlReturn_t`); `*` for all but the first.
    pub(crate) fail: BTreeMap<String, u32>,
    /// Functions that never return.
    pub(crate) hang: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Gpu {
    pub(crate) product: String,
    pub(crate) uuid: String,
    pub(crate) memory_mib: u64,
    pub(crate) pci: String,
    pub(crate) numa: Option<u32>,
    /// Active NVLinks, in order.
    pub(crate) links: Vec<Link>,
    /// Instances, where MIG is on. Empty: on, and not divided. Absent: off.
    pub(crate) mig: Option<Vec<Instance>>,
    /// Whether the GPU has no MIG at all.
    pub(crate) no_mig: bool,
    pub(crate) clique: Option<Clique>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Link {
    /// nvml.h: `nvmlIntNvLinkDeviceType_t`: 0 a GPU, 1 a CPU, 2 a switch.
    pub(crate) kind: u32,
    pub(crate) pci: String,
    /// How many links are alike.
    pub(crate) count: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Instance {
    pub(crate) profile: String,
    pub(crate) uuid: String,
    pub(crate) memory_mib: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Clique {
    pub(crate) cluster_uuid: [u8; 16],
    pub(crate) id: u32,
}

impl Gpu {
    /// The link with this number.
    pub(crate) fn link(&self, number: u32) -> Option<&Link> {
        let alike = self.links.iter().flat_map(|link| std::iter::repeat_n(link, link.count));
        alike.into_iter().nth(number as usize)
    }
}
