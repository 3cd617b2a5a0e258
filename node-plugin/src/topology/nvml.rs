//! Reading GPUs through NVML, by nvml-wrapper. NVML talks to the kernel driver, which may be
//! missing, refuse, or hang; so every look is made anew, in a thread of its own, with a deadline.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml, cuda_driver_version_major, cuda_driver_version_minor};

use super::model::{Gpu, GpuProblem, GpuReport, Mig, MigInstance, NvLink};
use super::pci::{Locality, PciAddress};
use super::raw;

/// Names of the library: the driver's own one first; a development package has the other.
const NAMES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];
/// NVLinks of one GPU, at most (nvml.h: NVML_NVLINK_MAX_LINKS).
const LINKS_MAX: u32 = 18;
/// NUMA nodes that a mask may name.
const NUMA_WORDS: usize = 16;

/// Where GPUs are read from. The real one is [`Nvml`]; tests have values.
pub trait Gpus: Send + Sync + 'static {
    /// What the driver says; never longer than a bounded time.
    fn read(&self) -> GpuReport;
}

impl Gpus for GpuReport {
    fn read(&self) -> GpuReport {
        self.clone()
    }
}

/// NVML, from a library.
pub struct Library {
    path: Option<PathBuf>,
    deadline: Duration,
    /// Whether an earlier look still waits for the driver: another would wait as well.
    waiting: Arc<AtomicBool>,
}

impl Library {
    /// The library at `path`, or where the dynamic linker finds it.
    pub fn new(path: Option<PathBuf>, deadline: Duration) -> Self {
        Self { path, deadline, waiting: Arc::default() }
    }
}

impl Gpus for Library {
    fn read(&self) -> GpuReport {
        let hangs = || {
            let text = format!("the NVIDIA driver does not answer ({:?})", self.deadline);
            GpuReport { problem: Some(GpuProblem::Hangs(text)), ..GpuReport::default() }
        };
        if self.waiting.swap(true, Ordering::AcqRel) {
            return hangs();
        }
        let (sender, report) = mpsc::sync_channel(1);
        let (path, waiting) = (self.path.clone(), self.waiting.clone());
        let look = move || {
            let report = look(path.as_deref().map(|path| path.as_os_str()));
            waiting.store(false, Ordering::Release);
            let _ = sender.send(report);
        };
        if let Err(error) = std::thread::Builder::new().name("weir-nvml".into()).spawn(look) {
            self.waiting.store(false, Ordering::Release);
            let problem = Some(GpuProblem::Failed(format!("no thread for NVML: {error}")));
            return GpuReport { problem, ..GpuReport::default() };
        }
        match report.recv_timeout(self.deadline) {
            Ok(report) => report,
            Err(mpsc::RecvTimeoutError::Timeout) => hangs(),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                self.waiting.store(false, Ordering::Release);
                let problem = Some(GpuProblem::Failed("reading NVML ended in a panic".into()));
                GpuReport { problem, ..GpuReport::default() }
            }
        }
    }
}

fn open(path: Option<&OsStr>) -> Result<Nvml, NvmlError> {
    if let Some(path) = path {
        return Nvml::builder().lib_path(path).init();
    }
    let mut failed = None;
    for name in NAMES {
        match Nvml::builder().lib_path(name.as_ref()).init() {
            Err(error @ NvmlError::LibloadingError(_)) => failed = failed.or(Some(error)),
            done => return done,
        }
    }
    Err(failed.unwrap_or(NvmlError::Unknown))
}

fn look(path: Option<&OsStr>) -> GpuReport {
    let nvml = match open(path) {
        Ok(nvml) => nvml,
        Err(error) => return GpuReport { problem: Some(problem(&error)), ..GpuReport::default() },
    };
    let cuda = nvml.sys_cuda_driver_version().ok().filter(|version| *version > 0);
    let cuda = cuda.map(|version| {
        format!("{}.{}", cuda_driver_version_major(version), cuda_driver_version_minor(version))
    });
    let mut report = GpuReport {
        problem: None,
        driver_version: nvml.sys_driver_version().ok(),
        cuda_version: cuda,
        gpus: Vec::new(),
    };
    match nvml.device_count() {
        Err(error) => report.problem = Some(problem(&error)),
        Ok(count) => {
            for index in 0..count {
                match nvml.device_by_index(index) {
                    Ok(device) => report.gpus.push(gpu(&nvml, &device, index)),
                    // One that fell off the bus does not hide the others.
                    Err(error) => {
                        let text = format!("GPU {index}: {error}");
                        report.problem = Some(GpuProblem::Failed(text));
                    }
                }
            }
        }
    }
    report
}

fn problem(error: &NvmlError) -> GpuProblem {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            GpuProblem::NoDriver("no NVIDIA driver: libnvidia-ml.so.1 cannot be loaded".into())
        }
        NvmlError::DriverNotLoaded => {
            GpuProblem::NoDriver("no NVIDIA driver: its kernel module is not loaded".into())
        }
        other => GpuProblem::Failed(format!("the NVIDIA driver refuses: {other}")),
    }
}

fn gpu(nvml: &Nvml, device: &Device<'_>, index: u32) -> Gpu {
    let pci: Option<PciAddress> = device.pci_info().ok().and_then(|pci| pci.bus_id.parse().ok());
    Gpu {
        index,
        uuid: device.uuid().ok(),
        product: device.name().ok(),
        memory_bytes: device.memory_info().ok().map(|memory| memory.total),
        pci,
        locality: Locality { numa_node: numa_node(device), ..Locality::default() },
        mig: mig(device),
        nvlinks: (0..LINKS_MAX).filter_map(|link| nvlink(nvml, device, link)).collect(),
        clique: raw::clique(nvml, device),
    }
}

/// The NUMA node next to a GPU, where NVML names exactly one.
fn numa_node(device: &Device<'_>) -> Option<u32> {
    let mask = device.memory_affinity(NUMA_WORDS, raw::AFFINITY_SCOPE_NODE).ok()?;
    let ones: u32 = mask.iter().map(|word| word.count_ones()).sum();
    let (word, bits) = mask.iter().enumerate().find(|(_, bits)| **bits != 0)?;
    let width = std::os::raw::c_ulong::BITS;
    (ones == 1).then(|| word as u32 * width + bits.trailing_zeros())
}

fn mig(device: &Device<'_>) -> Option<Mig> {
    let mode = device.mig_mode().ok()?;
    let enabled = mode.current == 1;
    let count = if enabled { device.mig_device_count().unwrap_or(0) } else { 0 };
    let instances = (0..count).filter_map(|index| {
        // Indices of instances have gaps.
        let instance = device.mig_device_by_index(index).ok()?;
        let name = instance.name().ok();
        Some(MigInstance {
            uuid: instance.uuid().ok(),
            profile: name.and_then(|name| Some(name.rsplit_once("MIG ")?.1.trim().to_owned())),
            memory_bytes: instance.memory_info().ok().map(|memory| memory.total),
        })
    });
    Some(Mig { enabled, instances: instances.collect() })
}

fn nvlink(nvml: &Nvml, device: &Device<'_>, link: u32) -> Option<NvLink> {
    let wrapper = device.link_wrapper_for(link);
    if !wrapper.is_active().ok()? {
        return None;
    }
    // A switch in another tray has no address here: NVML gives zeros.
    let remote_pci = wrapper.remote_pci_info().ok().and_then(|pci| pci.bus_id.parse().ok());
    let remote_pci = remote_pci.filter(|address: &PciAddress| !address.is_zero());
    Some(NvLink { link, remote: raw::remote_end(nvml, device, link), remote_pci })
}
