//! One cache file: written and read past the page cache, so that a byte is in RAM once.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::folder::Folder;
use crate::blocking::MayBlock;
use crate::buffers::{ALIGN, Block, Buffer};
use crate::model::blocks::BLOCK;
use crate::page_cache;

/// Most blocks in one write.
const IOV_MAX: usize = 64;

/// An open cache file.
pub(super) struct CacheFile {
    file: File,
    folder: Arc<Folder>,
    name: PathBuf,
    size: u64,
    /// Whether O_DIRECT works here; where it does not, pages are dropped after use.
    direct: bool,
}

impl CacheFile {
    /// Makes a new sparse file of `size` bytes. What had that name loses it and is not touched:
    /// somebody may have it open, or know it by another name.
    ///
    /// # Errors
    /// What open, unlink, mkdir or ftruncate report; `AlreadyExists` when somebody else is making
    /// one at the same time.
    pub(super) fn create(
        may: &MayBlock,
        folder: &Arc<Folder>,
        name: &Path,
        size: u64,
    ) -> io::Result<Self> {
        let (file, direct) = place(may, folder, name, || {
            Self::open_with(may, folder, name, OFlags::CREATE | OFlags::EXCL)
        })?;
        file.set_len(size)?;
        Ok(Self { file, folder: folder.clone(), name: name.to_owned(), size, direct })
    }

    /// Opens a file that was made before.
    ///
    /// # Errors
    /// What open reports; `InvalidData` for one of another size.
    pub(super) fn open(
        may: &MayBlock,
        folder: &Arc<Folder>,
        name: &Path,
        size: u64,
    ) -> io::Result<Self> {
        let (file, direct) = Self::open_with(may, folder, name, OFlags::empty())?;
        let len = file.metadata()?.len();
        if len != size {
            let text = format!("cache file has {len} bytes instead of {size}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Self { file, folder: folder.clone(), name: name.to_owned(), size, direct })
    }

    fn open_with(
        may: &MayBlock,
        folder: &Folder,
        name: &Path,
        flags: OFlags,
    ) -> io::Result<(File, bool)> {
        let file = folder.file(may, name, OFlags::RDWR | flags)?;
        // Not when it is opened: where O_DIRECT is refused, open(2) leaves the new file behind.
        let flags = rustix::fs::fcntl_getfl(&file)? | OFlags::DIRECT;
        let direct = rustix::fs::fcntl_setfl(&file, flags).is_ok();
        Ok((file, direct))
    }

    /// Opens the file once more as the kernel is to read it for a pod: through the page cache.
    ///
    /// # Errors
    /// What open reports; `NotFound` when the file was evicted, or another one has its name.
    pub(super) fn reopen_for_passthrough(&self, may: &MayBlock) -> io::Result<File> {
        let file = self.folder.file(may, &self.name, OFlags::RDONLY)?;
        let (same, own) = (file.metadata()?, self.file.metadata()?);
        if (same.dev(), same.ino()) != (own.dev(), own.ino()) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(file)
    }

    /// Gives the file another name on the same file system.
    ///
    /// # Errors
    /// What link reports; `NotFound` when the file was evicted.
    pub(super) fn link(&self, may: &MayBlock, name: &Path) -> io::Result<()> {
        place(may, &self.folder, name, || self.folder.link(may, &self.file, name))
    }

    /// Puts what was written to the file onto the medium.
    ///
    /// # Errors
    /// What fdatasync reports.
    pub(super) fn sync(&self, _: &MayBlock) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Writes consecutive blocks, the first of which has number `first`.
    ///
    /// # Errors
    /// What pwritev reports: no space, a failing disk.
    pub(super) fn write_blocks(
        &self,
        _: &MayBlock,
        first: u32,
        blocks: &[Block],
    ) -> io::Result<()> {
        let mut offset = u64::from(first) * BLOCK;
        for group in blocks.chunks(IOV_MAX) {
            let _call = self.folder.call();
            let slices: Vec<IoSlice<'_>> = group.iter().map(|b| IoSlice::new(b.padded())).collect();
            offset = self.write_slices(slices, offset)?;
        }
        // The padding of the last block went beyond the end.
        if offset > self.size {
            self.file.set_len(self.size)?;
        }
        if !self.direct {
            page_cache::leave(&self.file, 0, None);
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
    pub(super) fn read_run(&self, _: &MayBlock, first: u32, buffer: &mut Buffer) -> io::Result<()> {
        let offset = u64::from(first) * BLOCK;
        let wanted = buffer.bytes_mut().len();
        let _call = self.folder.call();
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
            page_cache::leave(&self.file, offset, len);
        }
        Ok(())
    }
}

/// Puts a file in place by `act`: where that needs it, the folder is made, or what has the name
/// loses it.
///
/// # Errors
/// What mkdir, unlink or `act` report.
pub(super) fn place<T>(
    may: &MayBlock,
    folder: &Folder,
    name: &Path,
    act: impl Fn() -> io::Result<T>,
) -> io::Result<T> {
    match act() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            name.parent().map_or(Ok(()), |parent| folder.make(may, parent))?;
            act()
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            folder.remove(may, name)?;
            act()
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::blocking::MAY;
    use crate::buffers::Buffers;

    fn block(buffers: &std::sync::Arc<Buffers>, byte: u8, len: usize) -> Block {
        let mut buffer = buffers.try_share(len).unwrap().buffer(len);
        buffer.bytes_mut().fill(byte);
        buffer.freeze().remove(0)
    }

    fn folder(dir: &tempfile::TempDir) -> Arc<Folder> {
        Arc::new(Folder::open(MAY, dir.path()).unwrap())
    }

    #[test]
    fn blocks_come_back_and_the_size_stays_exact() {
        let buffers = Buffers::new(1 << 24);
        // On disk, where O_DIRECT works, and on tmpfs.
        for dir in [tempfile::tempdir_in("/var/tmp").unwrap(), tempfile::tempdir().unwrap()] {
            let (path, name) = (dir.path().join("ab/file"), Path::new("ab/file"));
            let folder = folder(&dir);
            let size = 2 * BLOCK + 100;
            let file = CacheFile::create(MAY, &folder, name, size).unwrap();
            let blocks = [block(&buffers, 2, BLOCK as usize), block(&buffers, 3, 100)];
            file.write_blocks(MAY, 1, &blocks).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len(), size);
            let file = CacheFile::open(MAY, &folder, name, size).unwrap();
            let mut buffer = buffers.try_share(100).unwrap().buffer(100);
            file.read_run(MAY, 2, &mut buffer).unwrap();
            assert_eq!(buffer.bytes_mut(), [3; 100]);
            assert!(CacheFile::open(MAY, &folder, name, size + 1).is_err());
        }
    }

    #[test]
    fn a_new_file_leaves_alone_what_had_its_name() {
        let buffers = Buffers::new(1 << 24);
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        let (folder, name) = (folder(&dir), Path::new("file"));
        let first = CacheFile::create(MAY, &folder, name, 100).unwrap();
        first.write_blocks(MAY, 0, &[block(&buffers, 7, 100)]).unwrap();
        first.link(MAY, Path::new("other")).unwrap();
        let passed = first.reopen_for_passthrough(MAY).unwrap();
        CacheFile::create(MAY, &folder, name, 100).unwrap();
        assert_eq!(fs::read(&other).unwrap(), [7; 100]);
        assert_eq!(io::read_to_string(passed).unwrap().len(), 100);
        assert_eq!(fs::read(&path).unwrap(), [0; 100]);
        // What has its name now is not what was checked.
        assert_eq!(first.reopen_for_passthrough(MAY).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn no_symlink_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, secret) = (dir.path().join("file"), dir.path().join("secret"));
        let (folder, name) = (folder(&dir), Path::new("file"));
        let file = CacheFile::create(MAY, &folder, name, 6).unwrap();
        fs::write(&secret, "secret").unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        assert!(
            file.reopen_for_passthrough(MAY).is_err()
                && CacheFile::open(MAY, &folder, name, 6).is_err()
        );
        CacheFile::create(MAY, &folder, name, 6).unwrap();
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
    }
}
