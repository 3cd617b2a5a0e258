//! Paths that are looked up below the folders of the mounter, never through a symlink.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

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

    /// Opens a path below this root; with `make`, folders that are not there are made.
    fn descend(&self, relative: &Path, make: bool) -> io::Result<OwnedFd> {
        let beneath =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let open =
            |path: &Path| rustix::fs::openat2(&self.folder, path, FOLDER, Mode::empty(), beneath);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        match open(relative) {
            Err(Errno::NOENT) if make => {
                let parent = self.descend(relative.parent().unwrap_or(Path::new("")), true)?;
                let name = relative.file_name().ok_or(Errno::INVAL)?;
                match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o750)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                Ok(open(relative)?)
            }
            other => Ok(other?),
        }
    }
}

impl Roots {
    /// Opens the folders, making those that are not there.
    pub(super) fn open(sessions: &Path, targets: &[PathBuf]) -> io::Result<Self> {
        let targets = targets.iter().map(|path| Root::open(path)).collect::<io::Result<_>>()?;
        Ok(Self { sessions: Root::open(sessions)?, targets })
    }

    /// The place of a session's mount.
    pub(super) fn session(&self, id: &str, make: bool) -> io::Result<Place> {
        let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if id.is_empty() || id.len() > 64 || !id.chars().all(hex) {
            return Err(refused(format!("{id:?} is no session")));
        }
        place(&self.sessions, Path::new(id), make)
    }

    /// The place of a target.
    pub(super) fn target(&self, path: &Path, make: bool) -> io::Result<Place> {
        let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
        let root = self.targets.iter().find(|root| path.starts_with(&root.path));
        match root {
            Some(root) if path.components().all(plain) => {
                let relative = path.strip_prefix(&root.path).unwrap_or(path);
                place(root, relative, make)
            }
            _ => Err(refused(format!("{} is not below a folder for targets", path.display()))),
        }
    }

    /// The session that is mounted at this path of the mount table, if it is one.
    pub(super) fn session_at(&self, path: &Path) -> Option<String> {
        let name = path.strip_prefix(&self.sessions.path).ok()?;
        (name.components().count() == 1).then(|| name.to_string_lossy().into_owned())
    }

    /// Whether a path of the mount table lies below a folder for targets.
    pub(super) fn is_target(&self, path: &Path) -> bool {
        self.targets.iter().any(|root| path.starts_with(&root.path))
    }

    /// The path of a session's mount in the mount table.
    pub(super) fn session_path(&self, id: &str) -> PathBuf {
        self.sessions.path.join(id)
    }
}

fn refused(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

fn place(root: &Root, relative: &Path, make: bool) -> io::Result<Place> {
    let name = relative.file_name().ok_or(Errno::INVAL)?;
    let parent = root.descend(relative.parent().unwrap_or(Path::new("")), make)?;
    if make {
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Place { parent, name: name.into() })
}

impl Place {
    /// Opens what is there now: a mount's root, where something is mounted.
    pub(super) fn folder(&self) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        Ok(rustix::fs::openat2(&self.parent, &self.name, FOLDER, Mode::empty(), resolve)?)
    }

    /// A path by which mount(2) finds an open folder, whatever happens to its names.
    pub(super) fn path_of(folder: &OwnedFd) -> String {
        format!("/proc/self/fd/{}", folder.as_raw_fd())
    }

    fn path(&self) -> PathBuf {
        Path::new(&Self::path_of(&self.parent)).join(&self.name)
    }

    /// Shows `from` here.
    pub(super) fn bind(&self, from: &OwnedFd, read_only: bool) -> io::Result<()> {
        let target = self.folder()?;
        rustix::mount::mount_bind(Self::path_of(from), Self::path_of(&target))?;
        if read_only {
            let shown = self.folder()?;
            let flags = MountFlags::BIND
                | MountFlags::RDONLY
                | MountFlags::NOSUID
                | MountFlags::NODEV
                | MountFlags::NOATIME;
            if let Err(error) = rustix::mount::mount_remount(Self::path_of(&shown), flags, "") {
                drop(shown);
                let _ = self.unmount(true);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Unmounts what is mounted here; EINVAL where nothing is. With `force`, the connection of a
    /// FUSE mount is ended: whoever waits for it gets an error.
    pub(super) fn unmount(&self, force: bool) -> io::Result<()> {
        let nofollow = UnmountFlags::NOFOLLOW;
        if force {
            let _ = rustix::mount::unmount(self.path(), nofollow | UnmountFlags::FORCE);
        }
        match rustix::mount::unmount(self.path(), nofollow) {
            // Somebody is in it: it ends with the last of them.
            Err(Errno::BUSY) => {
                Ok(rustix::mount::unmount(self.path(), nofollow | UnmountFlags::DETACH)?)
            }
            other => Ok(other?),
        }
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
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_the_folders_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let (sessions, pods) = (dir.path().join("sessions"), dir.path().join("pods"));
        let roots = Roots::open(&sessions, std::slice::from_ref(&pods)).unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, pods.join("link")).unwrap();
        for bad in ["/etc", "/", "outside", "pods/../outside"] {
            assert!(roots.target(&dir.path().join(bad), true).is_err(), "{bad}");
        }
        // A symlink is not followed, neither on the way nor at its end.
        assert!(roots.target(&pods.join("link/x"), true).is_err());
        assert!(roots.target(&pods.join("link"), true).unwrap().folder().is_err());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        for bad in ["", "..", "a/b", "ABC", "x"] {
            assert!(roots.session(bad, true).is_err(), "{bad}");
        }
        roots.target(&pods.join("a/b/mount"), true).unwrap().folder().unwrap();
        assert!(pods.join("a/b/mount").is_dir());
        roots.target(&pods.join("a/b/mount"), false).unwrap().remove().unwrap();
        assert!(!pods.join("a/b/mount").exists());
    }
}
