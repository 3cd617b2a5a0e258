//! A disk that can be told to fail, or not to answer: a file system in memory, mounted by FUSE.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use tempfile::TempDir;

const TTL: Duration = Duration::ZERO;

/// A mounted disk; unmounted when dropped.
pub struct FailingDisk {
    failing: Arc<AtomicBool>,
    hanging: Arc<Hanging>,
    syncs: Arc<Hanging>,
    session: Option<BackgroundSession>,
    dir: TempDir,
}

impl FailingDisk {
    /// A healthy disk.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let failing: Arc<AtomicBool> = Arc::default();
        let (hanging, syncs): (Arc<Hanging>, Arc<Hanging>) = Default::default();
        let root = Node { parent: 1, name: OsString::new(), kind: Kind::Dir };
        let disk = Disk {
            failing: failing.clone(),
            hanging: hanging.clone(),
            syncs: syncs.clone(),
            state: Mutex::new(State { nodes: HashMap::from([(1, root)]), next: 2 }),
        };
        let session = fuser::spawn_mount(disk, dir.path(), &fuser::Config::default()).unwrap();
        Self { failing, hanging, syncs, session: Some(session), dir }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// From now on no file that is made, opened or renamed is answered, or each is.
    pub fn hang(&self, hangs: bool) {
        self.hanging.set(hangs);
    }

    /// From now on no fsync is answered, or each is.
    pub fn hang_syncs(&self, hangs: bool) {
        self.syncs.set(hangs);
    }

    /// From now on every read and write of a file is answered with EIO, or is not.
    pub fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Hanging {
    hangs: Mutex<bool>,
    changed: Condvar,
}

impl Hanging {
    fn set(&self, hangs: bool) {
        *self.hangs.lock().unwrap_or_else(PoisonError::into_inner) = hangs;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let hangs = self.hangs.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(hangs, |hangs| *hangs));
    }

    fn later(self: Arc<Self>, answer: impl FnOnce() + Send + 'static) {
        std::thread::spawn(move || {
            self.wait();
            answer();
        });
    }
}

impl Default for FailingDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        self.hang(false);
        self.hang_syncs(false);
        let _ = weir_fuse::adapter::mount::unmount(self.dir.path(), true);
        drop(self.session.take());
    }
}

struct Disk {
    failing: Arc<AtomicBool>,
    hanging: Arc<Hanging>,
    syncs: Arc<Hanging>,
    state: Mutex<State>,
}

struct State {
    nodes: HashMap<u64, Node>,
    next: u64,
}

struct Node {
    parent: u64,
    name: OsString,
    kind: Kind,
}

enum Kind {
    Dir,
    File(Vec<u8>),
}

impl Node {
    fn attr(&self, ino: u64) -> FileAttr {
        let (kind, size) = match &self.kind {
            Kind::Dir => (FileType::Directory, 0),
            Kind::File(bytes) => (FileType::RegularFile, bytes.len() as u64),
        };
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl State {
    fn find(&self, parent: u64, name: &OsStr) -> Option<u64> {
        let here = |(_, node): &(&u64, &Node)| node.parent == parent && node.name == name;
        self.nodes.iter().find(here).map(|(ino, _)| *ino).filter(|ino| *ino != 1)
    }

    fn make(&mut self, parent: u64, name: &OsStr, kind: Kind) -> FileAttr {
        let ino = self.next;
        self.next += 1;
        let node = Node { parent, name: name.to_owned(), kind };
        let attr = node.attr(ino);
        self.nodes.insert(ino, node);
        attr
    }
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fails(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Answers once the disk does, and others meanwhile.
    fn later(&self, answer: impl FnOnce() + Send + 'static) {
        self.hanging.clone().later(answer);
    }

    /// Removed names stay readable through open descriptors: only the name goes.
    fn remove(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.state();
        match state.find(parent.0, name) {
            Some(ino) => {
                if let Some(node) = state.nodes.get_mut(&ino) {
                    node.parent = 0;
                }
                reply.ok();
            }
            None => reply.error(Errno::ENOENT),
        }
    }
}

impl fuser::Filesystem for Disk {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.state();
        match state.find(parent.0, name) {
            Some(ino) => reply.entry(&TTL, &state.nodes[&ino].attr(ino), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.state().nodes.get(&ino.0) {
            Some(node) => reply.attr(&TTL, &node.attr(ino.0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.state();
        let Some(node) = state.nodes.get_mut(&ino.0) else { return reply.error(Errno::ENOENT) };
        if let (Kind::File(bytes), Some(size)) = (&mut node.kind, size) {
            bytes.resize(size as usize, 0);
        }
        reply.attr(&TTL, &node.attr(ino.0));
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let attr = self.state().make(parent.0, name, Kind::Dir);
        reply.entry(&TTL, &attr, Generation(0));
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let attr = self.state().make(parent.0, name, Kind::File(Vec::new()));
        self.later(move || {
            reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::empty());
        });
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.later(move || reply.opened(FileHandle(0), FopenFlags::empty()));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = self.state();
        let Some(ino) = state.find(parent.0, name) else { return reply.error(Errno::ENOENT) };
        if let Some(old) = state.find(newparent.0, newname)
            && let Some(old) = state.nodes.get_mut(&old)
        {
            old.parent = 0;
        }
        if let Some(node) = state.nodes.get_mut(&ino) {
            node.parent = newparent.0;
            node.name = newname.to_owned();
        }
        self.later(move || reply.ok());
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.state().nodes.get(&ino.0).map(|node| &node.kind) {
            _ if self.fails() => reply.error(Errno::EIO),
            Some(Kind::File(bytes)) => {
                let from = (offset as usize).min(bytes.len());
                reply.data(&bytes[from..(from + size as usize).min(bytes.len())]);
            }
            _ => reply.error(Errno::EISDIR),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.state().nodes.get_mut(&ino.0).map(|node| &mut node.kind) {
            _ if self.fails() => reply.error(Errno::EIO),
            Some(Kind::File(bytes)) => {
                let (from, to) = (offset as usize, offset as usize + data.len());
                if bytes.len() < to {
                    bytes.resize(to, 0);
                }
                bytes[from..to].copy_from_slice(data);
                reply.written(data.len() as u32);
            }
            _ => reply.error(Errno::EISDIR),
        }
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        match self.fails() {
            true => reply.error(Errno::EIO),
            false => self.syncs.clone().later(move || reply.ok()),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let state = self.state();
        let here = state.nodes.iter().filter(|(at, node)| node.parent == ino.0 && **at != 1);
        for (next, (at, node)) in (1..).zip(here).skip(offset as usize) {
            if reply.add(INodeNo(*at), next, node.attr(*at).kind, &node.name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}
