//! What a test asks of a file on a mount and of the folder that caches it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Whether all of a file is on the cache's disk.
pub fn is_cached(path: &Path) -> bool {
    xattr::get(path, "user.weir.cached").unwrap().unwrap() == b"100"
}

/// The files of the versions in a cache folder.
pub fn objects(cache: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(cache.join("objects")).unwrap();
    let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

/// Bytes that those files take on the disk.
pub fn bytes_on_disk(cache: &Path) -> u64 {
    objects(cache).iter().filter_map(|path| fs::metadata(path).ok()).map(|m| m.blocks() * 512).sum()
}

/// Maps a whole file, which nobody may shorten while the mapping is read.
#[allow(unsafe_code, reason = "tests map files of mounts, which is what users do")]
pub fn map(file: &File) -> memmap2::Mmap {
    // SAFETY: the callers see to it that the file keeps its length.
    unsafe { memmap2::Mmap::map(file) }.unwrap()
}
