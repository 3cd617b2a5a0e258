//! What a contestant uses: CPU seconds and peak memory, by a cgroup of its own.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A cgroup (version 1 or 2) with a sampler of its memory. Facts: kernel
/// Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
pub(crate) struct Cgroup {
    folders: Vec<PathBuf>,
    peak: Arc<AtomicU64>,
    rss_peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    sampler: Option<JoinHandle<()>>,
}

/// What was used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// CPU seconds of all its processes, kernel included.
    pub(crate) cpu_secs: f64,
    /// Most anonymous and kernel memory at once, in bytes.
    pub(crate) anon_and_kernel: u64,
    /// Most resident memory at once of all its processes, in bytes.
    pub(crate) rss: u64,
}

impl Cgroup {
    /// A new group.
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("weir-bench-{}-{name}", std::process::id());
        let v2 = PathBuf::from("/sys/fs/cgroup");
        let folders: Vec<PathBuf> = if v2.join("cgroup.controllers").exists() {
            let _ = fs::write(v2.join("cgroup.subtree_control"), "+memory +cpu");
            vec![v2.join(&name)]
        } else {
            ["memory", "cpuacct"].map(|c| v2.join(c).join(&name)).to_vec()
        };
        for folder in &folders {
            fs::create_dir_all(folder).unwrap();
        }
        let (peak, rss_peak): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
        let stop: Arc<AtomicBool> = Arc::default();
        let sampler = {
            let (folder, peak, rss, stop) =
                (folders[0].clone(), peak.clone(), rss_peak.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    peak.fetch_max(anon_and_kernel(&folder), Ordering::Relaxed);
                    rss.fetch_max(resident(&folder), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        };
        Self { folders, peak, rss_peak, stop, sampler: Some(sampler) }
    }

    /// Shell words that put the process that runs them into the group.
    pub(crate) fn enter(&self) -> String {
        let enter = |f: &PathBuf| format!("echo $$ > '{}/cgroup.procs'; ", f.display());
        self.folders.iter().map(enter).collect()
    }

    /// What was used so far.
    pub(crate) fn usage(&self) -> Usage {
        let last = self.folders.last().unwrap();
        let cpu_secs = match fs::read_to_string(last.join("cpuacct.usage")) {
            Ok(nanos) => nanos.trim().parse::<f64>().unwrap_or(0.0) / 1e9,
            Err(_) => field(&last.join("cpu.stat"), "usage_usec") as f64 / 1e6,
        };
        Usage {
            cpu_secs,
            anon_and_kernel: self.peak.load(Ordering::Relaxed),
            rss: self.rss_peak.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            let _ = sampler.join();
        }
        for folder in &self.folders {
            for _ in 0..50 {
                if fs::remove_dir(folder).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn field(file: &std::path::Path, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let found = text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok());
    found.unwrap_or(0)
}

fn anon_and_kernel(folder: &std::path::Path) -> u64 {
    match fs::read_to_string(folder.join("memory.kmem.usage_in_bytes")) {
        Ok(kernel) => {
            field(&folder.join("memory.stat"), "rss ") + kernel.trim().parse().unwrap_or(0)
        }
        Err(_) => {
            let stat = folder.join("memory.stat");
            field(&stat, "anon ") + field(&stat, "kernel ")
        }
    }
}

fn resident(folder: &std::path::Path) -> u64 {
    let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let rss = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    processes.lines().filter_map(rss).sum::<u64>() * 1024
}
