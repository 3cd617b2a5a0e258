//! Whose close it is. FUSE sends FLUSH for every close of every copy of a descriptor, with the
//! id of the closing thread; only the opener's last close says that the writer is done.

use std::cell::LazyCell;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;

use crate::blocking::MayBlock;

/// Knows the processes that FUSE requests come from.
///
/// [`Proc`] reads `/proc`; a node whose requests carry ids of another pid namespace asks its
/// mounter, which lives in that one.
pub trait Processes: Send + Sync {
    /// The process (tgid) of a thread, or 0 if it is gone.
    fn process_of(&self, may: &MayBlock, thread: u32) -> u32;

    /// Whether a process is there.
    fn is_alive(&self, may: &MayBlock, process: u32) -> bool;

    /// Whether a thread takes no answer any more: it was killed, or exits, or is gone. `false` where
    /// that cannot be seen.
    fn is_dying(&self, may: &MayBlock, thread: u32) -> bool;

    /// Whether a process has a descriptor of this file open for writing; `false` where that
    /// cannot be seen.
    fn holds(&self, may: &MayBlock, process: u32, file: &FileId<'_>) -> bool;
}

/// A file as descriptors of any process show it.
#[derive(Clone, Copy, Debug)]
pub struct FileId<'a> {
    /// Device number of its file system, as `major:minor`.
    pub device: &'a str,
    /// Inode number.
    pub ino: u64,
    /// File name.
    pub name: &'a str,
}

/// The bit of SIGKILL in a mask of signals.
const KILLED: u64 = 1 << (9 - 1);

/// Descriptors of a process that are looked at: it chooses how many it has. Beyond them a close
/// counts as the last one, which costs a PUT more at most.
const DESCRIPTORS_MAX: usize = 1024;

/// Bytes of a process's mount table that are looked at: it chooses what is mounted there, too.
const TABLE_MAX: u64 = 16 << 20;

/// The processes of this pid namespace. Facts: proc(5), `/proc/pid/status`
/// (whoever is about to die has SIGKILL pending, whichever signal it was), `/proc/pid/fdinfo`
/// (`ino` since Linux 5.14) and `/proc/pid/mountinfo`.
#[derive(Clone, Copy, Default, Debug)]
pub struct Proc;

impl Processes for Proc {
    fn process_of(&self, _: &MayBlock, thread: u32) -> u32 {
        process_in(&text_of(format!("/proc/{thread}/status")))
    }

    fn is_alive(&self, _: &MayBlock, process: u32) -> bool {
        process != 0 && fs::exists(format!("/proc/{process}")).unwrap_or(false)
    }

    fn is_dying(&self, _: &MayBlock, thread: u32) -> bool {
        // One of a pid namespace that is not seen from here.
        if thread == 0 {
            return false;
        }
        // Not `stat`: reading it waits for an exec, which may be waiting for us to answer the close
        // of a descriptor.
        is_dying_in(&text_of(format!("/proc/{thread}/status")))
    }

    fn holds(&self, _: &MayBlock, process: u32, file: &FileId<'_>) -> bool {
        let Ok(entries) = fs::read_dir(format!("/proc/{process}/fdinfo")) else { return false };
        // Of any number of descriptors with this inode number and name the table is read once.
        let mounts = LazyCell::new(|| mounts_of(process, file.device));
        entries.flatten().take(DESCRIPTORS_MAX).any(|entry| {
            let info = text_of(entry.path());
            let Some(mount) = writes_on(&info, file.ino) else { return false };
            let fd = entry.file_name();
            let link = fs::read_link(format!("/proc/{process}/fd/{}", fd.to_string_lossy()));
            link.is_ok_and(|path| path.file_name().is_some_and(|name| name == file.name))
                && mounts.contains(mount)
        })
    }
}

/// What a file of /proc says. The names in it may be any bytes.
fn text_of(path: impl AsRef<std::path::Path>) -> String {
    fs::read(path).map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into())
}

/// The process that a status is of; 0 where it does not say.
fn process_in(status: &str) -> u32 {
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Whether a status is of a thread that takes no answer any more.
fn is_dying_in(status: &str) -> bool {
    // Memory is let go of before descriptors are; of who is gone there is no line at all.
    let is_exiting = !status.contains("\nVmSize:");
    let pending = status.lines().filter_map(|line| {
        let mask = line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    is_exiting || pending.fold(0, |all, mask| all | mask) & KILLED != 0
}

/// The mount, by its id, of a descriptor that is open for writing on this inode.
fn writes_on(info: &str, ino: u64) -> Option<&str> {
    let field = |key: &str| info.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let same = field("ino:").and_then(|v| v.parse().ok()) == Some(ino);
    let flags = field("flags:").and_then(|v| u32::from_str_radix(v, 8).ok()).unwrap_or(0);
    (same && flags & rustix::fs::OFlags::ACCMODE.bits() != 0).then(|| field("mnt_id:")).flatten()
}

/// The mounts of a device in a process's table, by their ids.
fn mounts_of(process: u32, device: &str) -> HashSet<String> {
    let mut table = Vec::new();
    // Of a process that is gone there is none.
    let _ = File::open(format!("/proc/{process}/mountinfo"))
        .and_then(|file| file.take(TABLE_MAX).read_to_end(&mut table));
    mounts_in(&String::from_utf8_lossy(&table), device)
}

/// The mounts of a device in a table, by their ids.
fn mounts_in(table: &str, device: &str) -> HashSet<String> {
    let of_device = table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let mount = fields.next()?;
        (fields.nth(1) == Some(device)).then(|| mount.to_owned())
    });
    of_device.collect()
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_second_descriptor_of_the_same_process_is_found() {
        let may = &MayBlock::own_thread();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.txt");
        let me = std::process::id();
        let first = fs::File::create(&path).unwrap();
        let meta = first.metadata().unwrap();
        let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        let device = format!("{major}:{minor}");
        let file = FileId { device: &device, ino: meta.ino(), name: "out.txt" };
        let second = first.try_clone().unwrap();
        assert!(Proc.holds(may, me, &file));
        assert!(!Proc.holds(may, me, &FileId { name: "other.txt", ..file }));
        assert!(!Proc.holds(may, me, &FileId { device: "0:0", ..file }));
        drop(first);
        assert!(Proc.holds(may, me, &file));
        drop(second);
        let _reader = fs::File::open(&path).unwrap();
        assert!(!Proc.holds(may, me, &file));
    }

    #[test]
    fn a_thread_belongs_to_its_process() {
        let may = &MayBlock::own_thread();
        let me = rustix::thread::gettid().as_raw_nonzero().get();
        assert_eq!(Proc.process_of(may, me as u32), std::process::id());
        assert_eq!(Proc.process_of(may, u32::MAX), 0);
        assert!(Proc.is_alive(may, std::process::id()) && !Proc.is_alive(may, 0));
        assert!(
            !Proc.is_dying(may, me as u32)
                && !Proc.is_dying(may, 0)
                && Proc.is_dying(may, u32::MAX)
        );
    }
}
