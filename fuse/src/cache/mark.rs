//! The tag of a cache directory: nothing is changed in one that has none and is not empty.

use std::fs::Metadata;
use std::io::{self, Read, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags};

use super::dir::INDEX;
use super::error::CacheError;
use super::folder::Folder;
use crate::blocking::MayBlock;

/// How a file of redb's begins (its design document, "Super-header").
const REDB: &[u8] = b"redb\x1a\n\xa9\r\n";

/// What marks a directory as a cache: to programs that make backups by its first line (Cache Directory
/// Tagging Specification, bford.info/cachedir), to us by the second.
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache directory of Weir's.\n";

/// Makes sure that a directory is a cache of ours, by its tag, which is the first thing that is put
/// into an empty one. An index counts as the tag: earlier releases wrote none.
pub(super) fn mark(may: &MayBlock, folder: &Folder) -> Result<(), CacheError> {
    let (root, handle) = (folder.path(), folder.handle());
    let unusable = |error: io::Error| CacheError::Unusable { dir: root.to_owned(), error };
    // Two that begin at once see an empty directory or a tag, nothing in between.
    rustix::fs::flock(handle, FlockOperation::LockExclusive).map_err(|e| unusable(e.into()))?;
    let done = mark_alone(may, folder);
    rustix::fs::flock(handle, FlockOperation::Unlock).map_err(|e| unusable(e.into()))?;
    match done.map_err(unusable)? {
        None => Ok(()),
        Some(found) => Err(CacheError::NotACache { dir: root.to_owned(), found }),
    }
}

/// The name of something else that is there; `None` once the tag is.
fn mark_alone(may: &MayBlock, folder: &Folder) -> io::Result<Option<String>> {
    let tag = Path::new("CACHEDIR.TAG");
    if beginning(may, folder, tag, TAG.len()).is_some_and(|text| text == TAG.as_bytes()) {
        return Ok(None);
    }
    // Redb's, or one that was just made.
    let index = beginning(may, folder, Path::new(INDEX), REDB.len());
    if !index.is_some_and(|text| text.is_empty() || text == REDB) {
        for name in folder.names(may, Path::new("."))? {
            if name != "lost+found" {
                return Ok(Some(name.to_string_lossy().into_owned()));
            }
        }
    }
    folder.private(may, tag)?.write_all(TAG.as_bytes())?;
    Ok(None)
}

/// The first bytes of a regular file, which is not reached through a symlink.
fn beginning(may: &MayBlock, folder: &Folder, name: &Path, len: usize) -> Option<Vec<u8>> {
    // A FIFO without a writer would be waited for.
    let file = folder.file(may, name, OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
    file.metadata().ok().filter(Metadata::is_file)?;
    let mut text = Vec::new();
    file.take(len as u64).read_to_end(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::dir::CacheDir;
    use super::*;
    use crate::blocking::MAY;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_no_cache_is_left_as_it_is() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(root.join("staging")).unwrap();
        fs::write(root.join("staging/0000000000000001"), "theirs").unwrap();
        for tag in [None, Some("Signature: 8a477f597d28d172789f06886806bc55\n# of another")] {
            if let Some(tag) = tag {
                fs::write(root.join("CACHEDIR.TAG"), tag).unwrap();
            }
            fs::write(root.join("index.redb"), "theirs").unwrap();
            let error = CacheDir::own(MAY, root, 0).map(|_| ()).unwrap_err();
            assert!(matches!(error, CacheError::NotACache { .. }), "{error}");
            fs::remove_file(root.join("index.redb")).unwrap();
            let error = CacheDir::own(MAY, root, 0).map(|_| ()).unwrap_err();
            assert!(matches!(error, CacheError::NotACache { .. }), "{error}");
            assert!(error.to_string().contains("staging") || tag.is_some(), "{error}");
        }
        assert_eq!(mode(root), 0o755);
        assert_eq!(fs::read(root.join("staging/0000000000000001")).unwrap(), b"theirs");
        assert!(!root.join("lock").exists() && !root.join("objects").exists());
    }

    #[test]
    fn an_empty_disk_and_a_cache_of_before_are_taken() {
        let temp = tempfile::tempdir().unwrap();
        let (disk, older) = (temp.path().join("disk"), temp.path().join("older"));
        fs::create_dir_all(disk.join("lost+found")).unwrap();
        drop(CacheDir::own(MAY, &older, 0).unwrap());
        fs::remove_file(older.join("CACHEDIR.TAG")).unwrap();
        fs::write(older.join("index.redb"), [REDB, b"more"].concat()).unwrap();
        for root in [&disk, &older] {
            drop(CacheDir::own(MAY, root, 0).unwrap());
            assert!(fs::read_to_string(root.join("CACHEDIR.TAG")).unwrap() == TAG);
            assert_eq!(mode(&root.join("CACHEDIR.TAG")), 0o600);
            drop(CacheDir::own(MAY, root, 0).unwrap());
        }
        // Without its tag a cache is known by nothing else.
        fs::remove_file(disk.join("CACHEDIR.TAG")).unwrap();
        let error = CacheDir::own(MAY, &disk, 0).map(|_| ()).unwrap_err();
        assert!(matches!(error, CacheError::NotACache { .. }), "{error}");
    }
}
