//! A node none of whose cache disks works.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, Setup, TestVolume};
use weir_tests::sts::store;
use weir_tests::{eventually, random_bytes};

const MIB: usize = 1 << 20;

/// A file system over a folder; gone when dropped.
struct Over(PathBuf);

impl Over {
    fn mount(dir: &Path, flags: MountFlags) -> Self {
        rustix::mount::mount(c"tmpfs", dir, c"tmpfs", flags, None).unwrap();
        Self(dir.to_owned())
    }

    /// To which nobody can write.
    fn read_only(dir: &Path) -> Self {
        Self::mount(dir, MountFlags::RDONLY)
    }
}

impl Drop for Over {
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
    let disk = restart(&mut node, || Over::read_only(&dir));
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

#[test]
fn a_cache_takes_nothing_of_kubelets_disk_while_its_own_is_not_mounted() {
    let bucket = Bucket::new(Server::Minio);
    bucket.put("model", "bytes");
    let spare = tempfile::tempdir_in("/dev/shm").unwrap();
    let spare_dir = format!("--spare-cache-dir={}", spare.path().join("cache").display());
    // Where the caches of tests are.
    let node_flags = vec![spare_dir, "--cache-apart-from=/var/tmp".into()];
    let mut node = CsiNode::with(&bucket, Setup { node_flags, ..Setup::default() });
    let dir = node.cache_dir();
    let volume = TestVolume::new(&bucket, "one");
    let target = node.publish(&volume).unwrap();
    assert_eq!(fs::read(target.join("model")).unwrap(), b"bytes");
    let condition = node.stats(&volume).unwrap().volume_condition.unwrap();
    let told = "not on a disk of its own";
    assert!(condition.abnormal && condition.message.contains(told), "{condition:?}");
    assert!(!dir.join("index.redb").exists());

    let disk = Over::mount(&dir, MountFlags::empty());
    eventually("it ends for the disk", || node.logs().contains("works again"));
    restart(&mut node, || ());
    assert!(dir.join("index.redb").exists());
    assert_eq!(fs::read(target.join("model")).unwrap(), b"bytes");
    assert!(!node.stats(&volume).unwrap().volume_condition.unwrap().abnormal);
    node.unpublish(&volume).unwrap();
    node.take_node().terminate();
    drop(disk);
}
