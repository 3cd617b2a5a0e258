//! Which files the kernel may read by itself. It opens a backing file again with the flags of the
//! reader and the rights of whoever registered it (fs/fuse/backing.c), so it is given a file that is
//! opened here, by a name that the kernel knows and below a folder that is the mounter's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

/// Below a cache folder: its files of versions (`docs/cache-format.md`).
const OBJECTS: &str = "objects";

/// The folders of the node's cache.
pub(super) struct Backing {
    folders: Vec<PathBuf>,
}

impl Backing {
    pub(super) fn new(folders: &[PathBuf]) -> Self {
        Self { folders: folders.to_vec() }
    }

    /// The file that another descriptor is of, opened for reading: a regular file of our user among
    /// the versions in a cache folder.
    ///
    /// # Errors
    /// `PermissionDenied` where it is none.
    pub(super) fn open(&self, theirs: &OwnedFd) -> io::Result<OwnedFd> {
        let opened = object_name(theirs).and_then(|name| {
            let wanted = rustix::fs::fstat(theirs).ok()?;
            let is_it = |file: &OwnedFd| {
                let stat = rustix::fs::fstat(file);
                stat.is_ok_and(|stat| {
                    (stat.st_dev, stat.st_ino) == (wanted.st_dev, wanted.st_ino)
                        && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                        && stat.st_uid == rustix::process::geteuid().as_raw()
                })
            };
            // Looked up each time: a disk may be mounted there later.
            self.folders.iter().filter_map(|folder| open_below(folder, &name).ok()).find(is_it)
        });
        opened.ok_or_else(|| {
            let folders: Vec<_> = self.folders.iter().map(|folder| folder.display()).collect();
            let text =
                format!("a backing file must be of a version in a cache folder: {folders:?}");
            io::Error::new(io::ErrorKind::PermissionDenied, text)
        })
    }

    /// Says which of the folders are not there.
    pub(super) fn missing(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().map(PathBuf::as_path).filter(|folder| !folder.is_dir())
    }
}

/// What a file is called below a cache folder, wherever that is for whoever opened it.
fn object_name(file: &OwnedFd) -> Option<PathBuf> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = rustix::fs::readlinkat(CWD, link, Vec::new()).ok()?;
    let path = Path::new(std::ffi::OsStr::from_bytes(link.as_bytes()));
    let mut last = path.components().rev();
    let (name, shard, objects) = (last.next()?, last.next()?, last.next()?);
    let is_name = |part: &Component<'_>| matches!(part, Component::Normal(_));
    let is_version = objects.as_os_str() == OBJECTS && is_name(&shard) && is_name(&name);
    is_version.then(|| [objects, shard, name].iter().collect())
}

fn open_below(folder: &Path, name: &Path) -> rustix::io::Result<OwnedFd> {
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, path, Mode::empty())?;
    // Not waited for, whatever it is.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(&folder, name, flags, Mode::empty(), below)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    #[test]
    fn only_files_of_the_cache_that_nobody_can_write_are_registered() {
        let dir = tempfile::tempdir().unwrap();
        let shard = dir.path().join("objects/0a");
        std::fs::create_dir_all(&shard).unwrap();
        let put = |path: PathBuf| {
            std::fs::write(&path, "bytes").unwrap();
            path
        };
        let path = put(shard.join("000000000000000a"));
        let backing = Backing::new(&["/nowhere".into(), dir.path().to_owned()]);
        let open =
            |path: &Path| backing.open(&File::options().read(true).open(path).unwrap().into());
        open(&path).unwrap();
        // Whatever they can do with theirs, it is opened for reading.
        let writable = File::options().read(true).write(true).open(&path).unwrap();
        let opened = backing.open(&writable.into()).unwrap();
        let mode = rustix::fs::fcntl_getfl(&opened).unwrap() & OFlags::ACCMODE;
        assert_eq!(mode, OFlags::RDONLY);
        // On the cache's disk, and not a version; a version of no cache; a folder; no file.
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(elsewhere.path().join("objects/0a")).unwrap();
        let of_none = put(elsewhere.path().join("objects/0a/000000000000000a"));
        std::fs::create_dir(shard.join("folder")).unwrap();
        let index = put(dir.path().join("index.redb"));
        for other in [&index, &of_none, &shard.join("folder"), Path::new("/proc/version")] {
            assert!(open(other).is_err(), "{other:?}");
        }
        // What has the name is another file by now.
        let before = File::open(&path).unwrap().into();
        std::fs::rename(&index, &path).unwrap();
        assert!(backing.open(&before).is_err());
        open(&path).unwrap();
        // The name leads out of the folder.
        std::fs::remove_dir_all(&shard).unwrap();
        symlink(elsewhere.path().join("objects/0a"), &shard).unwrap();
        assert!(open(&of_none).is_err());
        std::fs::remove_file(&shard).unwrap();
        std::fs::create_dir(&shard).unwrap();
        let theirs = put(shard.join("theirs"));
        open(&theirs).unwrap();
        if chown(&theirs, Some(1000), None).is_ok() {
            assert!(open(&theirs).is_err());
        }
    }
}
