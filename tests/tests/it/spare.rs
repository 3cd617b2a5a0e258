//! A node none of whose cache disks works.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, Setup, TestVolume};
use weir_tests::sts::store;
use weir_tests::{eventually, random_bytes};

const MIB: usize = 1 << 20;

/// A file system over a folder, to which nobody can write; gone when dropped.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn over(dir: &Path) -> Self {
        rustix::mount::mount(c"tmpfs", dir, c"tmpfs", MountFlags::RDONLY, None).unwrap();
        Self(dir.to_owned())
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Ends the node, and starts it after `meanwhile`.
fn restart<T>(node: &mut CsiNode, meanwhile: impl FnOnce() -> T) -> T {
    node.take_node().terminate();
    let done = meanwhile();
    node.start_node();
    done
}

#[test]
fn a_node_none_of_whose_disks_works_serves_through_memory_until_one_does() {
    let bucket = Bucket::new(Server::Minio);
    // More than there is memory for.
    let bytes = random_bytes(1, 80 * MIB);
    bucket.put("model", bytes.clone());
    let spare = tempfile::tempdir_in("/dev/shm").unwrap();
    let node_flags = vec![format!("--spare-cache-dir={}", spare.path().join("cache").display())];
    let mut node = CsiNode::with(&bucket, Setup { node_flags, ..Setup::default() });
    let volume = TestVolume::new(&bucket, "one");
    let target = node.publish(&volume).unwrap();
    let dir = node.cache_dir();
    let disk = restart(&mut node, || ReadOnly::over(&dir));
    assert!(fs::read(target.join("model")).unwrap() == bytes);
    let other = volume.pod("two");
    assert!(fs::read(node.publish(&other).unwrap().join("model")).unwrap() == bytes);
    store(&target.join("written"), "stored").unwrap();
    assert_eq!(bucket.get("written").unwrap(), b"stored");
    let condition = node.stats(&volume).unwrap().volume_condition.unwrap();
    assert!(condition.abnormal && condition.message.contains("Read-only"), "{condition:?}");
    drop(disk);
    eventually("it ends for the disk", || node.logs().contains("works again"));
    restart(&mut node, || ());
    assert!(fs::read(target.join("model")).unwrap() == bytes);
    assert!(!node.stats(&volume).unwrap().volume_condition.unwrap().abnormal);
}
