//! mount(2) and umount(2) for FUSE, without a helper program.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

/// Kernel read-ahead on a mount, in KiB.
const READ_AHEAD_KIB: u32 = 1024;

/// Longest SELinux context, in bytes: more than 1,024 categories by name are not met.
const CONTEXT_MAX: usize = 4096;

/// File system type in the mount table.
pub const FS_TYPE: &str = "fuse.weir";

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What the mount table names as the source.
    pub source: String,
    /// Where.
    pub mountpoint: PathBuf,
    /// Let users other than the one who mounts see it.
    pub allow_other: bool,
    /// Let nobody write.
    pub read_only: bool,
    /// SELinux context of everything in it, where one is asked for.
    pub selinux_context: Option<String>,
}

/// Why a mountpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// It is not there, or no directory.
    #[error("mountpoint {0}: {1}; make the directory first")]
    Unusable(PathBuf, io::Error),
    /// Something is mounted there.
    #[error("mountpoint {0} is mounted already ({1}); unmount it or take another")]
    Taken(PathBuf, String),
    /// It holds files, which the mount would hide.
    #[error("mountpoint {0} is not empty: the mount would hide what is in it")]
    NotEmpty(PathBuf),
    /// No FUSE in this kernel or container.
    #[error("/dev/fuse: {0}; load the fuse module, or give the container the device")]
    NoDevice(io::Error),
    /// No right to mount.
    #[error("mounting needs root (CAP_SYS_ADMIN)")]
    NotPermitted,
    /// A context that could say more to the kernel than what it is.
    #[error("SELinux context {0:?}: only letters, digits and _ . : , - can be in one")]
    Context(String),
    /// Anything else.
    #[error("mount on {0}: {1}")]
    Failed(PathBuf, io::Error),
}

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Id of the mount, as in `mnt_id` of `/proc/self/fdinfo`.
    pub id: u64,
    /// Device number, as `major:minor`.
    pub device: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Type of the file system.
    pub fs_type: String,
    /// What is mounted.
    pub source: String,
}

impl MountEntry {
    /// Whether it is a mount of Weir's.
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// The mount table of this process. A line that is not understood is left out: names in it are
/// bytes that anybody may have chosen. Facts: proc(5), `/proc/pid/mountinfo`.
///
/// # Errors
/// What reading it reports.
pub fn mount_table() -> io::Result<Vec<MountEntry>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(parse_line).collect())
}

/// The mount that an open file or folder is on; asks the file system nothing. `None` for one that is
/// mounted nowhere in this namespace any more. Facts: proc(5), `/proc/pid/fdinfo`.
///
/// # Errors
/// What reading the table reports.
pub fn mount_of(file: BorrowedFd<'_>) -> io::Result<Option<MountEntry>> {
    let id = mount_id(file)?;
    Ok(mount_table()?.into_iter().find(|entry| entry.id == id))
}

/// Id of the mount that an open file or folder is on.
///
/// # Errors
/// What reading it reports.
pub fn mount_id(file: BorrowedFd<'_>) -> io::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "fdinfo names no mount"))
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.nth(1)?)?;
    let mountpoint = OsString::from_vec(unescape(fields.nth(1)?)).into();
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = text(rest.next()?)?;
    let source = String::from_utf8_lossy(&unescape(rest.next()?)).into_owned();
    Some(MountEntry { id, device, mountpoint, fs_type, source })
}

/// Space, tab, newline and backslash stand as octal in the table.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\');
        let code = octal.and_then(|o| u8::from_str_radix(std::str::from_utf8(o).ok()?, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Whether a text can be an SELinux context, and nothing else that the kernel would read as an
/// option. Categories are separated by commas.
pub fn is_selinux_context(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.:,-".contains(c);
    !text.is_empty() && text.len() <= CONTEXT_MAX && text.chars().all(allowed)
}

/// Checks that a mountpoint can be used.
///
/// # Errors
/// [`MountError`] but for the last two.
pub fn check_mountpoint(path: &Path) -> Result<PathBuf, MountError> {
    let absolute = path.canonicalize().map_err(|e| MountError::Unusable(path.into(), e))?;
    let table = mount_table().unwrap_or_default();
    if let Some(entry) = table.iter().rev().find(|e| e.mountpoint == absolute)
        && absolute != Path::new("/")
        && entry.fs_type.starts_with("fuse")
    {
        return Err(MountError::Taken(absolute, entry.source.clone()));
    }
    let mut entries = fs::read_dir(&absolute).map_err(|e| MountError::Unusable(path.into(), e))?;
    if entries.next().is_some() {
        return Err(MountError::NotEmpty(absolute));
    }
    Ok(absolute)
}

/// The folder that [`check_mountpoint`] has found. A symlink that took the place of any part of its
/// path since leads nowhere: openat2(2), RESOLVE_NO_SYMLINKS.
///
/// # Errors
/// [`MountError::Unusable`].
pub fn open_mountpoint(path: &Path) -> Result<OwnedFd, MountError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        .map_err(|e| MountError::Unusable(path.into(), e.into()))
}

/// Opens /dev/fuse and mounts it on an open folder. The kernel's INIT request then waits on the
/// result.
///
/// # Errors
/// [`MountError::NoDevice`], [`MountError::NotPermitted`], [`MountError::Context`] or
/// [`MountError::Failed`].
pub fn mount_device(options: &MountOptions, folder: BorrowedFd<'_>) -> Result<OwnedFd, MountError> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| MountError::NoDevice(e.into()))?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_fd().as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    if let Some(context) = &options.selinux_context {
        if !is_selinux_context(context) {
            return Err(MountError::Context(context.clone()));
        }
        data.push_str(&format!(",context=\"{context}\""));
    }
    let failed = |e: io::Error| MountError::Failed(options.mountpoint.clone(), e);
    let data = CString::new(data).map_err(|e| failed(e.into()))?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    if options.read_only {
        flags |= MountFlags::RDONLY;
    }
    let source = options.source.as_str();
    let at = format!("/proc/self/fd/{}", folder.as_raw_fd());
    match rustix::mount::mount(source, &at, FS_TYPE, flags, data.as_c_str()) {
        Ok(()) => Ok(device),
        Err(Errno::PERM | Errno::ACCESS) => Err(MountError::NotPermitted),
        Err(error) => Err(failed(error.into())),
    }
}

/// Unmounts; with `lazy` also while it is in use, which then ends with the last user.
///
/// # Errors
/// What umount2 reports: EBUSY while it is in use, EINVAL where nothing is mounted.
pub fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    Ok(rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW)?)
}

/// Device number of what is mounted here, as `major:minor`.
pub fn device_of(mountpoint: &Path) -> Option<String> {
    let table = mount_table().unwrap_or_default();
    table.into_iter().rev().find(|e| e.mountpoint == mountpoint).map(|entry| entry.device)
}

/// Lets the kernel read further ahead than the 128 KiB that FUSE's INIT can ask for.
pub fn set_read_ahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, %path, "read-ahead stays at the kernel's default");
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_table_are_read_with_their_escapes() {
        let line = b"36 35 98:0 /root /mnt/a\\040b rw,noatime master:1 - fuse.weir s3://b/x rw";
        let entry = parse_line(line).unwrap();
        assert_eq!(entry.id, 36);
        assert_eq!(entry.mountpoint, Path::new("/mnt/a b"));
        assert_eq!((entry.device.as_str(), entry.fs_type.as_str()), ("98:0", "fuse.weir"));
        assert_eq!(entry.source, "s3://b/x");
    }

    #[test]
    fn a_name_that_is_no_text_hides_no_line() {
        let line = b"36 35 8:1 /\xff /pods/\xfe rw shared:1 - ext4 /dev/sda1 rw";
        let entry = parse_line(line).unwrap();
        assert_eq!(entry.mountpoint.as_os_str().as_encoded_bytes(), b"/pods/\xfe");
        assert!(!entry.is_ours());
        for bad in [&b""[..], b"36", b"x 35 8:1 / / rw - a b", b"36 35 8:1 / /mnt rw shared:1"] {
            assert_eq!(parse_line(bad), None);
        }
    }

    #[test]
    fn an_open_folder_tells_its_mount() {
        let root = fs::File::open("/").unwrap();
        let proc = fs::File::open("/proc").unwrap();
        let of = |file: &fs::File| mount_of(file.as_fd()).unwrap().unwrap();
        assert_eq!(of(&proc).fs_type, "proc");
        assert_ne!(of(&root).id, of(&proc).id);
    }

    #[test]
    fn a_context_can_add_no_option() {
        assert!(is_selinux_context("system_u:object_r:container_file_t:s0:c1,c2"));
        for bad in ["", "s0\",max_read=1,x=\"", "a b", "s0\n", &"s".repeat(CONTEXT_MAX + 1)] {
            assert!(!is_selinux_context(bad), "{bad}");
        }
    }

    #[test]
    fn bad_mountpoints_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_mountpoint(dir.path()).is_ok());
        let missing = dir.path().join("missing");
        assert!(matches!(check_mountpoint(&missing), Err(MountError::Unusable(..))));
        fs::write(dir.path().join("x"), "x").unwrap();
        assert!(matches!(check_mountpoint(dir.path()), Err(MountError::NotEmpty(_))));
    }

    #[test]
    fn a_link_that_took_the_place_of_a_mountpoint_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("mine/below");
        fs::create_dir_all(&path).unwrap();
        let checked = check_mountpoint(&path).unwrap();
        assert!(open_mountpoint(&checked).is_ok());
        fs::rename(dir.path().join("mine"), dir.path().join("was")).unwrap();
        std::os::unix::fs::symlink("was", dir.path().join("mine")).unwrap();
        assert!(path.is_dir());
        assert!(matches!(open_mountpoint(&checked), Err(MountError::Unusable(..))));
    }
}
