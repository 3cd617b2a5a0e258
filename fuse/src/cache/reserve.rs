//! Room for the index that nobody else takes: a file that is given up when the index finds the disk
//! full.

use std::fs::{self, File};
use std::io::{self, Read, Write};

use rustix::fs::FallocateFlags;

use super::dir::{CacheDir, open_private};
use crate::blocking::MayBlock;

/// Bytes kept for the index: what a batch of 256 MiB of new blocks takes, several times.
const SIZE: u64 = 4 * 1024 * 1024;

/// Takes the room, unless it is taken or the disk would be left with little more than `min_free`
/// bytes.
pub(super) fn take(_: &MayBlock, dir: &CacheDir, min_free: u64) {
    let path = dir.reserve_path();
    let is_taken = path.symlink_metadata().is_ok_and(|metadata| metadata.len() == SIZE);
    let free = dir.free_bytes().unwrap_or(0);
    if is_taken || free < min_free.saturating_add(2 * SIZE) {
        return;
    }
    if let Err(error) = open_private(&path).and_then(|file| fill(&file)) {
        tracing::debug!(%error, "no room kept for the index");
        let _ = fs::remove_file(&path);
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
pub(super) fn give(_: &MayBlock, dir: &CacheDir) -> bool {
    fs::remove_file(dir.reserve_path()).is_ok()
}
