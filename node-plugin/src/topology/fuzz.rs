//! What drivers, firmware and the kernel say of a machine.

use std::fs;
use std::os::unix::fs::symlink;

use weir_fuzz::near_texts;

use super::labels::{self, GPU_PRODUCT};
use super::model::{Gpu, GpuReport};
use super::pci::{Locality, PciAddress, Proximity};
use super::sysfs::Sysfs;

#[test]
fn a_pci_address_is_written_as_it_is_read() {
    near_texts(
        &["0000:0f:00.0", "00000000:0F:00.0", "10000:01:1f.7", "0F:00.0", "+1:+2:+3.+4"],
        |text| {
            let Ok(address) = text.parse::<PciAddress>() else { return };
            assert_eq!(address.to_string().parse(), Ok(address));
            // It is the name of a folder below that of all devices.
            let allowed = |c: char| c.is_ascii_hexdigit() || c == ':' || c == '.';
            assert!(
                address.to_string().chars().all(allowed) && !address.to_string().contains("..")
            );
            assert!(text.trim().chars().all(allowed), "{text:?}");
        },
    );
}

#[test]
fn places_are_as_near_to_each_other_either_way() {
    let real = [
        "/sys/devices/pci0000:16/0000:16:01.0/0000:17:00.0\n/sys/devices/pci0000:16/0000:16:02.0",
        "/sys/devices/pci0000:30/0000:30:01.0/0000:31:00.0/nvme/nvme0\n/sys/devices/virtual/x",
    ];
    near_texts(&real, |text| {
        let (one, other) = text.split_once('\n').unwrap_or((text, ""));
        let numa = |text: &str| (text.len() % 3).checked_sub(1).map(|node| node as u32);
        let (one, other) =
            (Locality::of_path(one, numa(one)), Locality::of_path(other, numa(other)));
        assert_eq!(one.proximity(&other), other.proximity(&one));
        if !one.path.is_empty() {
            assert!(one.proximity(&one) >= Proximity::SameRoot);
        }
    });
}

/// Facts: Kubernetes, "Labels and Selectors".
#[test]
fn a_product_of_any_name_gives_a_label_that_there_can_be() {
    near_texts(&["NVIDIA H200", "NVIDIA RTX PRO 6000 Blackwell Server Edition", "-_."], |text| {
        let gpu = Gpu { product: Some(text.to_owned()), ..Gpu::default() };
        let report = GpuReport { gpus: vec![gpu], ..GpuReport::default() };
        let value = labels::segments(&report).remove(GPU_PRODUCT).unwrap();
        assert!((1..=63).contains(&value.len()));
        assert!(value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)), "{value}");
        let ends = [value.chars().next(), value.chars().last()];
        assert!(ends.into_iter().flatten().all(|c| c.is_ascii_alphanumeric()), "{value}");
        assert_eq!(labels::sanitised(&value), value);
    });
}

/// Lines: sectors of a drive, speed of a card, a NUMA node, CPUs.
#[test]
fn numbers_of_any_size_in_sysfs_are_values_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(dir.path()).unwrap();
    let pci = root.join("devices/pci0000:16/0000:16:01.0");
    let (drive, card) = (pci.join("nvme/nvme0"), pci.join("net/eth0"));
    let node = root.join("devices/system/node/node0");
    for folder in [&drive.join("nvme0n1"), &card, &node, &root.join("block/nvme0n1")] {
        fs::create_dir_all(folder).unwrap();
    }
    for (class, device) in [("nvme", &drive), ("net", &card)] {
        fs::create_dir_all(root.join("class").join(class)).unwrap();
        symlink(device, root.join("class").join(class).join(device.file_name().unwrap())).unwrap();
        symlink(&pci, device.join("device")).unwrap();
    }
    let sysfs = Sysfs::at(&root);
    near_texts(
        &["2048\n100000\n1\n0-63\n", "36028797018963968\n1\n1\n0\n", "x\n-1\n-1\n\n"],
        |text| {
            let mut lines = text.lines();
            let mut next = || lines.next().unwrap_or_default().to_owned();
            let sectors = next();
            fs::write(drive.join("nvme0n1/size"), &sectors).unwrap();
            fs::write(card.join("speed"), next()).unwrap();
            fs::write(pci.join("numa_node"), next()).unwrap();
            fs::write(node.join("cpulist"), next()).unwrap();
            let drives = sysfs.nvme();
            let bytes = sectors.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(512));
            assert_eq!(drives[0].size_bytes, bytes);
            assert_eq!(sysfs.nics().len(), 1);
            assert!(sysfs.numa_nodes().len() <= 1);
        },
    );
}
