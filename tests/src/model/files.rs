//! The same calls on a session without a kernel and on a real mount.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;
use weir_fuse::blocking::in_place;
use weir_fuse::engine::Session;
use weir_fuse::engine::io::ReadNow;
use weir_fuse::engine::names::AttrChange;
use weir_fuse::engine::open::OpenRequest;

use crate::node::names_of;
use crate::runtime;

/// A descriptor of a [`Files`].
pub(super) type Fd = u64;

/// Files as a process sees them.
pub trait Files {
    /// Opens for reading.
    fn open_read(&mut self, name: &str) -> Result<Fd, Errno>;
    /// Creates or empties, and opens for writing.
    fn open_write(&mut self, name: &str) -> Result<Fd, Errno>;
    /// Reads at most `len` bytes.
    fn read(&mut self, fd: Fd, offset: u64, len: usize) -> Result<Vec<u8>, Errno>;
    /// Writes all bytes.
    fn write(&mut self, fd: Fd, offset: u64, bytes: &[u8]) -> Result<(), Errno>;
    /// Cuts or extends.
    fn truncate(&mut self, fd: Fd, size: u64) -> Result<(), Errno>;
    /// Stores.
    fn fsync(&mut self, fd: Fd) -> Result<(), Errno>;
    /// Closes.
    fn close(&mut self, fd: Fd) -> Result<(), Errno>;
    /// Removes.
    fn unlink(&mut self, name: &str) -> Result<(), Errno>;
    /// Renames.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), Errno>;
    /// Names in a directory; `None` where there is no such directory.
    fn list(&mut self, dir: &str) -> Option<Vec<String>>;
}

/// A real mount.
pub struct MountFiles {
    root: PathBuf,
    open: HashMap<Fd, File>,
    next: Fd,
    settle: Box<dyn Fn(usize)>,
}

impl MountFiles {
    /// Files below `root`. The kernel tells of a close after it has answered it, and until then the
    /// name shows what was written: `settle` waits until no more than so many are open.
    pub fn new(root: PathBuf, settle: impl Fn(usize) + 'static) -> Self {
        Self { root, open: HashMap::new(), next: 0, settle: Box::new(settle) }
    }

    fn add(&mut self, file: File) -> Fd {
        self.next += 1;
        self.open.insert(self.next, file);
        self.next
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

impl Files for MountFiles {
    fn open_read(&mut self, name: &str) -> Result<Fd, Errno> {
        File::open(self.root.join(name)).map(|file| self.add(file)).map_err(errno)
    }

    fn open_write(&mut self, name: &str) -> Result<Fd, Errno> {
        let path = self.root.join(name);
        let _ = fs::create_dir_all(path.parent().unwrap());
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(path);
        file.map(|file| self.add(file)).map_err(errno)
    }

    fn read(&mut self, fd: Fd, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let (file, mut bytes, mut done) = (&self.open[&fd], vec![0; len], 0);
        while done < len {
            match file.read_at(&mut bytes[done..], offset + done as u64).map_err(errno)? {
                0 => break,
                read => done += read,
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    fn write(&mut self, fd: Fd, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.open[&fd].write_all_at(bytes, offset).map_err(errno)
    }

    fn truncate(&mut self, fd: Fd, size: u64) -> Result<(), Errno> {
        self.open[&fd].set_len(size).map_err(errno)
    }

    fn fsync(&mut self, fd: Fd) -> Result<(), Errno> {
        self.open[&fd].sync_all().map_err(errno)
    }

    fn close(&mut self, fd: Fd) -> Result<(), Errno> {
        let file = self.open.remove(&fd).unwrap();
        let closed = crate::shell::close(file).map_err(errno);
        (self.settle)(self.open.len());
        closed
    }

    fn unlink(&mut self, name: &str) -> Result<(), Errno> {
        fs::remove_file(self.root.join(name)).map_err(errno)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        let to = self.root.join(to);
        let _ = fs::create_dir_all(to.parent().unwrap());
        fs::rename(self.root.join(from), to).map_err(errno)
    }

    fn list(&mut self, dir: &str) -> Option<Vec<String>> {
        let entries = fs::read_dir(self.root.join(dir)).ok()?;
        Some(entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect())
    }
}

/// A session without a kernel: this plays the kernel's part.
pub struct SessionFiles {
    session: Arc<Session>,
    open: HashMap<Fd, (u64, bool)>,
}

impl SessionFiles {
    /// Files of this session.
    pub fn new(session: Arc<Session>) -> Self {
        Self { session, open: HashMap::new() }
    }

    /// The inode of a path; directories on the way are made if `make`.
    fn resolve(&self, path: &str, make: bool) -> Result<(u64, String), Errno> {
        let (mut dir, mut rest) = (1, path);
        while let Some((first, below)) = rest.split_once('/') {
            dir = match runtime().block_on(self.session.lookup(dir, first)) {
                Err(Errno::NOENT) if make => {
                    runtime().block_on(self.session.mkdir(dir, first))?.attr.ino
                }
                found => found?.attr.ino,
            };
            rest = below;
        }
        Ok((dir, rest.to_owned()))
    }

    /// Like the kernel: ESTALE from open means one more lookup and one more try.
    fn open_with(&mut self, name: &str, request: OpenRequest) -> Result<Fd, Errno> {
        let (dir, name) = self.resolve(name, request.write)?;
        for again in [true, false] {
            let shown = runtime().block_on(self.session.lookup(dir, &name));
            let opened = match shown {
                Err(Errno::NOENT) if request.write => {
                    let created = self.session.create(dir, &name, &request);
                    runtime().block_on(created).map(|(attr, opened)| (attr.ino, opened))
                }
                Err(error) => Err(error),
                Ok(shown) => {
                    let ino = shown.attr.ino;
                    runtime().block_on(self.session.open(ino, &request)).map(|o| (ino, o))
                }
            };
            match opened {
                Err(Errno::STALE) if again => {}
                Err(error) => return Err(error),
                Ok((ino, opened)) => {
                    self.open.insert(opened.fh, (ino, request.write));
                    return Ok(opened.fh);
                }
            }
        }
        Err(Errno::STALE)
    }
}

impl Files for SessionFiles {
    fn open_read(&mut self, name: &str) -> Result<Fd, Errno> {
        self.open_with(name, OpenRequest::default())
    }

    fn open_write(&mut self, name: &str) -> Result<Fd, Errno> {
        let request = OpenRequest { write: true, truncate: true, ..OpenRequest::default() };
        self.open_with(name, request)
    }

    fn read(&mut self, fd: Fd, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        // As FUSE asks: pieces of at most 128 KiB, until one is short.
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let want = (len - bytes.len()).min(128 << 10) as u64;
            let data = match self.session.read_now(fd, offset + bytes.len() as u64, want)? {
                ReadNow::Data(data) => data,
                ReadNow::Disk(waits) | ReadNow::Origin(waits) => {
                    runtime().block_on(self.session.read(waits))?
                }
            };
            bytes.extend_from_slice(&data);
            if (data.len() as u64) < want {
                break;
            }
        }
        Ok(bytes)
    }

    fn write(&mut self, fd: Fd, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        in_place(|may| self.session.write(may, fd, offset, bytes))
            .map(|written| assert_eq!(written as usize, bytes.len()))
    }

    fn truncate(&mut self, fd: Fd, size: u64) -> Result<(), Errno> {
        let change = AttrChange { size: Some(size), ..AttrChange::default() };
        runtime().block_on(self.session.setattr(self.open[&fd].0, &change)).map(|_| ())
    }

    fn fsync(&mut self, fd: Fd) -> Result<(), Errno> {
        runtime().block_on(self.session.fsync(fd, 0))
    }

    fn close(&mut self, fd: Fd) -> Result<(), Errno> {
        let (_, writer) = self.open.remove(&fd).unwrap();
        let done = if writer { self.fsync(fd) } else { Ok(()) };
        runtime().block_on(self.session.release(fd));
        done
    }

    fn unlink(&mut self, name: &str) -> Result<(), Errno> {
        let (dir, name) = self.resolve(name, false)?;
        runtime().block_on(self.session.unlink(dir, &name))
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        let ((from, name), (to, new_name)) = (self.resolve(from, false)?, self.resolve(to, true)?);
        runtime().block_on(self.session.rename(from, &name, to, &new_name, false))
    }

    fn list(&mut self, dir: &str) -> Option<Vec<String>> {
        let ino = match dir {
            "" => 1,
            name => runtime().block_on(self.session.lookup(1, name)).ok()?.attr.ino,
        };
        let (fh, _) = runtime().block_on(self.session.opendir(ino)).ok()?;
        let names = names_of(&self.session, fh);
        self.session.releasedir(fh);
        Some(names.into_iter().map(|(name, _)| name).collect())
    }
}
