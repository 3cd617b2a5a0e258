//! The directory itself: its parts, its owner, its free space.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;

use super::error::CacheError;
use super::folder::{Folder, OTHERS};
use super::mark::mark;
use crate::blocking::MayBlock;

/// The least room, beyond what is to stay free, with which a cache is worth having.
const LEAST_BYTES: u64 = 16 * 1024 * 1024;

/// Folders below the root.
const FOLDERS: [&str; 3] = ["objects", "staging", LOST];

/// The index.
pub(super) const INDEX: &str = "index.redb";
/// Bytes that could not be stored at the origin.
pub(super) const LOST: &str = "lost";

/// Extension in `staging/` of what is noted of a file under change, beside its bytes, whose name is
/// their id alone.
pub const RECORD: &str = "record";
/// Of a copy of a range of them: for a moment it has a name.
pub const FROZEN: &str = "frozen";
/// Of what is noted of a directory's rename.
pub const RENAME: &str = "rename";

/// What is free on a file system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Free {
    /// Bytes.
    pub(super) bytes: u64,
    /// Inodes: files and folders more; [`u64::MAX`] where the file system does not count them.
    pub(super) inodes: u64,
}

/// An owned cache directory. Ownership ends when this is dropped or the process dies.
pub struct CacheDir {
    folder: Arc<Folder>,
    _lock: File,
}

impl CacheDir {
    /// Makes the directory where needed and takes ownership: of one that is empty, or marked as a
    /// cache of ours; another is left as it is. What is wider than mode 0700 is narrowed.
    ///
    /// # Errors
    /// [`CacheError::Unusable`], [`CacheError::Foreign`], [`CacheError::Exposed`],
    /// [`CacheError::NotACache`], [`CacheError::InUse`] or [`CacheError::Full`].
    pub fn own(may: &MayBlock, root: &Path, min_free: u64) -> Result<Self, CacheError> {
        let unusable = |error| CacheError::Unusable { dir: root.to_owned(), error };
        make_folder(root).map_err(unusable)?;
        // Links on the way are followed once.
        let root = &fs::canonicalize(root).map_err(unusable)?;
        check_parents(root)?;
        let folder = Folder::open(may, root).map_err(unusable)?;
        check_owner(&folder)?;
        mark(may, &folder)?;
        keep_private(&folder)?;
        for name in FOLDERS.map(Path::new) {
            let inner = folder.make(may, name).and_then(|()| folder.folder(may, name));
            let unusable = |error| CacheError::Unusable { dir: root.join(name), error };
            keep_private(&inner.map_err(unusable)?)?;
        }
        let lock = lock(may, &folder)?;
        let dir = Self { folder: Arc::new(folder), _lock: lock };
        let free = dir.free_bytes().map_err(unusable)?;
        // What the cache already holds is room that it can make for itself.
        let index = dir.folder.metadata(may, Path::new(INDEX));
        let empty = index.map_or(true, |metadata| metadata.len() == 0);
        if empty && free < min_free.saturating_add(LEAST_BYTES) {
            let dir = root.to_owned();
            return Err(CacheError::Full { dir, free, min_free, least: LEAST_BYTES });
        }
        Ok(dir)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// The directory, by its descriptor.
    pub(super) fn folder(&self) -> &Arc<Folder> {
        &self.folder
    }

    /// The name of the file of the version with this id.
    pub(super) fn object_name(id: u64) -> PathBuf {
        format!("objects/{:02x}/{id:016x}", id & 0xff).into()
    }

    /// That of the staging file with this id.
    pub(super) fn staging_name(id: u64) -> PathBuf {
        format!("staging/{id:016x}").into()
    }

    /// That of bytes that could not be stored at the origin after the last close.
    pub(super) fn lost_name(id: u64) -> PathBuf {
        format!("{LOST}/{id:016x}").into()
    }

    /// Bytes that an unprivileged process may still write.
    ///
    /// # Errors
    /// What statvfs reports.
    pub fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.free()?.bytes)
    }

    /// Whether it is on overlayfs. Where that cannot be found, it is not.
    pub(super) fn is_on_overlayfs(&self, _: &MayBlock) -> bool {
        /// `OVERLAYFS_SUPER_MAGIC` (include/uapi/linux/magic.h).
        const OVERLAYFS_MAGIC: u64 = 0x794c_7630;
        let stat = rustix::fs::fstatfs(self.folder.handle());
        stat.is_ok_and(|stat| stat.f_type as u64 == OVERLAYFS_MAGIC)
    }

    /// What an unprivileged process may still take.
    ///
    /// # Errors
    /// What statvfs reports.
    pub(super) fn free(&self) -> io::Result<Free> {
        let stat = rustix::fs::fstatvfs(self.folder.handle())?;
        Ok(Free {
            bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            inodes: if stat.f_files == 0 { u64::MAX } else { stat.f_favail },
        })
    }

    /// Puts everything written so far onto the medium, in one call for the whole batch.
    ///
    /// # Errors
    /// What syncfs reports: an error since the last call, too (Linux 5.8 and later).
    pub fn sync(&self, _: &MayBlock) -> io::Result<()> {
        Ok(rustix::fs::syncfs(self.folder.handle())?)
    }

    /// The files that an earlier owner was writing when it ended. What has no name of ours is somebody
    /// else's, and stays.
    pub fn staging_leftovers(&self, may: &MayBlock) -> Vec<PathBuf> {
        let staging = self.root().join("staging");
        let names = self.names(may, Path::new("staging")).into_iter();
        names.map(|name| staging.join(name)).filter(|path| is_staged(path)).collect()
    }

    /// The greatest id that any file here has; 0 where there is none. Walks all folders.
    pub fn greatest_id(&self, may: &MayBlock) -> u64 {
        let folders = self.object_folders(may).into_iter();
        let folders = folders.chain(["staging".into(), LOST.into()]);
        let files = folders.flat_map(|folder| self.names(may, &folder));
        files.filter_map(|file| id_of(Path::new(&file))).max().unwrap_or(0)
    }

    /// Removes object files for which `known` says false, up to and without id `below`.
    pub fn clear_orphans(
        &self,
        may: &MayBlock,
        below: u64,
        mut known: impl FnMut(u64) -> bool,
    ) -> u64 {
        let mut removed = 0;
        for folder in self.object_folders(may) {
            for file in self.names(may, &folder) {
                if id_of(Path::new(&file)).is_some_and(|id| id < below && !known(id)) {
                    removed += u64::from(self.folder.remove(may, &folder.join(file)).is_ok());
                }
            }
        }
        removed
    }

    fn object_folders(&self, may: &MayBlock) -> Vec<PathBuf> {
        let objects = Path::new("objects");
        self.names(may, objects).into_iter().map(|name| objects.join(name)).collect()
    }

    /// The names in one of its folders; none where that cannot be read.
    fn names(&self, may: &MayBlock, folder: &Path) -> Vec<OsString> {
        self.folder.names(may, folder).unwrap_or_default()
    }

    /// Puts an index that this program cannot use out of the way, under its name and `why`.
    ///
    /// # Errors
    /// What rename reports.
    pub fn set_index_aside(&self, may: &MayBlock, why: &str) -> io::Result<PathBuf> {
        let aside = PathBuf::from(format!("{INDEX}.{why}"));
        self.folder.rename(may, Path::new(INDEX), &aside)?;
        Ok(self.root().join(aside))
    }
}

/// The id that a file of ours is named after: sixteen hexadecimal digits, whatever its suffix.
fn id_of(path: &Path) -> Option<u64> {
    let stem = path.file_stem()?.to_str()?;
    let id = u64::from_str_radix(stem, 16).ok()?;
    (stem == format!("{id:016x}")).then_some(id)
}

/// Whether a file in `staging/` has a name of ours.
fn is_staged(path: &Path) -> bool {
    let suffix = path.extension();
    id_of(path).is_some()
        && suffix.is_none_or(|suffix| [RECORD, FROZEN, RENAME].iter().any(|of| suffix == *of))
}

/// Size in bytes of the file system on which `path` is or, if it is not there yet, its nearest
/// parent; 0 when that cannot be told.
pub fn file_system_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(existing(path))
        .map_or(0, |stat| stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Bytes that an unprivileged process may still write to the file system on which `path` is, or would
/// be; 0 when that cannot be told.
pub fn file_system_free(path: &Path) -> u64 {
    rustix::fs::statvfs(existing(path))
        .map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Most files and folders that the file system on which `path` is, or would be, can hold; 0 when it
/// does not count them, as btrfs, or that cannot be told.
pub fn file_system_inodes(path: &Path) -> u64 {
    rustix::fs::statvfs(existing(path)).map_or(0, |stat| stat.f_files)
}

/// Whether both paths are, or would be, on one file system; false when that cannot be told.
pub fn on_one_file_system(one: &Path, other: &Path) -> bool {
    let device = |path| fs::metadata(existing(path)).ok().map(|metadata| metadata.dev());
    device(one).is_some_and(|of_one| device(other) == Some(of_one))
}

/// `path` or, if it is not there yet, its nearest parent.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|part| part.exists()).unwrap_or(Path::new("/"))
}

/// Makes a folder that is for its owner alone, with its parents, if it is not there.
fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Refuses a folder of somebody else's, who could put other files in the place of ours.
fn check_owner(folder: &Folder) -> Result<(), CacheError> {
    let path = folder.path();
    let unusable = |error| CacheError::Unusable { dir: path.to_owned(), error };
    let owner = folder.handle().metadata().map_err(unusable)?.uid();
    let us = rustix::process::geteuid().as_raw();
    match owner == 0 || owner == us {
        true => Ok(()),
        false => Err(CacheError::Foreign { dir: path.to_owned(), owner, us }),
    }
}

/// Refuses a folder below one of somebody else's, who could put another in its place: what is made
/// and removed there by name would be wherever he says. One that is anybody's is warned of alone: an
/// emptyDir of Kubernetes is, and nobody else may be there.
fn check_parents(root: &Path) -> Result<(), CacheError> {
    /// As whom a user namespace shows owners that it does not know, root among them
    /// (`/proc/sys/kernel/overflowuid`).
    const UNKNOWN: u32 = 65534;
    let us = rustix::process::geteuid().as_raw();
    for parent in root.ancestors().skip(1) {
        let metadata = fs::symlink_metadata(parent)
            .map_err(|error| CacheError::Unusable { dir: root.to_owned(), error })?;
        let owner = metadata.uid();
        if ![0, us, UNKNOWN].contains(&owner) {
            let (dir, parent) = (root.to_owned(), parent.to_owned());
            return Err(CacheError::Exposed { dir, parent, owner });
        }
        // Where the sticky bit is set, a name is its owner's.
        if metadata.mode() & 0o1002 == 0o002 {
            let (dir, parent) = (root.display(), parent.display());
            tracing::warn!(%dir, %parent, "others may put another folder in the cache directory's place");
        }
    }
    Ok(())
}

/// Refuses a folder of somebody else's, and closes one that lets others in.
fn keep_private(folder: &Folder) -> Result<(), CacheError> {
    check_owner(folder)?;
    let (path, folder) = (folder.path(), folder.handle());
    let unusable = |error| CacheError::Unusable { dir: path.to_owned(), error };
    let metadata = folder.metadata().map_err(unusable)?;
    if metadata.mode() & OTHERS != 0 {
        let narrow = fs::Permissions::from_mode(metadata.mode() & 0o7700);
        if let Err(error) = folder.set_permissions(narrow) {
            // Root's, and we are not root: a volume that was given to us by its group.
            tracing::warn!(dir = %path.display(), %error, "others may enter the cache directory");
        }
    }
    Ok(())
}

fn lock(may: &MayBlock, folder: &Folder) -> Result<File, CacheError> {
    let root = folder.path();
    let unusable = |error| CacheError::Unusable { dir: root.to_owned(), error };
    let mut file = folder.private(may, Path::new("lock")).map_err(unusable)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            let write = |file: &mut File| {
                file.set_len(0)?;
                file.rewind()?;
                write!(file, "{}", std::process::id())
            };
            write(&mut file).map_err(unusable)?;
            Ok(file)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            let owner = if owner.is_empty() { "unknown".into() } else { owner };
            Err(CacheError::InUse { dir: root.to_owned(), owner })
        }
        Err(error) => Err(unusable(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocking::MAY;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o777
    }

    #[test]
    fn a_second_owner_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let first = CacheDir::own(MAY, dir.path(), 0).unwrap();
        match CacheDir::own(MAY, dir.path(), 0) {
            Err(CacheError::InUse { owner, .. }) => {
                assert_eq!(owner, std::process::id().to_string());
            }
            other => panic!("{:?}", other.map(|_| ())),
        }
        drop(first);
        assert!(CacheDir::own(MAY, dir.path(), 0).is_ok());
    }

    #[test]
    fn a_disk_without_room_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = CacheDir::own(MAY, dir.path(), u64::MAX / 2).map(|_| ()).unwrap_err();
        assert!(matches!(error, CacheError::Full { .. }), "{error}");
    }

    fn object(dir: &CacheDir, id: u64) -> PathBuf {
        dir.root().join(CacheDir::object_name(id))
    }

    #[test]
    fn only_unknown_files_below_the_mark_are_orphans() {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::own(MAY, temp.path(), 0).unwrap();
        for id in [1_u64, 2, 3] {
            let path = object(&dir, id);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        assert_eq!(dir.greatest_id(MAY), 3);
        assert_eq!(dir.clear_orphans(MAY, 3, |id| id == 1), 1);
        assert!(object(&dir, 1).exists() && object(&dir, 3).exists());
        assert!(!object(&dir, 2).exists());
        fs::write(dir.root().join(CacheDir::lost_name(0x77)).with_extension("json"), "{}").unwrap();
        assert_eq!(dir.greatest_id(MAY), 0x77);
    }

    #[test]
    fn what_lets_others_in_is_closed() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("cache");
        drop(CacheDir::own(MAY, &root, 0).unwrap());
        for path in [root.clone(), root.join("objects")] {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        fs::write(root.join("lock"), "").unwrap();
        fs::set_permissions(root.join("lock"), fs::Permissions::from_mode(0o644)).unwrap();
        let _dir = CacheDir::own(MAY, &root, 0).unwrap();
        for folder in [root.clone(), root.join("objects"), root.join("staging"), root.join("lost")]
        {
            assert_eq!(mode(&folder), 0o700, "{}", folder.display());
        }
        assert_eq!(mode(&root.join("lock")), 0o600);
    }

    #[test]
    fn names_of_others_are_none_of_ours() {
        for name in ["12.txt", "+5", "000000000000000A", "0000000000000001x", "ffff"] {
            assert_eq!(id_of(Path::new(name)), None, "{name}");
        }
        for name in ["000000000000000a", "000000000000000a.json"] {
            assert_eq!(id_of(Path::new(name)), Some(10), "{name}");
        }
    }

    #[test]
    fn what_others_have_put_among_staging_files_is_left_to_them() {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::own(MAY, temp.path(), 0).unwrap();
        let staging = temp.path().join("staging");
        let id = "00000000000000aa";
        let ours = ["", ".frozen", ".record", ".rename"].map(|suffix| format!("{id}{suffix}"));
        for name in ours.iter().map(String::as_str).chain(["notes", "x.frozen", "aa.record"]) {
            fs::write(staging.join(name), "x").unwrap();
        }
        fs::write(staging.join(format!("{id}.txt")), "x").unwrap();
        let mut found = dir.staging_leftovers(MAY);
        found.sort();
        assert_eq!(found, ours.map(|name| staging.join(name)));
    }

    #[test]
    fn a_folder_that_is_a_symlink_is_refused() {
        let (temp, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        drop(CacheDir::own(MAY, temp.path(), 0).unwrap());
        fs::remove_dir(temp.path().join("staging")).unwrap();
        std::os::unix::fs::symlink(other.path(), temp.path().join("staging")).unwrap();
        let error = CacheDir::own(MAY, temp.path(), 0).map(|_| ()).unwrap_err();
        assert!(matches!(error, CacheError::Unusable { .. }), "{error}");
    }

    #[test]
    fn somebody_elses_folder_is_refused() {
        if !rustix::process::geteuid().is_root() {
            // Only root can give a folder away.
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("cache");
        fs::create_dir(&root).unwrap();
        std::os::unix::fs::chown(&root, Some(12345), None).unwrap();
        let error = CacheDir::own(MAY, &root, 0).map(|_| ()).unwrap_err();
        assert!(matches!(error, CacheError::Foreign { owner: 12345, .. }), "{error}");
        assert!(error.to_string().contains("12345"), "{error}");
    }

    #[test]
    fn a_folder_that_somebody_else_could_replace_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let (parent, root) = (temp.path().join("home"), temp.path().join("home/sub/cache"));
        fs::create_dir_all(root.parent().unwrap()).unwrap();
        let refused = || match CacheDir::own(MAY, &root, 0) {
            Err(CacheError::Exposed { parent, .. }) => Some(parent),
            Err(error) => panic!("{error}"),
            Ok(_) => None,
        };
        fs::set_permissions(&parent, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(refused(), None);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&parent, Some(12345), None).unwrap();
            assert_eq!(refused(), Some(parent.clone()));
            // By whatever way it is reached.
            let link = temp.path().join("link");
            std::os::unix::fs::symlink(&root, &link).unwrap();
            let error = CacheDir::own(MAY, &link, 0).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("home") && error.contains("12345"), "{error}");
        }
    }
}
