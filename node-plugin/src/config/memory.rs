//! How much memory a process may count on.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Least and most memory for bytes on their way and for names, unless told otherwise.
const DEFAULT: std::ops::RangeInclusive<u64> = 128 << 20..=1 << 30;

/// The default for `--memory-target`: a 256th of the machine's memory, at least 128 MiB and at
/// most 1 GiB; a third of the cgroup's limit where that is less.
pub fn default_target() -> u64 {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = cgroup_limit(&membership, Path::new("/sys/fs/cgroup"));
    let machine = rustix::system::sysinfo();
    let machine = u64::from(machine.mem_unit).saturating_mul(machine.totalram);
    target(machine, limit)
}

fn target(machine: u64, cgroup: Option<u64>) -> u64 {
    let share = (machine / 256).clamp(*DEFAULT.start(), *DEFAULT.end());
    cgroup.map_or(share, |limit| share.min(limit / 3))
}

/// The least of the limits of this process's cgroup and those above it. Facts: cgroups(7).
pub(super) fn cgroup_limit(membership: &str, root: &Path) -> Option<u64> {
    let files = membership.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let path = path.trim_start_matches('/').to_owned();
        // One that is not seen from here (cgroup_namespaces(7)).
        if Path::new(&path).components().any(|part| part == Component::ParentDir) {
            return None;
        }
        match controllers {
            "" => Some((root.to_owned(), path, "memory.max")),
            "memory" => Some((root.join("memory"), path, "memory.limit_in_bytes")),
            _ => None,
        }
    });
    files.flat_map(|(base, path, file)| limits_up(base, &path, file)).min()
}

fn limits_up(base: PathBuf, path: &str, file: &'static str) -> Vec<u64> {
    let full = base.join(path);
    let within = full.ancestors().take_while(|dir| dir.starts_with(&base));
    within.filter_map(|dir| fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_follows_the_machine_and_the_cgroup() {
        const GIB: u64 = 1 << 30;
        assert_eq!(target(2 * GIB, None), 128 << 20);
        assert_eq!(target(64 * GIB, None), 256 << 20);
        assert_eq!(target(2048 * GIB, None), GIB);
        assert_eq!(target(2048 * GIB, Some(3 << 20)), 1 << 20);
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("pods/one");
        fs::create_dir_all(&pod).unwrap();
        fs::write(pod.join("memory.max"), "max\n").unwrap();
        fs::write(root.path().join("pods/memory.max"), "1048576\n").unwrap();
        assert_eq!(cgroup_limit("0::/pods/one\n", root.path()), Some(1 << 20));
        assert_eq!(cgroup_limit("0::/elsewhere\n", root.path()), None);
        let v1 = root.path().join("memory/a");
        fs::create_dir_all(&v1).unwrap();
        fs::write(v1.join("memory.limit_in_bytes"), "4096").unwrap();
        assert_eq!(cgroup_limit("3:memory:/a\n2:cpu:/a\n", root.path()), Some(4096));
    }
}
