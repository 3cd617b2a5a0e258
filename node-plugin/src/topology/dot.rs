//! A topology as a graph, in the language of Graphviz.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::model::Topology;
use super::pci::Locality;

/// Writes it.
pub(super) fn draw(topology: &Topology) -> String {
    let mut out = String::from("graph topology {\n  node [shape=box];\n");
    let mut places: Vec<(String, String, &Locality)> = Vec::new();
    for gpu in &topology.gpu.gpus {
        let product = gpu.product.as_deref().unwrap_or("GPU");
        let name = gpu.pci.map_or_else(|| format!("gpu{}", gpu.index), |pci| pci.to_string());
        places.push((name, format!("GPU {}\\n{product}", gpu.index), &gpu.locality));
    }
    for device in topology.nvme.iter().chain(&topology.nics) {
        let name = device.pci.map_or_else(|| device.name.clone(), |pci| pci.to_string());
        places.push((name, device.name.clone(), &device.locality));
    }
    let mut edges: BTreeMap<(String, String), &str> = BTreeMap::new();
    for (name, label, locality) in &places {
        let _ = writeln!(out, "  {} [label={}, style=bold];", quoted(name), quoted(label));
        let numa = locality.numa_node.map(|node| format!("NUMA node {node}"));
        let bridges = locality.path.iter().map(ToString::to_string).filter(|at| at != name);
        let way: Vec<String> = numa
            .into_iter()
            .chain(locality.root.clone())
            .chain(bridges)
            .chain([name.clone()])
            .collect();
        for pair in way.windows(2) {
            if let [above, below] = pair {
                edges.insert((above.clone(), below.clone()), "");
            }
        }
    }
    for gpu in &topology.gpu.gpus {
        let Some(own) = gpu.pci else { continue };
        for link in &gpu.nvlinks {
            let Some(remote) = link.remote_pci else { continue };
            let (a, b) = (own.min(remote).to_string(), own.max(remote).to_string());
            edges.insert((a, b), " [label=NVLink, color=green]");
        }
    }
    for ((above, below), style) in edges {
        let _ = writeln!(out, "  {} -- {}{style};", quoted(&above), quoted(&below));
    }
    out + "}\n"
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\\\""))
}
