//! A topology as a tree for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::model::{Device, Gpu, RemoteEnd, Topology};
use super::pci::Proximity;

/// Writes it.
pub(super) fn draw(topology: &Topology) -> String {
    let mut out = String::new();
    head(&mut out, topology);
    let gpus = &topology.gpu.gpus;
    for (at, gpu) in gpus.iter().enumerate() {
        branch(&mut out, "", at + 1 == gpus.len(), &title(gpu));
        let indent = if at + 1 == gpus.len() { "   " } else { "│  " };
        let lines = details(gpu, topology);
        for (line, text) in lines.iter().enumerate() {
            branch(&mut out, indent, line + 1 == lines.len(), text);
        }
    }
    for (what, devices) in [("NVMe drives", &topology.nvme), ("Network interfaces", &topology.nics)]
    {
        if devices.is_empty() {
            continue;
        }
        let _ = writeln!(out, "{what}");
        for (at, device) in devices.iter().enumerate() {
            branch(&mut out, "", at + 1 == devices.len(), &described(device));
        }
    }
    if !topology.numa_nodes.is_empty() {
        let _ = writeln!(out, "NUMA nodes");
        for (at, node) in topology.numa_nodes.iter().enumerate() {
            let text = format!("{}: CPUs {}", node.node, node.cpus);
            branch(&mut out, "", at + 1 == topology.numa_nodes.len(), &text);
        }
    }
    out
}

fn head(out: &mut String, topology: &Topology) {
    let report = &topology.gpu;
    if let Some(problem) = &report.problem {
        let _ = writeln!(out, "GPUs: {}", problem.text());
    } else if report.gpus.is_empty() {
        let _ = writeln!(out, "GPUs: none (the driver is there)");
    }
    if let Some(driver) = &report.driver_version {
        let cuda = report.cuda_version.as_ref().map(|v| format!(", CUDA up to {v}"));
        let _ = writeln!(out, "NVIDIA driver {driver}{}", cuda.unwrap_or_default());
    }
}

fn branch(out: &mut String, indent: &str, last: bool, text: &str) {
    let _ = writeln!(out, "{indent}{} {text}", if last { "└─" } else { "├─" });
}

fn title(gpu: &Gpu) -> String {
    let product = gpu.product.as_deref().unwrap_or("unknown product");
    let mut text = format!("GPU {}: {product}", gpu.index);
    if let Some(bytes) = gpu.memory_bytes {
        let _ = write!(text, ", {} MiB", bytes >> 20);
    }
    if let Some(pci) = gpu.pci {
        let _ = write!(text, ", PCI {pci}");
    }
    text + &numa(gpu.locality.numa_node)
}

fn numa(node: Option<u32>) -> String {
    node.map_or_else(String::new, |node| format!(", NUMA node {node}"))
}

fn details(gpu: &Gpu, topology: &Topology) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(gpu.uuid.clone());
    if let Some(mig) = gpu.mig.as_ref().filter(|mig| mig.enabled) {
        let profile = |p: &Option<String>| p.clone().unwrap_or_else(|| "unknown profile".into());
        let parts: Vec<_> = mig.instances.iter().map(|part| profile(&part.profile)).collect();
        lines.push(format!(
            "MIG: {}",
            if parts.is_empty() { "no instance".into() } else { parts.join(", ") }
        ));
    }
    if let Some(clique) = &gpu.clique {
        lines.push(format!("NVLink fabric {}, clique {}", clique.cluster_uuid, clique.clique_id));
    }
    lines.extend(links(gpu, topology));
    for (what, among) in [("NVMe", &topology.nvme), ("network", &topology.nics)] {
        let (nearest, proximity) = Topology::nearest(&gpu.locality, among);
        if !nearest.is_empty() && proximity != Proximity::Unknown {
            let names: Vec<_> = nearest.iter().map(|device| device.name.as_str()).collect();
            lines.push(format!("nearest {what}: {} ({})", names.join(", "), proximity.words()));
        }
    }
    lines
}

/// NVLinks by what is at their other end.
fn links(gpu: &Gpu, topology: &Topology) -> Vec<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for link in &gpu.nvlinks {
        let peer = link.remote_pci.and_then(|pci| {
            topology.gpu.gpus.iter().find(|other| other.pci == Some(pci)).map(|other| other.index)
        });
        let end = match (peer, link.remote, link.remote_pci) {
            (Some(index), _, _) => format!("GPU {index}"),
            (None, RemoteEnd::Switch, Some(pci)) => format!("NVSwitch {pci}"),
            (None, RemoteEnd::Switch, None) => "NVSwitch".to_owned(),
            (None, RemoteEnd::Cpu, _) => "CPU".to_owned(),
            (None, _, Some(pci)) => pci.to_string(),
            (None, _, None) => "unknown end".to_owned(),
        };
        *counts.entry(end).or_default() += 1;
    }
    counts.into_iter().map(|(end, count)| format!("NVLink to {end}: {count}")).collect()
}

fn described(device: &Device) -> String {
    let mut text = device.name.clone();
    if let Some(model) = &device.model {
        let _ = write!(text, ": {model}");
    }
    if let Some(bytes) = device.size_bytes {
        let _ = write!(text, ", {} GiB", bytes >> 30);
    }
    if let Some(speed) = device.speed_mbps {
        let _ = write!(text, ", {} Gbit/s", f64::from(speed) / 1000.0);
    }
    if let Some(pci) = device.pci {
        let _ = write!(text, ", PCI {pci}");
    }
    text + &numa(device.locality.numa_node)
}
