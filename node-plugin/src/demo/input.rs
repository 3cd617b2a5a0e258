//! Real input, made on the spot: a tree of game assets and a model.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::check_interrupt;
use super::progress::Progress;

/// Folders of the asset tree.
const FOLDERS: u32 = 50;
/// Files in each.
const FILES: u32 = 48;
const KINDS: [&str; 4] = ["textures", "meshes", "audio", "levels"];

/// A file of the input.
#[derive(Clone)]
pub(super) struct InputFile {
    /// Path below the input directory, which is its key, too.
    pub(super) name: String,
    /// Size in bytes.
    pub(super) size: u64,
    /// CRC32C of its bytes.
    pub(super) crc: u32,
}

/// Makes the tree of assets under `root`: 2,400 files of 1 to 48 KiB in 50 folders.
pub(super) fn make_assets(root: &Path) -> io::Result<Vec<InputFile>> {
    let progress = Progress::files("making game assets", u64::from(FOLDERS * FILES));
    let mut random = StdRng::seed_from_u64(7);
    let mut files = Vec::new();
    for folder in 0..FOLDERS {
        let kind = KINDS[folder as usize % KINDS.len()];
        check_interrupt()?;
        let dir = format!("assets/{kind}/pack{folder:02}");
        fs::create_dir_all(root.join(&dir))?;
        for file in 0..FILES {
            let mut bytes = vec![0; random.random_range(1024..48 * 1024)];
            random.fill_bytes(&mut bytes);
            let name = format!("{dir}/asset{file:03}.bin");
            fs::write(root.join(&name), &bytes)?;
            let crc = crc32c::crc32c(&bytes);
            files.push(InputFile { name, size: bytes.len() as u64, crc });
            progress.add(1);
        }
    }
    Ok(files)
}

/// Makes a file of `size` random bytes.
pub(super) fn make_random(path: &Path, size: u64) -> io::Result<u32> {
    let mut random = StdRng::seed_from_u64(11);
    let mut file = fs::File::create(path)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut crc, mut left) = (0, size);
    while left > 0 {
        check_interrupt()?;
        let take = left.min(buffer.len() as u64) as usize;
        random.fill_bytes(&mut buffer[..take]);
        file.write_all(&buffer[..take])?;
        crc = crc32c::crc32c_append(crc, &buffer[..take]);
        left -= take as u64;
    }
    Ok(crc)
}

/// CRC32C and size of a file.
pub(super) fn sum_file(path: &Path, mut each: impl FnMut(u64)) -> io::Result<(u64, u32)> {
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut size, mut crc) = (0, 0);
    loop {
        check_interrupt()?;
        let read = io::Read::read(&mut file, &mut buffer)?;
        if read == 0 {
            return Ok((size, crc));
        }
        crc = crc32c::crc32c_append(crc, &buffer[..read]);
        size += read as u64;
        each(read as u64);
    }
}

/// Every file below `root`, with a stat of each.
pub(super) fn walk(root: &Path) -> io::Result<u64> {
    let mut open: Vec<PathBuf> = vec![root.to_owned()];
    let mut files = 0;
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.metadata()?.is_dir() {
                open.push(entry.path());
            } else {
                files += 1;
            }
        }
    }
    Ok(files)
}
