use std::os::unix::ffi::OsStrExt;

use weir_fuzz::{inputs, near};

use super::*;

const CORPUS: &[u8] = include_bytes!("../../../tests/corpus/mountinfo");

/// As the kernel writes a path (proc(5); `mangle` in fs/proc_namespace.c).
fn escaped(path: &[u8]) -> Vec<u8> {
    let octal = |byte: &u8| match byte {
        b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
        _ => vec![*byte],
    };
    path.iter().flat_map(octal).collect()
}

#[test]
fn a_path_of_any_bytes_comes_out_of_the_mount_table_as_it_went_in() {
    near(&["/mnt", "/mnt/a b", "/\\040/\t/\n#", "/- fuse.weir", "/\u{e9}"], |path| {
        let path = escaped(path);
        let line = [b"36 35 98:0 ", &*path, b" ", &*path, b" rw - ext4 ", &*path, b" rw"].concat();
        let entry = parse_line(&line).unwrap();
        assert_eq!(entry.mountpoint.as_os_str().as_bytes(), unescape(&path));
        assert_eq!(escaped(entry.mountpoint.as_os_str().as_bytes()), path);
        assert_eq!((entry.id, &*entry.device, &*entry.fs_type), (36, "98:0", "ext4"));
    });
}

#[test]
fn what_is_taken_for_ours_in_the_mount_table_has_our_type() {
    near(&inputs(CORPUS), |table| {
        for line in table.split(|byte| *byte == b'\n') {
            let Some(entry) = parse_line(line) else { continue };
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
            let dash = 5 + fields[5..].iter().position(|field| *field == b"-").unwrap();
            assert_eq!(entry.is_ours(), fields[dash + 1] == FS_TYPE.as_bytes());
            assert_eq!(entry.device.as_bytes(), fields[2]);
            assert!(entry.mountpoint.as_os_str().len() <= fields[4].len());
        }
    });
}
