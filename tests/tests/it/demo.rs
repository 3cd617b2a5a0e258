//! The demo, as a new user runs it.

use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use weir_fuse::adapter::mount::mount_table;
use weir_tests::eventually;
use weir_tests::mount::program;

fn leftovers(dir: &std::path::Path) -> (usize, usize) {
    let mounts = mount_table().unwrap().iter().filter(|e| e.mountpoint.starts_with(dir)).count();
    (std::fs::read_dir(dir).unwrap().count(), mounts)
}

#[test]
fn the_demo_shows_its_table_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let output = Command::new(program())
        .args(["demo", "--model-size", "32MiB", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{log}");
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    for words in [
        "model, from NVMe",
        "walk and stat, again",
        "safetensors by mmap",
        "When close returned, S3 held all",
        "0 bytes fetched",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(leftovers(dir.path()), (0, 0));
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    for wait in ["making game assets", "reading the model, cold"] {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let log = dir.path().with_extension("log");
        let mut child = Command::new("setsid")
            .arg(program())
            .args(["demo", "--model-size", "32MiB", "--dir"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        eventually(wait, || std::fs::read_to_string(&log).unwrap().contains(wait));
        // As a terminal does: to the whole group.
        kill_process_group(Pid::from_child(&child), Signal::INT).unwrap();
        eventually("the demo ends", || child.try_wait().unwrap().is_some());
        assert_eq!(leftovers(dir.path()), (0, 0));
        std::fs::remove_file(log).unwrap();
    }
}
