//! GPUs, drives and networks of a machine, and how near they are to each other.
//!
//! Nothing here is on the way of a mount or a read: a look is taken at the start and from time to
//! time, in a thread of its own.

pub mod command;
mod dot;
pub mod labels;
pub mod model;
pub mod nvml;
pub mod pci;
mod raw;
pub mod sysfs;
mod tree;

#[cfg(test)]
mod fuzz;

use std::time::Duration;

use model::Topology;
use nvml::Gpus;
use sysfs::Sysfs;

/// Longest wait for the GPU driver. A healthy one answers in milliseconds, or, where nothing keeps
/// it initialised (persistence mode), in a few seconds.
pub const NVML_DEADLINE: Duration = Duration::from_secs(15);

/// Looks at the machine.
pub fn read(gpus: &dyn Gpus, sysfs: &Sysfs) -> Topology {
    let mut gpu = gpus.read();
    for gpu in &mut gpu.gpus {
        let Some(found) = gpu.pci.as_ref().and_then(|address| sysfs.locality(address)) else {
            continue;
        };
        // The kernel says -1 where the firmware says nothing; NVML may know better.
        let numa_node = found.numa_node.or(gpu.locality.numa_node);
        gpu.locality = pci::Locality { numa_node, ..found };
    }
    Topology { gpu, numa_nodes: sysfs.numa_nodes(), nvme: sysfs.nvme(), nics: sysfs.nics() }
}
