use weir_fuzz::{inputs, near, near_texts};

use super::*;

const STATUS: &str = include_str!("../../../tests/corpus/status");
const MOUNTS: &[u8] = include_bytes!("../../../tests/corpus/mountinfo");
const FDINFO: &[u8] = include_bytes!("../../../tests/corpus/fdinfo");

/// As the kernel writes the name of a process (`proc_task_name` in fs/proc/array.c), read as here.
fn status_of(name: &[u8], killed: bool) -> String {
    let escape = |byte: &u8| match byte {
        b'\n' => b"\\n".to_vec(),
        b'\\' => b"\\\\".to_vec(),
        _ => vec![*byte],
    };
    let name: Vec<u8> = name.iter().filter(|byte| **byte != 0).flat_map(escape).collect();
    let mut status = STATUS.replace("{NAME}", &String::from_utf8_lossy(&name));
    if killed {
        status = status.replace("ShdPnd:\t0000000000000000", "ShdPnd:\t0000000000004100");
    }
    status
}

#[test]
fn the_name_of_a_process_changes_nothing_of_what_is_read_about_it() {
    near(&["cat", "x\nTgid:\t1\nVmSize:\t1 kB", "Tgid:\t1\rSigPnd:\t100"], |name| {
        assert_eq!(process_in(&status_of(name, false)), 10914);
        assert!(!is_dying_in(&status_of(name, false)) && is_dying_in(&status_of(name, true)));
    });
}

#[test]
fn a_descriptor_writes_where_its_text_says_so_and_nowhere_else() {
    near_texts(&inputs(FDINFO), |info| {
        let Some(mount) = writes_on(info, 4242) else { return };
        let says = |key: &str, value: &dyn Fn(&str) -> bool| {
            let mut values = info.lines().filter_map(|line| line.strip_prefix(key));
            values.any(|text| value(text.trim()))
        };
        assert!(says("ino:", &|text| text.parse() == Ok(4242_u64)), "{info:?}");
        assert!(says("mnt_id:", &|text| text == mount), "{info:?}");
        assert!(says("flags:", &|text| text.ends_with(|last| "123567".contains(last))));
    });
}

#[test]
fn a_mount_is_of_the_device_that_its_line_names() {
    near_texts(&inputs(MOUNTS), |table| {
        let line = |line: &str| line.starts_with("28 ") && line.split(' ').nth(2) == Some("0:25");
        assert_eq!(mounts_in(table, "0:25").contains("28"), table.lines().any(line));
    });
}
