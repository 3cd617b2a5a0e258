//! What the kernel knows of places: NVMe drives, network interfaces, NUMA nodes, and on which
//! disk a folder is. Facts: Documentation/ABI/testing/sysfs-bus-pci (`numa_node`), sysfs-block,
//! sysfs-class-net, sysfs-devices-node.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::model::{Device, NumaNode};
use super::pci::{Locality, PciAddress};

/// A view of `/sys`, at any place.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at("/sys")
    }
}

impl Sysfs {
    /// That below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where a PCI device is; `None` where the kernel does not know it.
    pub fn locality(&self, address: &PciAddress) -> Option<Locality> {
        let folder = self.root.join("bus/pci/devices").join(address.to_string());
        self.locality_of_folder(&folder)
    }

    fn locality_of_folder(&self, folder: &Path) -> Option<Locality> {
        let folder = fs::canonicalize(folder).ok()?;
        // The device itself, or whichever of its parents says so.
        let numa = folder.ancestors().take_while(|at| at.starts_with(&self.root)).find_map(|at| {
            let node: i64 = number(&at.join("numa_node"))?;
            u32::try_from(node).ok()
        });
        Some(Locality::of_path(&folder.to_string_lossy(), numa))
    }

    /// NVMe drives.
    pub fn nvme(&self) -> Vec<Device> {
        self.class("class/nvme", |name, folder| {
            let size = names(folder).into_iter().filter(|n| n.starts_with(name)).find_map(|n| {
                let sectors: u64 = number(&folder.join(n).join("size"))?;
                // In units of 512 bytes, whatever the drive's blocks are.
                sectors.checked_mul(512)
            });
            Device {
                model: text(&folder.join("model")),
                size_bytes: size.or_else(|| self.first_namespace_bytes(name)),
                ..Device::default()
            }
        })
    }

    /// With native multipath the namespaces are not below the controller.
    fn first_namespace_bytes(&self, controller: &str) -> Option<u64> {
        let sectors: u64 = number(&self.root.join(format!("block/{controller}n1/size")))?;
        sectors.checked_mul(512)
    }

    /// Network interfaces with hardware below them.
    pub fn nics(&self) -> Vec<Device> {
        self.class("class/net", |_, folder| Device {
            // -1 while the link is down.
            speed_mbps: number::<i64>(&folder.join("speed")).and_then(|s| u32::try_from(s).ok()),
            ..Device::default()
        })
    }

    fn class(&self, class: &str, describe: impl Fn(&str, &Path) -> Device) -> Vec<Device> {
        let folder = self.root.join(class);
        let devices = names(&folder).into_iter().filter_map(|name| {
            let own = folder.join(&name);
            let locality = self.locality_of_folder(&own.join("device"))?;
            // What has no way over PCI is virtual.
            let pci = *locality.path.last()?;
            Some(Device { pci: Some(pci), locality, ..describe(&name, &own) }.named(name))
        });
        devices.collect()
    }

    /// CPUs by NUMA node.
    pub fn numa_nodes(&self) -> Vec<NumaNode> {
        let folder = self.root.join("devices/system/node");
        let mut nodes: Vec<NumaNode> = names(&folder)
            .into_iter()
            .filter_map(|name| {
                let node = name.strip_prefix("node")?.parse().ok()?;
                Some(NumaNode { node, cpus: text(&folder.join(&name).join("cpulist"))? })
            })
            .collect();
        nodes.sort_by_key(|node| node.node);
        nodes
    }

    /// Where the disk is that holds `path`. Unknown for file systems without one disk of their
    /// own, as btrfs and tmpfs.
    pub fn disk_of(&self, path: &Path) -> Locality {
        let Ok(found) = fs::metadata(path) else { return Locality::default() };
        let device = found.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        self.block_device(&self.root.join(format!("dev/block/{major}:{minor}")), 0)
    }

    fn block_device(&self, folder: &Path, depth: u32) -> Locality {
        /// Partitions on mappings on arrays: more is a loop.
        const DEPTH_MAX: u32 = 8;
        let Some(own) = self.locality_of_folder(folder) else { return Locality::default() };
        if !own.path.is_empty() || depth == DEPTH_MAX {
            return own;
        }
        // Mapped, or an array: where what is below it is, if that is one place.
        let slaves = folder.join("slaves");
        let below: Vec<Locality> = names(&slaves)
            .into_iter()
            .map(|name| self.block_device(&slaves.join(name), depth + 1))
            .collect();
        match below.split_first() {
            Some((first, others)) if others.iter().all(|other| other == first) => first.clone(),
            Some((first, others)) => {
                let same = others.iter().all(|other| other.numa_node == first.numa_node);
                Locality { numa_node: first.numa_node.filter(|_| same), ..Locality::default() }
            }
            None => own,
        }
    }
}

impl Device {
    fn named(mut self, name: String) -> Self {
        self.name = name;
        self
    }
}

/// Names in a folder, sorted; none where it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn number<T: std::str::FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(at: PathBuf, to: &Path) {
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(to, at).unwrap();
    }

    #[test]
    fn drives_interfaces_and_nodes_are_found_with_their_places() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let pci = root.join("devices/pci0000:16/0000:16:01.0/0000:17:00.0");
        let drive = pci.join("nvme/nvme0");
        write(pci.join("numa_node"), "1\n");
        write(drive.join("model"), "FAST DRIVE   \n");
        write(drive.join("nvme0n1/size"), "2048\n");
        link(drive.join("device"), &pci);
        link(root.join("class/nvme/nvme0"), &drive);
        let card = root.join("devices/pci0000:30/0000:30:01.0/0000:31:00.0");
        write(card.join("numa_node"), "-1\n");
        write(card.join("net/eth0/speed"), "100000\n");
        link(card.join("net/eth0/device"), &card);
        link(root.join("class/net/eth0"), &card.join("net/eth0"));
        write(root.join("devices/virtual/net/lo/speed"), "0");
        link(root.join("class/net/lo"), &root.join("devices/virtual/net/lo"));
        write(root.join("devices/system/node/node1/cpulist"), "32-63\n");
        write(root.join("devices/system/node/node0/cpulist"), "0-31\n");
        let sysfs = Sysfs::at(&root);

        let [drive] = &sysfs.nvme()[..] else { panic!("one drive") };
        assert_eq!((drive.model.as_deref(), drive.size_bytes), (Some("FAST DRIVE"), Some(1 << 20)));
        assert_eq!((drive.name.as_str(), drive.locality.numa_node), ("nvme0", Some(1)));
        assert_eq!(drive.locality.root.as_deref(), Some("pci0000:16"));
        let [card] = &sysfs.nics()[..] else { panic!("one interface") };
        assert_eq!((card.speed_mbps, card.locality.numa_node), (Some(100_000), None));
        assert_eq!(card.pci.unwrap().to_string(), "0000:31:00.0");
        let nodes: Vec<_> = sysfs.numa_nodes().into_iter().map(|n| (n.node, n.cpus)).collect();
        assert_eq!(nodes, [(0, "0-31".to_owned()), (1, "32-63".to_owned())]);
    }

    #[test]
    fn a_folder_is_on_the_drive_below_its_mappings() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let sysfs = Sysfs::at(&root);
        assert_eq!(sysfs.disk_of(dir.path()), Locality::default());
        let pci = root.join("devices/pci0000:16/0000:16:01.0/0000:17:00.0");
        let part = pci.join("nvme/nvme0/nvme0n1/nvme0n1p2");
        write(pci.join("numa_node"), "0");
        write(part.join("size"), "1");
        let mapped = root.join("devices/virtual/block/dm-0");
        link(mapped.join("slaves/nvme0n1p2"), &part);
        let device = fs::metadata(dir.path()).unwrap().dev();
        let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        link(root.join("dev/block").join(number), &mapped);
        let found = sysfs.disk_of(dir.path());
        assert_eq!((found.numa_node, found.path.len()), (Some(0), 2));
    }
}
