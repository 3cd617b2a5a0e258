//! A folder, by its descriptor: what is below it is reached without a symlink on the way, whatever is put
//! in the place of a name meanwhile.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::blocking::{Call, MayBlock, Unanswered};

/// How names are followed (openat2(2), Linux 5.6 and later).
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Mode bits that let others than the owner in.
pub(super) const OTHERS: u32 = 0o077;

/// A folder that is open. Names are relative to it.
pub(super) struct Folder {
    path: PathBuf,
    handle: File,
    /// Of the disk that it is on.
    unanswered: Arc<Unanswered>,
}

impl Folder {
    /// Opens the folder at `path`, which must not be a symlink.
    ///
    /// # Errors
    /// What open reports.
    pub(super) fn open(_: &MayBlock, path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        Ok(Self { path: path.to_owned(), handle, unanswered: Arc::default() })
    }

    /// Where it was when it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its descriptor.
    pub(super) fn handle(&self) -> &File {
        &self.handle
    }

    /// What is asked of its disk and not answered yet.
    pub(super) fn unanswered(&self) -> &Arc<Unanswered> {
        &self.unanswered
    }

    /// A call of its disk begins.
    pub(super) fn call(&self) -> Call<'_> {
        self.unanswered.call()
    }

    /// The name of what is at `path`, below it.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is not below it.
    pub(super) fn name_of<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        path.strip_prefix(&self.path)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    }

    /// Opens what has this name, or makes a file for its owner alone, as `flags` say.
    ///
    /// # Errors
    /// What openat2 reports: ELOOP where there is a symlink, also as the last part.
    pub(super) fn file(&self, _: &MayBlock, name: &Path, flags: OFlags) -> io::Result<File> {
        let mode = match flags.contains(OFlags::CREATE) {
            true => Mode::RUSR | Mode::WUSR,
            false => Mode::empty(),
        };
        let flags = flags | OFlags::CLOEXEC;
        let _call = self.call();
        let file = rustix::fs::openat2(&self.handle, name, flags, mode, BENEATH);
        file.map(File::from).map_err(|error| self.explain(name, error))
    }

    /// Opens, or makes, a file that is for its owner alone.
    ///
    /// # Errors
    /// What openat2 or fchmod report.
    pub(super) fn private(&self, may: &MayBlock, name: &Path) -> io::Result<File> {
        let file = self.file(may, name, OFlags::RDWR | OFlags::CREATE)?;
        let mode = file.metadata()?.mode();
        if mode & OTHERS != 0 {
            file.set_permissions(fs::Permissions::from_mode(mode & 0o7700))?;
        }
        Ok(file)
    }

    /// Opens a folder below it.
    ///
    /// # Errors
    /// What openat2 reports.
    pub(super) fn folder(&self, may: &MayBlock, name: &Path) -> io::Result<Self> {
        let handle = self.file(may, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Self { path: self.path.join(name), handle, unanswered: self.unanswered.clone() })
    }

    /// Makes a folder for its owner alone, if it is not there.
    ///
    /// # Errors
    /// What mkdirat reports.
    pub(super) fn make(&self, may: &MayBlock, name: &Path) -> io::Result<()> {
        self.at(may, name, |parent, leaf| match rustix::fs::mkdirat(parent, leaf, Mode::RWXU) {
            Err(Errno::EXIST) => Ok(()),
            made => made,
        })
    }

    /// What is known of what has this name; of a symlink nothing.
    ///
    /// # Errors
    /// What openat2 reports.
    pub(super) fn metadata(&self, may: &MayBlock, name: &Path) -> io::Result<Metadata> {
        self.file(may, name, OFlags::PATH)?.metadata()
    }

    /// Removes a file.
    ///
    /// # Errors
    /// What unlinkat reports.
    pub(super) fn remove(&self, may: &MayBlock, name: &Path) -> io::Result<()> {
        self.at(may, name, |parent, leaf| rustix::fs::unlinkat(parent, leaf, AtFlags::empty()))
    }

    /// Gives a file another name, in the place of what has that.
    ///
    /// # Errors
    /// What renameat reports.
    pub(super) fn rename(&self, may: &MayBlock, from: &Path, to: &Path) -> io::Result<()> {
        self.at(may, from, |parent, leaf| {
            let (to_parent, to_leaf) = self.parent_of(may, to)?;
            rustix::fs::renameat(parent, leaf, to_parent.as_fd(), to_leaf)
        })
    }

    /// Gives an open file another name.
    ///
    /// # Errors
    /// What linkat reports; `NotFound` for one that has no name any more.
    pub(super) fn link(&self, may: &MayBlock, file: &File, name: &Path) -> io::Result<()> {
        // By its descriptor, since its name may be another file's by now (open(2), O_TMPFILE, has
        // this way of linkat without CAP_DAC_READ_SEARCH).
        let this = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.at(may, name, |parent, leaf| {
            rustix::fs::linkat(CWD, this.as_str(), parent, leaf, AtFlags::SYMLINK_FOLLOW)
        })
    }

    /// The names in a folder below it; `.` is its own.
    ///
    /// # Errors
    /// What openat2 or getdents report.
    pub(super) fn names(&self, may: &MayBlock, name: &Path) -> io::Result<Vec<OsString>> {
        let folder = self.file(may, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        let mut call = self.call();
        for entry in rustix::fs::Dir::new(folder)? {
            let entry = entry?;
            call.next();
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Does something to a name in its folder.
    fn at<T>(
        &self,
        may: &MayBlock,
        name: &Path,
        act: impl FnOnce(&File, &OsStr) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let _call = self.call();
        let (parent, leaf) =
            self.parent_of(may, name).map_err(|error| self.explain(name, error))?;
        Ok(act(&parent, leaf)?)
    }

    fn parent_of<'a>(&self, _: &MayBlock, name: &'a Path) -> rustix::io::Result<(File, &'a OsStr)> {
        let leaf = name.file_name().ok_or(Errno::INVAL)?;
        let parent =
            name.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::openat2(&self.handle, parent, flags, Mode::empty(), BENEATH)?;
        Ok((parent.into(), leaf))
    }

    /// An error of the system; what a symlink is to us is told by it alone, so that callers know it.
    fn explain(&self, name: &Path, error: Errno) -> io::Error {
        if error == Errno::LOOP {
            let path = self.path.join(name);
            tracing::warn!(path = %path.display(), "a symlink in the cache directory is not followed: remove it");
        }
        error.into()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::blocking::MAY;

    #[test]
    fn no_symlink_leads_anywhere() {
        let temp = tempfile::tempdir().unwrap();
        let (root, other) = (temp.path().join("root"), temp.path().join("other"));
        fs::create_dir_all(root.join("real")).unwrap();
        fs::create_dir(&other).unwrap();
        for name in ["file", "theirs"] {
            fs::write(other.join(name), "theirs").unwrap();
        }
        symlink(&other, root.join("planted")).unwrap();
        symlink(other.join("file"), root.join("real/file")).unwrap();
        symlink(&root, temp.path().join("link")).unwrap();
        assert!(Folder::open(MAY, &temp.path().join("link")).is_err());
        let folder = Folder::open(MAY, &root).unwrap();
        let is_loop = |error: io::Error| error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
        let new = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        for name in ["planted/file", "real/file", "planted/new"].map(Path::new) {
            assert!(is_loop(folder.file(MAY, name, OFlags::RDWR).unwrap_err()), "{name:?}");
            assert!(is_loop(folder.private(MAY, name).unwrap_err()), "{name:?}");
            assert!(is_loop(folder.metadata(MAY, name).unwrap_err()), "{name:?}");
        }
        assert!(is_loop(folder.file(MAY, Path::new("planted/new"), new).unwrap_err()));
        assert!(is_loop(folder.make(MAY, Path::new("planted/folder")).unwrap_err()));
        assert!(is_loop(folder.names(MAY, Path::new("planted")).unwrap_err()));
        assert!(is_loop(folder.remove(MAY, Path::new("planted/file")).unwrap_err()));
        let (from, to) = (Path::new("mine"), Path::new("planted/mine"));
        let mine = folder.file(MAY, from, new).unwrap();
        assert!(is_loop(folder.rename(MAY, from, to).unwrap_err()));
        assert!(is_loop(folder.rename(MAY, Path::new("planted/file"), from).unwrap_err()));
        assert!(is_loop(folder.link(MAY, &mine, to).unwrap_err()));
        // The name itself may be given up, or another file's.
        folder.remove(MAY, Path::new("real/file")).unwrap();
        folder.rename(MAY, from, Path::new("real/file")).unwrap();
        assert_eq!(folder.names(MAY, Path::new("real")).unwrap(), ["file"]);
        assert!(folder.file(MAY, Path::new("../other/file"), OFlags::RDONLY).is_err());
        assert_eq!(fs::read_dir(&other).unwrap().count(), 2);
        assert_eq!(fs::read(other.join("file")).unwrap(), b"theirs");
    }
}
