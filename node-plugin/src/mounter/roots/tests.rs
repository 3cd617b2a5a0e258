use std::os::unix::fs::symlink;

use super::*;

fn write_data(folder: &Path, driver: &str) {
    let data = format!(r#"{{"driverName": "{driver}", "specVolID": "data"}}"#);
    std::fs::write(folder.join(VOLUME_DATA), data).unwrap();
}

#[test]
fn nothing_outside_the_folders_is_reached() {
    let dir = tempfile::tempdir().unwrap();
    let (sessions, pods) = (dir.path().join("sessions"), dir.path().join("pods"));
    let roots = Roots::open(&sessions, std::slice::from_ref(&pods)).unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir_all(outside.join("volumes/kubernetes.io~csi/data/mount")).unwrap();
    symlink(&outside, pods.join("link")).unwrap();
    // What is refused is not refused because it is not there.
    for pod in ["uid", "u.id"] {
        std::fs::create_dir_all(pods.join(pod).join("volumes/kubernetes.io~csi/data/mount"))
            .unwrap();
    }
    std::fs::create_dir_all(pods.join("uid/volumes/kubernetes.io~projected/token")).unwrap();
    std::fs::create_dir_all(pods.join("uid/volume-subpaths/data/agent")).unwrap();
    assert!(roots.target(&pods.join("uid/volumes/kubernetes.io~csi/data/mount")).is_ok());
    for bad in [
        "/etc",
        "/",
        "outside",
        "pods",
        "pods/../outside",
        "pods/uid",
        "pods/uid/volumes/kubernetes.io~csi/data",
        "pods/uid/volumes/kubernetes.io~csi/data/mount/x",
        "pods/uid/volumes/kubernetes.io~csi/../mount",
        "pods/uid/volumes/kubernetes.io~csi/data/vol_data.json",
        "pods/uid/volumes/kubernetes.io~csi/data/target",
        "pods/uid/volumes/kubernetes.io~csi/data/Mount",
        "pods/uid/volumes/kubernetes.io~projected/token/mount",
        "pods/uid/volume-subpaths/data/agent/0",
        "pods/u.id/volumes/kubernetes.io~csi/data/mount",
        // A symlink on the way.
        "pods/link/volumes/kubernetes.io~csi/data/mount",
    ] {
        assert!(roots.target(&dir.path().join(bad)).is_err(), "{bad}");
    }
    for bad in ["", "..", "a/b", "ABC", "x", &"a".repeat(65)] {
        assert!(roots.session(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_target_is_kubelets_for_this_driver() {
    let dir = tempfile::tempdir().unwrap();
    let pods = dir.path().join("pods");
    let roots = Roots::open(&dir.path().join("sessions"), std::slice::from_ref(&pods)).unwrap();
    let volume = pods.join("0a-1/volumes/kubernetes.io~csi/data");
    let target = volume.join("mount");
    // Nothing above the last directory is made.
    assert_eq!(roots.target(&target).err().map(|e| e.kind()), Some(io::ErrorKind::NotFound));
    std::fs::create_dir_all(&volume).unwrap();
    let place = roots.target(&target).unwrap();
    assert!(place.check_provenance().is_err());
    for (text, allowed) in [
        (r#"{"driverName": "s3.csi.weir.dev", "volumeHandle": "x"}"#, true),
        (r#"{"driverName": "other.csi.example"}"#, false),
        ("{}", false),
        ("", false),
    ] {
        std::fs::write(volume.join(VOLUME_DATA), text).unwrap();
        assert_eq!(place.check_provenance().is_ok(), allowed, "{text}");
    }
    // A symlink to a file that says so is none of kubelet's.
    write_data(dir.path(), DRIVER);
    std::fs::remove_file(volume.join(VOLUME_DATA)).unwrap();
    symlink(dir.path().join(VOLUME_DATA), volume.join(VOLUME_DATA)).unwrap();
    assert!(place.check_provenance().is_err());
    place.make().unwrap();
    assert!(target.is_dir());
    assert_eq!(place.mounted().unwrap(), None);
    place.remove().unwrap();
    assert!(!target.exists());
    // A symlink in its place is not followed.
    symlink(dir.path(), &target).unwrap();
    assert!(place.folder().is_err());
}

#[test]
fn a_pod_declares_a_volume_where_kubelet_has_made_it() {
    let dir = tempfile::tempdir().unwrap();
    let pods = dir.path().join("pods");
    let roots = Roots::open(&dir.path().join("sessions"), std::slice::from_ref(&pods)).unwrap();
    let volumes = pods.join("0a-1/volumes");
    std::fs::create_dir_all(volumes.join("kubernetes.io~empty-dir/mark")).unwrap();
    std::fs::create_dir_all(volumes.join("kubernetes.io~projected/other")).unwrap();
    std::fs::create_dir_all(pods.join("0b/volumes/kubernetes.io~empty-dir/own/mark")).unwrap();
    symlink(volumes.join("kubernetes.io~empty-dir"), volumes.join("link")).unwrap();
    assert!(roots.has_pod("0a-1") && roots.has_pod("0b") && !roots.has_pod("0c"));
    assert!(roots.has_empty_dir("0a-1", "mark"));
    for (pod, name) in
        [("0a-1", "other"), ("0a-1", "../link/mark"), ("0b", "mark"), ("0c", "mark"), ("..", "x")]
    {
        assert!(!roots.has_empty_dir(pod, name), "{pod} {name}");
    }
}
