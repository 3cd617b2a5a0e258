//! `weir topology` on described machines: the real binary and the real nvml-wrapper, over a
//! library that answers as NVML does on those.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_tests::mount::program;
use weir_tests::nvml;

fn topology(machine: &Path, args: &[&str]) -> Output {
    Command::new(program())
        .args(["topology", "--nvml-library"])
        .arg(nvml::library())
        .args(args)
        .env("WEIR_FAKE_NVML", machine)
        .output()
        .unwrap()
}

fn of(machine: &str) -> Value {
    let output = topology(&nvml::machine(machine), &["--output", "json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["gpu"].clone()
}

fn text(machine: &Path, args: &[&str]) -> String {
    let output = topology(machine, args);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A machine, changed.
fn changed(machine: &str, change: impl FnOnce(&mut Value)) -> (tempfile::TempDir, PathBuf) {
    let text = std::fs::read_to_string(nvml::machine(machine)).unwrap();
    let mut described: Value = serde_json::from_str(&text).unwrap();
    change(&mut described);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("machine.json");
    std::fs::write(&path, described.to_string()).unwrap();
    (dir, path)
}

#[test]
fn eight_gpus_behind_switches_are_read_whole() {
    let gpu = of("dgx-h100");
    assert_eq!((&gpu["driverVersion"], &gpu["cudaVersion"]), (&json!("550.54.15"), &json!("12.4")));
    let gpus = gpu["gpus"].as_array().unwrap();
    assert_eq!(gpus.len(), 8);
    let last = &gpus[7];
    assert_eq!(last["product"], "NVIDIA H100 80GB HBM3");
    assert_eq!(last["pci"], "0000:df:00.0");
    assert_eq!(last["memoryBytes"], 81559_u64 << 20);
    assert_eq!((&gpus[0]["numaNode"], &last["numaNode"]), (&json!(0), &json!(1)));
    assert_eq!(last["mig"]["enabled"], false);
    let links = last["nvlinks"].as_array().unwrap();
    assert_eq!(links.len(), 18);
    let end = json!({"link": 17, "remote": "switch", "remotePci": "0000:0a:00.0"});
    assert_eq!(links[17], end);
    // The fabric of a board ends with the machine.
    assert!(last["clique"].is_null());
    let tree = text(&nvml::machine("dgx-h100"), &[]);
    assert!(
        tree.contains("├─ GPU 7: NVIDIA H100") || tree.contains("└─ GPU 7: NVIDIA H100"),
        "{tree}"
    );
    assert!(tree.contains("NVLink to NVSwitch 0000:07:00.0: 5"), "{tree}");
}

#[test]
fn each_kind_of_machine_is_told_apart() {
    let h200 = of("h200");
    assert_eq!(h200["gpus"][0]["product"], "NVIDIA H200");
    assert!(h200["gpus"][0]["nvlinks"].is_null());

    let pair = of("l40s-pair");
    assert_eq!(pair["gpus"].as_array().unwrap().len(), 2);
    assert!(pair["gpus"][1]["mig"].is_null() && pair["gpus"][1]["nvlinks"].is_null());

    let mig = &of("a100-mig")["gpus"][0]["mig"];
    assert_eq!(mig["enabled"], true);
    assert_eq!(mig["instances"].as_array().unwrap().len(), 7);
    assert_eq!(mig["instances"][6]["profile"], "1g.5gb");
    assert_eq!(mig["instances"][6]["memoryBytes"], 4864_u64 << 20);

    let gb200 = &of("gb200")["gpus"][3];
    let uuid = "c0c1c2c3-c4c5-c6c7-c8c9-cacbcccdcecf";
    assert_eq!(gb200["clique"], json!({"clusterUuid": uuid, "cliqueId": 32766}));
    assert_eq!(gb200["nvlinks"][0], json!({"link": 0, "remote": "switch"}));

    let none = of("no-gpu");
    assert_eq!((&none["gpus"], &none["problem"]), (&json!([]), &Value::Null));
    assert!(text(&nvml::machine("no-gpu"), &[]).contains("none (the driver is there)"));
}

#[test]
fn without_a_driver_it_says_so_and_succeeds() {
    let output = Command::new(program())
        .args(["topology", "--nvml-library", "/nowhere/libnvidia-ml.so.1"])
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("no NVIDIA driver"), "{output:?}");
    // The library is there, the kernel module is not.
    let (_dir, machine) = changed("h200", |machine| machine["fail"] = json!({"nvmlInit_v2": 9}));
    assert!(text(&machine, &[]).contains("kernel module is not loaded"));
}

#[test]
fn calls_that_fail_leave_unknown_what_they_would_have_said() {
    let failing = of("driver-error");
    assert_eq!(failing["problem"]["kind"], "failed");
    assert_eq!(failing["gpus"], json!([]));
    for call in [
        "nvmlDeviceGetName",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetPciInfo_v3",
    ] {
        let (_dir, machine) = changed("h200", |machine| machine["fail"] = json!({call: 999}));
        let output = topology(&machine, &["-o", "json"]);
        let read: Value = serde_json::from_slice(&output.stdout).unwrap();
        let gpu = &read["gpu"]["gpus"][0];
        let fields = ["product", "uuid", "memoryBytes", "pci"];
        let known = fields.iter().filter(|field| !gpu[**field].is_null()).count();
        assert_eq!(known, 3, "{call}: {gpu}");
    }
    // A GPU that fell off the bus does not hide that there is a driver.
    let lost = json!({"nvmlDeviceGetHandleByIndex_v2": 15});
    let (_dir, machine) = changed("l40s-pair", |machine| machine["fail"] = lost);
    let tree = text(&machine, &[]);
    assert!(tree.contains("GPU 1") && tree.contains("NVIDIA driver 550.54.15"), "{tree}");
}

#[test]
fn a_driver_that_hangs_is_not_waited_for_for_ever() {
    let hang = json!(["nvmlDeviceGetName"]);
    let (_dir, machine) = changed("h200", |machine| machine["hang"] = hang);
    let start = Instant::now();
    let tree = text(&machine, &[]);
    assert!(tree.contains("does not answer"), "{tree}");
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn it_is_printed_for_people_and_for_programs() {
    let machine = nvml::machine("l40s-pair");
    let yaml = text(&machine, &["-o", "yaml"]);
    assert!(yaml.contains("product: NVIDIA L40S"), "{yaml}");
    let dot = text(&nvml::machine("dgx-h100"), &["--dot"]);
    assert!(dot.starts_with("graph topology {") && dot.ends_with("}\n"));
    assert!(dot.contains("\"0000:07:00.0\" -- \"0000:1b:00.0\" [label=NVLink"), "{dot}");
}
