//! Places on the PCI bus, and how near to each other they are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A PCI function: domain, bus, device, function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// Whether all of it is 0, as where there is no device.
    pub fn is_zero(&self) -> bool {
        *self == Self { domain: 0, bus: 0, device: 0, function: 0 }
    }
}

/// A text that is no PCI address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoAddress(String);

impl fmt::Display for NoAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no PCI address (DDDD:BB:DD.F)", self.0)
    }
}

impl FromStr for PciAddress {
    type Err = NoAddress;

    /// Reads what sysfs (`0000:0f:00.0`) and NVML (`00000000:0F:00.0`) write.
    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let parse = || {
            // Signs are taken for numbers, too.
            let allowed = |byte: u8| byte.is_ascii_hexdigit() || byte == b':' || byte == b'.';
            if !text.trim().bytes().all(allowed) {
                return None;
            }
            let (rest, function) = text.trim().rsplit_once('.')?;
            let mut parts = rest.rsplit(':');
            let (device, bus) = (parts.next()?, parts.next()?);
            let domain = parts.next().unwrap_or("0");
            if parts.next().is_some() {
                return None;
            }
            Some(Self {
                domain: u32::from_str_radix(domain, 16).ok()?,
                bus: u8::from_str_radix(bus, 16).ok()?,
                device: u8::from_str_radix(device, 16).ok()?,
                function: u8::from_str_radix(function, 16).ok()?,
            })
        };
        parse().ok_or_else(|| NoAddress(text.to_owned()))
    }
}

impl TryFrom<String> for PciAddress {
    type Error = NoAddress;

    fn try_from(text: String) -> Result<Self, NoAddress> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for PciAddress {
    /// As sysfs writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// Where a device is: the way from its root complex down, and its NUMA node.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Locality {
    /// The root complex, as `pci0000:00`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Bridges and switches below it, and the device at the end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<PciAddress>,
    /// NUMA node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
}

/// How near two devices are; the nearest is the greatest. The names in brackets are those of
/// `nvidia-smi topo`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Proximity {
    /// Nothing is known of one of them.
    Unknown,
    /// On other NUMA nodes (SYS).
    OtherNumaNode,
    /// On one NUMA node, below other root complexes (NODE).
    SameNumaNode,
    /// Below one root complex (PHB).
    SameRoot,
    /// Below one switch (PIX, PXB).
    SameSwitch,
}

impl Proximity {
    /// A few words for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Unknown => "distance unknown",
            Self::OtherNumaNode => "other NUMA node",
            Self::SameNumaNode => "same NUMA node",
            Self::SameRoot => "same root complex",
            Self::SameSwitch => "same PCIe switch",
        }
    }
}

impl Locality {
    /// Reads the path of a device's folder in sysfs, as `/sys/devices/pci0000:00/0000:00:01.0/...`.
    pub fn of_path(path: &str, numa_node: Option<u32>) -> Self {
        let parts = || path.split('/').filter(|part| !part.is_empty());
        let root = parts().find(|part| part.starts_with("pci") && part.contains(':'));
        let path = parts().filter_map(|part| part.parse().ok()).collect();
        Self { root: root.map(str::to_owned), path, numa_node }
    }

    /// How near another device is.
    pub fn proximity(&self, other: &Self) -> Proximity {
        let shared = self.path.iter().zip(&other.path).take_while(|(a, b)| a == b).count();
        // A port of the root complex leads to one slot: what two share beyond it is a switch.
        if shared >= 2 {
            return Proximity::SameSwitch;
        }
        if shared == 1 || (self.root.is_some() && self.root == other.root) {
            return Proximity::SameRoot;
        }
        match (self.numa_node, other.numa_node) {
            (Some(a), Some(b)) if a == b => Proximity::SameNumaNode,
            (Some(_), Some(_)) => Proximity::OtherNumaNode,
            _ => Proximity::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_sysfs_and_of_nvml_are_the_same() {
        let sysfs: PciAddress = "0000:0f:00.0".parse().unwrap();
        assert_eq!("00000000:0F:00.0".parse(), Ok(sysfs));
        assert_eq!("0F:00.0".parse(), Ok(sysfs));
        assert_eq!(sysfs.to_string(), "0000:0f:00.0");
        assert_eq!("10000:01:00.0".parse::<PciAddress>().unwrap().to_string(), "10000:01:00.0");
        for wrong in ["", "0000:0f:00", "x:0f:00.0", "0:0:0f:00.0", "0000:100:00.0"] {
            assert!(wrong.parse::<PciAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_nearest_shares_the_most_of_the_way() {
        let at = |path: &str, numa| Locality::of_path(path, numa);
        let gpu = at("/sys/devices/pci0000:16/0000:16:01.0/0000:17:00.0/0000:18:00.0", Some(0));
        let expected = [
            (
                at("/sys/devices/pci0000:16/0000:16:01.0/0000:17:00.0/0000:19:00.0", Some(0)),
                Proximity::SameSwitch,
            ),
            (at("/sys/devices/pci0000:16/0000:16:01.0/0000:1a:00.0", Some(0)), Proximity::SameRoot),
            (at("/sys/devices/pci0000:16/0000:16:02.0/0000:1b:00.0", Some(0)), Proximity::SameRoot),
            (
                at("/sys/devices/pci0000:30/0000:30:01.0/0000:31:00.0", Some(0)),
                Proximity::SameNumaNode,
            ),
            (
                at("/sys/devices/pci0000:97/0000:97:01.0/0000:98:00.0", Some(1)),
                Proximity::OtherNumaNode,
            ),
            (at("/sys/devices/virtual/block/dm-0", None), Proximity::Unknown),
        ];
        for (other, proximity) in &expected {
            assert_eq!(gpu.proximity(other), *proximity, "{other:?}");
        }
        assert!(expected.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    }
}
