//! Room for the index that nobody else takes: a file that is given up when the index finds the disk
//! full.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use rustix::fs::FallocateFlags;

use super::dir::CacheDir;
use crate::blocking::MayBlock;

/// Its name.
const NAME: &str = "index.reserve";
/// Bytes kept for the index: what a batch of 256 MiB of new blocks takes, several times.
const SIZE: u64 = 4 * 1024 * 1024;

/// Takes the room, unless it is taken or the disk would be left with little more than `min_free`
/// bytes.
pub(super) fn take(may: &MayBlock, dir: &CacheDir, min_free: u64) {
    let (folder, name) = (dir.folder(), Path::new(NAME));
    let is_taken = folder.metadata(may, name).is_ok_and(|metadata| metadata.len() == SIZE);
    let free = dir.free_bytes().unwrap_or(0);
    if is_taken || free < min_free.saturating_add(2 * SIZE) {
        return;
    }
    if let Err(error) = folder.private(may, name).and_then(|file| fill(&file)) {
        tracing::debug!(%error, "no room kept for the index");
        let _ = folder.remove(may, name);
    }
}

fn fill(mut file: &File) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, SIZE) {
        Err(rustix::io::Errno::OPNOTSUPP) => {
            io::copy(&mut io::repeat(0).take(SIZE), &mut file).and_then(|_| file.flush())
        }
        done => Ok(done?),
    }
}

/// Gives the room to the index. Says whether there was any.
pub(super) fn give(may: &MayBlock, dir: &CacheDir) -> bool {
    dir.folder().remove(may, Path::new(NAME)).is_ok()
}
