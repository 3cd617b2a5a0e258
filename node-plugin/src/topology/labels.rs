//! Topology segments: a few label values, which kubelet reads once, when the driver registers.
//! Counts and layouts are not among them: they change, and stale ones break scheduling.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Gpu, GpuReport};

/// Key of the product of the node's GPUs.
pub const GPU_PRODUCT: &str = "topology.weir.dev/gpu-product";
/// Key of the NVLink fabric that the node belongs to.
pub const NVLINK_DOMAIN: &str = "topology.weir.dev/nvlink-domain";
/// Key of the zone.
pub const ZONE: &str = "topology.weir.dev/zone";
/// Key of the region.
pub const REGION: &str = "topology.weir.dev/region";
/// Value where there is nothing of the kind.
pub const NONE: &str = "none";
/// Value where there are several kinds.
pub const MIXED: &str = "mixed";
/// Longest label value (Kubernetes, "Labels and Selectors").
const VALUE_MAX: usize = 63;

/// The GPU segments of a machine: always both keys.
pub fn segments(report: &GpuReport) -> BTreeMap<String, String> {
    let domain = |gpu: &Gpu| {
        gpu.clique.as_ref().map(|clique| format!("{}.{}", clique.cluster_uuid, clique.clique_id))
    };
    BTreeMap::from([
        (GPU_PRODUCT.to_owned(), common(&report.gpus, |gpu| gpu.product.clone())),
        (NVLINK_DOMAIN.to_owned(), common(&report.gpus, domain)),
    ])
}

/// The value that all GPUs have.
fn common(gpus: &[Gpu], value: impl Fn(&Gpu) -> Option<String>) -> String {
    let values: BTreeSet<String> = gpus.iter().filter_map(value).collect();
    match values.len() {
        0 => NONE.to_owned(),
        1 => values.first().map_or(NONE.to_owned(), |value| sanitised(value)),
        _ => MIXED.to_owned(),
    }
}

/// A text as a label value, the way GPU Feature Discovery writes products: what a value may not
/// hold becomes `-`, and ends are letters or digits.
pub fn sanitised(text: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = |c: char| !c.is_ascii_alphanumeric();
    let value: String = text.trim().chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    let value = value.trim_start_matches(end);
    // Only ASCII is left, so that any index is a boundary.
    let value = value[..value.len().min(VALUE_MAX)].trim_end_matches(end);
    if value.is_empty() { "unknown".to_owned() } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::model::Clique;

    #[test]
    fn any_text_becomes_a_label_value() {
        assert_eq!(sanitised("NVIDIA H100 80GB HBM3"), "NVIDIA-H100-80GB-HBM3");
        assert_eq!(sanitised("A/B (rev. 2)"), "A-B--rev.-2");
        assert_eq!(sanitised("  --Ünïcode--  "), "n-code");
        assert_eq!(sanitised("///"), "unknown");
        let long = format!("{}.{}", "a".repeat(62), "b".repeat(80));
        assert_eq!(sanitised(&long), "a".repeat(62));
    }

    #[test]
    fn both_keys_are_always_there() {
        let gpu = |product: &str| Gpu { product: Some(product.into()), ..Gpu::default() };
        let of = |gpus: Vec<Gpu>| {
            let segments = segments(&GpuReport { gpus, ..GpuReport::default() });
            (segments[GPU_PRODUCT].clone(), segments[NVLINK_DOMAIN].clone())
        };
        assert_eq!(of(vec![]), (NONE.into(), NONE.into()));
        assert_eq!(of(vec![gpu("L40S"), gpu("L40S")]), ("L40S".into(), NONE.into()));
        assert_eq!(of(vec![gpu("L40S"), gpu("A100")]).0, MIXED);
        let clique = Clique { cluster_uuid: "0a1b".into(), clique_id: 7 };
        let gb200 = Gpu { clique: Some(clique), ..gpu("NVIDIA GB200") };
        assert_eq!(of(vec![gb200]), ("NVIDIA-GB200".into(), "0a1b.7".into()));
    }
}
