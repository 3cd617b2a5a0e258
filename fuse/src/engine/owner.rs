//! Whose close it is. FUSE sends FLUSH for every close of every copy of a descriptor, with the
//! id of the closing thread; only the opener's last close says that the writer is done.

use std::fs;

/// The process (tgid) of a thread, or 0 if it is gone. Facts: proc(5), `/proc/pid/status`.
pub fn process_of(thread: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Whether a process is there.
pub fn is_alive(process: u32) -> bool {
    process != 0 && fs::exists(format!("/proc/{process}")).unwrap_or(false)
}

/// Whether a process has another descriptor, open for writing, of the file with this inode
/// number and name. Facts: proc(5), `/proc/pid/fdinfo` (`ino` since Linux 5.14).
pub fn holds_another(process: u32, ino: u64, name: &str) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{process}/fdinfo")) else { return false };
    entries.flatten().any(|entry| {
        let info = fs::read_to_string(entry.path()).unwrap_or_default();
        let field = |key: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(key))
                .map(|value| value.trim().to_owned())
        };
        let same = field("ino:").and_then(|v| v.parse().ok()) == Some(ino);
        let flags = field("flags:").and_then(|v| u32::from_str_radix(&v, 8).ok()).unwrap_or(0);
        if !same || flags & rustix::fs::OFlags::ACCMODE.bits() == 0 {
            return false;
        }
        let fd = entry.file_name();
        let link = fs::read_link(format!("/proc/{process}/fd/{}", fd.to_string_lossy()));
        link.is_ok_and(|path| path.file_name().is_some_and(|file| file == name))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_second_descriptor_of_the_same_process_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.txt");
        let me = std::process::id();
        let first = fs::File::create(&path).unwrap();
        let ino = first.metadata().unwrap().ino();
        let second = first.try_clone().unwrap();
        assert!(holds_another(me, ino, "out.txt"));
        assert!(!holds_another(me, ino, "other.txt"));
        drop(first);
        assert!(holds_another(me, ino, "out.txt"));
        drop(second);
        assert!(!holds_another(me, ino, "out.txt"));
        let _reader = fs::File::open(&path).unwrap();
        assert!(!holds_another(me, ino, "out.txt"));
    }

    #[test]
    fn a_thread_belongs_to_its_process() {
        let me = rustix::thread::gettid().as_raw_nonzero().get();
        assert_eq!(process_of(me as u32), std::process::id());
        assert_eq!(process_of(u32::MAX), 0);
        assert!(is_alive(std::process::id()) && !is_alive(0));
    }
}
