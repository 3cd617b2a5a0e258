//! Where sessions are mounted and volumes are shown. Places are looked up below the mounter's
//! folders, never through a symlink or another mount, and a target only where kubelet has made it
//! for this driver.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use serde::Deserialize;
use weir_fuse::adapter::mount::{self, MountEntry};

use crate::csi::DRIVER;

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// How every path is resolved. `NO_XDEV`: a mount on the way leads elsewhere, as kubelet's own of
/// subPath volumes do.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// What kubelet writes about a volume beside its target, before it has it published, and removes
/// after it was taken away (pkg/volume/csi/csi_util.go).
const VOLUME_DATA: &str = "vol_data.json";
/// More than kubelet writes there, in bytes.
const VOLUME_DATA_MAX: u64 = 64 << 10;
/// kubelet's name for the folder of CSI volumes in a pod.
const CSI_VOLUMES: &str = "kubernetes.io~csi";
/// kubelet's name for the folder of a CSI volume in which it is shown.
const TARGET: &str = "mount";
/// kubelet's name for the folder of a pod's emptyDirs.
const EMPTY_DIRS: &str = "kubernetes.io~empty-dir";
/// Mounts on top of each other that are taken away at once.
const STACKED_MAX: usize = 64;

/// A folder below which paths may lie.
struct Root {
    path: PathBuf,
    folder: OwnedFd,
}

/// The folders of a mounter.
pub(super) struct Roots {
    sessions: Root,
    targets: Vec<Root>,
}

/// A directory below a root: its parent, open, and its name there.
pub(super) struct Place {
    parent: OwnedFd,
    name: PathBuf,
}

impl Root {
    fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let path = path.canonicalize()?;
        let folder = rustix::fs::openat(CWD, &path, FOLDER, Mode::empty())?;
        Ok(Self { path, folder })
    }

    fn place(&self, relative: &Path) -> io::Result<Place> {
        let name = relative.file_name().ok_or(Errno::INVAL)?.into();
        let parent = relative.parent().unwrap_or(Path::new(""));
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let parent = rustix::fs::openat2(&self.folder, parent, FOLDER, Mode::empty(), BENEATH)?;
        Ok(Place { parent, name })
    }
}

impl Roots {
    /// Opens the folders, making those that are not there.
    pub(super) fn open(sessions: &Path, targets: &[PathBuf]) -> io::Result<Self> {
        let targets = targets.iter().map(|path| Root::open(path)).collect::<io::Result<_>>()?;
        Ok(Self { sessions: Root::open(sessions)?, targets })
    }

    /// The place of a session's mount.
    pub(super) fn session(&self, id: &str) -> io::Result<Place> {
        let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if id.is_empty() || id.len() > 64 || !id.chars().all(hex) {
            return Err(refused(format!("{id:?} is no session")));
        }
        self.sessions.place(Path::new(id))
    }

    /// The place of a target: [`Roots::is_target`].
    pub(super) fn target(&self, path: &Path) -> io::Result<Place> {
        match self.below(path) {
            Some((root, relative)) => root.place(relative),
            None => Err(refused(format!(
                "{} is no target of kubelet's, which is \
                 pods/UID/volumes/{CSI_VOLUMES}/VOLUME/{TARGET}",
                path.display()
            ))),
        }
    }

    /// Whether kubelet has a pod of this uid.
    pub(super) fn has_pod(&self, uid: &str) -> bool {
        self.has_folder(Path::new(uid))
    }

    /// Whether a pod uses an emptyDir of this name.
    pub(super) fn has_empty_dir(&self, uid: &str, name: &str) -> bool {
        self.has_folder(&Path::new(uid).join("volumes").join(EMPTY_DIRS).join(name))
    }

    fn has_folder(&self, relative: &Path) -> bool {
        let open = |root: &Root| {
            rustix::fs::openat2(&root.folder, relative, FOLDER, Mode::empty(), BENEATH)
        };
        self.targets.iter().any(|root| open(root).is_ok())
    }

    /// Whether a path has the form of kubelet's targets,
    /// `<pods>/<pod uid>/volumes/kubernetes.io~csi/<volume>/mount` (pkg/volume/csi).
    pub(super) fn is_target(&self, path: &Path) -> bool {
        self.below(path).is_some()
    }

    fn below<'a>(&self, path: &'a Path) -> Option<(&Root, &'a Path)> {
        let root = self.targets.iter().find(|root| path.starts_with(&root.path))?;
        let relative = path.strip_prefix(&root.path).ok()?;
        let parts: Option<Vec<&str>> = relative
            .components()
            .map(|part| match part {
                Component::Normal(part) => part.to_str(),
                _ => None,
            })
            .collect();
        let is_plain =
            |part: &str| part.len() <= 255 && !part.chars().any(|c| c.is_control() || c == '\\');
        let is_uid = |part: &str| part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        match *parts?.as_slice() {
            [pod, "volumes", CSI_VOLUMES, volume, TARGET] if is_uid(pod) && is_plain(volume) => {
                Some((root, relative))
            }
            _ => None,
        }
    }
}

fn refused(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

/// The part of kubelet's file that is asked for.
#[derive(Deserialize)]
struct VolumeData {
    #[serde(rename = "driverName")]
    driver: String,
}

impl Place {
    /// Makes the directory, where it is not there; nothing above it.
    pub(super) fn make(&self) -> io::Result<()> {
        match rustix::fs::mkdirat(&self.parent, &self.name, Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Checks that kubelet has made this target for our driver.
    ///
    /// # Errors
    /// `PermissionDenied` where it has not, or says nothing.
    pub(super) fn check_provenance(&self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::fs::openat2(&self.parent, VOLUME_DATA, flags, Mode::empty(), BENEATH);
        let file = match opened {
            Ok(file) => File::from(file),
            Err(error) => return Err(refused(format!("kubelet's {VOLUME_DATA}: {error}"))),
        };
        let mut text = Vec::new();
        file.take(VOLUME_DATA_MAX).read_to_end(&mut text)?;
        let data: VolumeData = serde_json::from_slice(&text)
            .map_err(|error| refused(format!("kubelet's {VOLUME_DATA}: {error}")))?;
        match data.driver == DRIVER {
            true => Ok(()),
            false => Err(refused(format!("this target is of the driver {:?}", data.driver))),
        }
    }

    /// Opens what is there now: a mount's root, where something is mounted.
    pub(super) fn folder(&self) -> io::Result<OwnedFd> {
        let resolve = BENEATH.difference(ResolveFlags::NO_XDEV);
        Ok(rustix::fs::openat2(&self.parent, &self.name, FOLDER, Mode::empty(), resolve)?)
    }

    /// A path by which mount(2) finds an open folder, whatever happens to its names.
    pub(super) fn path_of(folder: &OwnedFd) -> String {
        format!("/proc/self/fd/{}", folder.as_raw_fd())
    }

    /// What is mounted here; `None` where nothing is, or there is no such directory.
    ///
    /// # Errors
    /// What looking reports.
    pub(super) fn mounted(&self) -> io::Result<Option<MountEntry>> {
        let folder = match self.folder() {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if mount::mount_id(folder.as_fd())? == mount::mount_id(self.parent.as_fd())? {
            return Ok(None);
        }
        mount::mount_of(folder.as_fd())
    }

    /// Shows the mount here whose root is `from`. No name is asked where that is, and nothing that is
    /// mounted here is covered.
    ///
    /// # Errors
    /// `AlreadyExists` where something is mounted; what the system reports.
    pub(super) fn show(&self, from: &OwnedFd, read_only: bool) -> io::Result<()> {
        if let Some(entry) = self.mounted()? {
            let text = format!("{} is mounted there already", entry.source);
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let target = self.folder()?;
        let clone = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rustix::mount::open_tree(from, "", clone)?;
        let by_descriptors =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", &target, "", by_descriptors)?;
        if read_only {
            let flags = MountFlags::BIND
                | MountFlags::RDONLY
                | MountFlags::NOSUID
                | MountFlags::NODEV
                | MountFlags::NOATIME;
            if let Err(error) = rustix::mount::mount_remount(Self::path_of(&tree), flags, "") {
                drop(tree);
                let _ = self.unmount();
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Ends the connection of the FUSE mount here: whoever waits for it gets an error.
    pub(super) fn abort(&self) {
        if self.mounted().is_ok_and(|mounted| mounted.is_some_and(|entry| entry.is_ours())) {
            // It says EBUSY where somebody is in it; the connection has ended then, too.
            let flags = UnmountFlags::NOFOLLOW | UnmountFlags::FORCE;
            let _ = rustix::mount::unmount(self.path(), flags);
        }
    }

    /// Unmounts what of ours is mounted here, one on top of the other.
    ///
    /// # Errors
    /// `PermissionDenied` where something else is mounted; what the system reports.
    pub(super) fn clear(&self) -> io::Result<()> {
        for _ in 0..STACKED_MAX {
            match self.mounted()? {
                None => return Ok(()),
                Some(entry) if entry.is_ours() => self.unmount()?,
                Some(entry) => {
                    let text = format!("a {} is mounted there, which is not ours", entry.fs_type);
                    return Err(refused(text));
                }
            }
        }
        Err(io::Error::other(format!("more than {STACKED_MAX} mounts on one folder")))
    }

    fn unmount(&self) -> io::Result<()> {
        let nofollow = UnmountFlags::NOFOLLOW;
        match rustix::mount::unmount(self.path(), nofollow) {
            // Somebody is in it: it ends with the last of them.
            Err(Errno::BUSY) => {
                Ok(rustix::mount::unmount(self.path(), nofollow | UnmountFlags::DETACH)?)
            }
            // Taken away meanwhile.
            Err(Errno::INVAL) => Ok(()),
            other => Ok(other?),
        }
    }

    fn path(&self) -> PathBuf {
        Path::new(&Self::path_of(&self.parent)).join(&self.name)
    }

    /// Removes the empty directory.
    pub(super) fn remove(&self) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;
