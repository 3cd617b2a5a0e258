//! One cache file: written and read past the page cache, so that a byte is in RAM once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, OFlags};

use crate::buffers::{ALIGN, Block, Buffer};
use crate::model::blocks::BLOCK;

/// Most blocks in one write.
const IOV_MAX: usize = 64;

/// An open cache file.
pub struct CacheFile {
    file: File,
    path: PathBuf,
    size: u64,
    /// Whether O_DIRECT works here; where it does not, pages are dropped after use.
    direct: bool,
}

impl CacheFile {
    /// Makes a new sparse file of `size` bytes; one of that name from before is emptied.
    ///
    /// # Errors
    /// What open, mkdir or ftruncate report.
    pub fn create(path: &Path, size: u64) -> io::Result<Self> {
        let open = |path: &Path| Self::open_with(path, OFlags::CREATE | OFlags::TRUNC);
        let (file, direct) = match open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder)?;
                }
                open(path)?
            }
            other => other?,
        };
        file.set_len(size)?;
        Ok(Self { file, path: path.to_owned(), size, direct })
    }

    /// Opens a file that was made before.
    ///
    /// # Errors
    /// What open reports; `InvalidData` for one of another size.
    pub fn open(path: &Path, size: u64) -> io::Result<Self> {
        let (file, direct) = Self::open_with(path, OFlags::empty())?;
        let len = file.metadata()?.len();
        if len != size {
            let text = format!("cache file has {len} bytes instead of {size}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Self { file, path: path.to_owned(), size, direct })
    }

    fn open_with(path: &Path, extra: OFlags) -> io::Result<(File, bool)> {
        let open = |flags: OFlags| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o600);
            // The flags are bits of a C int.
            options.custom_flags((flags | OFlags::NOFOLLOW).bits() as i32);
            options.create(extra.contains(OFlags::CREATE));
            options.truncate(extra.contains(OFlags::TRUNC)).open(path)
        };
        match open(OFlags::DIRECT) {
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                Ok((open(OFlags::empty())?, false))
            }
            other => Ok((other?, true)),
        }
    }

    /// Opens the file once more as the kernel is to read it for a pod: through the page cache.
    ///
    /// # Errors
    /// What open reports; `NotFound` when the file was evicted.
    pub fn reopen_for_passthrough(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    /// Writes consecutive blocks, the first of which has number `first`.
    ///
    /// # Errors
    /// What pwritev reports: no space, a failing disk.
    pub fn write_blocks(&self, first: u32, blocks: &[Block]) -> io::Result<()> {
        let mut offset = u64::from(first) * BLOCK;
        for group in blocks.chunks(IOV_MAX) {
            let slices: Vec<IoSlice<'_>> = group.iter().map(|b| IoSlice::new(b.padded())).collect();
            offset = self.write_slices(slices, offset)?;
        }
        // The padding of the last block went beyond the end.
        if offset > self.size {
            self.file.set_len(self.size)?;
        }
        if !self.direct {
            let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
        }
        Ok(())
    }

    fn write_slices(&self, mut slices: Vec<IoSlice<'_>>, mut offset: u64) -> io::Result<u64> {
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            match rustix::io::pwritev(&self.file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    IoSlice::advance_slices(&mut rest, written);
                    offset += written as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(offset)
    }

    /// Fills `buffer` from the block `first` on.
    ///
    /// # Errors
    /// What pread reports; `UnexpectedEof` when the file is shorter.
    pub fn read_run(&self, first: u32, buffer: &mut Buffer) -> io::Result<()> {
        let offset = u64::from(first) * BLOCK;
        let wanted = buffer.bytes_mut().len();
        let mut done = 0;
        while done < wanted {
            let target = &mut buffer.padded_mut()[done..];
            match rustix::io::pread(&self.file, target, offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            // O_DIRECT goes on only at aligned offsets; anything else was the end of the file.
            if done < wanted && !done.is_multiple_of(ALIGN) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if !self.direct {
            let len = std::num::NonZeroU64::new(wanted as u64);
            let _ = rustix::fs::fadvise(&self.file, offset, len, Advice::DontNeed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::Buffers;

    fn block(buffers: &std::sync::Arc<Buffers>, byte: u8, len: usize) -> Block {
        let mut buffer = buffers.try_share(len).unwrap().buffer(len);
        buffer.bytes_mut().fill(byte);
        buffer.freeze().remove(0)
    }

    #[test]
    fn blocks_come_back_and_the_size_stays_exact() {
        let buffers = Buffers::new(1 << 24);
        // On disk, where O_DIRECT works, and on tmpfs.
        for dir in [tempfile::tempdir_in("/var/tmp").unwrap(), tempfile::tempdir().unwrap()] {
            let path = dir.path().join("ab/file");
            let size = 2 * BLOCK + 100;
            let file = CacheFile::create(&path, size).unwrap();
            let blocks = [block(&buffers, 2, BLOCK as usize), block(&buffers, 3, 100)];
            file.write_blocks(1, &blocks).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len(), size);
            let file = CacheFile::open(&path, size).unwrap();
            let mut buffer = buffers.try_share(100).unwrap().buffer(100);
            file.read_run(2, &mut buffer).unwrap();
            assert_eq!(buffer.bytes_mut(), [3; 100]);
            assert!(CacheFile::open(&path, size + 1).is_err());
        }
    }
}
