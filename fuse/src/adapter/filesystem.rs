//! FUSE requests, answered at once where everything is here, else in the background under a
//! deadline: a process that waits for FUSE cannot be killed.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BsdFileFlags, Errno as FuseErrno, FileHandle, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::io::Errno;

use super::door::{Door, Pass, RequestKind};
use super::reply::{
    self, add_name, add_shown, send_attr, send_empty, send_entry, send_open, send_opendir,
    send_written, send_xattr,
};
use super::service::Service;
use crate::blocking::MayBlock;
use crate::engine::Session;
use crate::engine::io::{PendingRead, ReadNow};
use crate::engine::names::AttrChange;
use crate::engine::open::{OpenNow, OpenRequest};

/// Longest wait for the answer to a request that brings no bytes to the origin.
const DEADLINE: Duration = Duration::from_secs(30);
/// Largest read and write, in bytes.
const REQUEST_MAX: u32 = 1 << 20;
/// Writes beyond so many bytes are copied, so that a disk that is slow to take them holds up
/// nobody else; less is taken by its page cache.
const COPIED_MIN: usize = 64 << 10;
/// Requests that may wait in the background: readahead of many files.
const BACKGROUND: u16 = 64;
/// What statfs shows: a bucket has no size, so a round number that no program runs out of.
const STATFS_BYTES: u64 = 1 << 50;
/// Unit of what statfs shows.
const STATFS_UNIT: u32 = 1 << 20;

/// A session as fuser wants it.
pub struct FuseSession {
    service: Service,
    stack_depth: u32,
}

impl FuseSession {
    /// `stack_depth` is 1, or 2 where the cache lies on a stacked file system.
    pub fn new(session: Arc<Session>, stack_depth: u32, door: Arc<Door>) -> Self {
        Self { service: Service::new(session, door), stack_depth }
    }

    fn session(&self) -> &Arc<Session> {
        &self.service.session
    }
}

fn text(name: &OsStr) -> Result<String, Errno> {
    name.to_str().map(str::to_owned).ok_or(Errno::ILSEQ)
}

fn open_request(req: &Request, flags: i32) -> OpenRequest {
    let flags = rustix::fs::OFlags::from_bits_retain(flags as u32);
    OpenRequest {
        // Who empties a file changes it, however it is opened.
        write: flags.intersects(rustix::fs::OFlags::ACCMODE | rustix::fs::OFlags::TRUNC),
        truncate: flags.contains(rustix::fs::OFlags::TRUNC),
        append: flags.contains(rustix::fs::OFlags::APPEND),
        exclusive: flags.contains(rustix::fs::OFlags::EXCL),
        thread: req.pid(),
    }
}

fn open_later(service: &Service, pass: Pass, reply: ReplyOpen, ino: INodeNo, flags: OpenRequest) {
    let (session, door) = (service.session.clone(), service.door.clone());
    let work = async move { session.open(ino.0, &flags).await };
    service.later("open", (pass, Some(DEADLINE)), work, move |r| {
        send_open(&door, reply, flags.write, r);
    });
}

fn read_later(service: &Service, pass: Pass, reply: ReplyData, pending: PendingRead) {
    let session = service.session.clone();
    let work = async move { session.read(pending).await };
    service.later("read", (pass, Some(DEADLINE)), work, move |r| match r {
        Ok(data) => reply.data(&data),
        Err(error) => reply.error(reply::errno(error)),
    });
}

impl fuser::Filesystem for FuseSession {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_MAX_PAGES,
        ];
        for flag in wanted {
            // An older kernel does without.
            let _ = config.add_capabilities(flag);
        }
        if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() {
            let _ = config.set_max_stack_depth(self.stack_depth);
        }
        if let Err(nearest) = config.set_max_write(REQUEST_MAX) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(REQUEST_MAX) {
            let _ = config.set_max_readahead(nearest);
        }
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::Ask, req, reply) else {
            return;
        };
        let start = Instant::now();
        let session = self.session().clone();
        // A name that is not UTF-8 cannot be a key.
        let Ok(name) = text(name) else { return reply.error(FuseErrno::ENOENT) };
        let asking = session.begin_asking(parent.0);
        if let Some(result) = session.lookup_now(parent.0, &name) {
            self.service.count("lookup", start);
            return send_entry(&session, reply, result);
        }
        let asked = session.clone();
        let work = async move { asked.lookup(parent.0, &name).await };
        self.service.later("lookup", (pass, Some(DEADLINE)), work, move |r| {
            send_entry(&session, reply, r);
            drop(asking);
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.session().forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let Some((_turn, _pass, reply)) = self.service.enter(RequestKind::Ask, req, reply) else {
            return;
        };
        let start = Instant::now();
        send_attr(self.session(), reply, self.session().getattr(ino.0));
        self.service.count("getattr", start);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::Change, req, reply) else {
            return;
        };
        let times = atime.is_some() || mtime.is_some();
        let change = AttrChange { size, mode, uid, gid, times, handle: fh.map(|fh| fh.0) };
        let (session, asked) = (self.session().clone(), self.session().clone());
        let work = async move { asked.setattr(ino.0, &change).await };
        self.service.later("setattr", (pass, None), work, move |r| send_attr(&session, reply, r));
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::Change, req, reply) else {
            return;
        };
        let (session, asked, name) = (self.session().clone(), self.session().clone(), text(name));
        let delivery = reply::delivery(req.unique());
        let asking = session.begin_asking(parent.0);
        let work = async move { asked.mkdir_sent(delivery, parent.0, &name?).await };
        self.service.later("mkdir", (pass, Some(DEADLINE)), work, move |r| {
            match r {
                Err(error) => reply.error(reply::errno(error)),
                shown => send_entry(&session, reply, shown),
            }
            drop(asking);
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::Change, req, reply) else {
            return;
        };
        let (session, name) = (self.session().clone(), text(name));
        let delivery = reply::delivery(req.unique());
        let asking = session.begin_asking(parent.0);
        let work = async move { session.unlink_sent(delivery, parent.0, &name?).await };
        self.service.later("unlink", (pass, Some(DEADLINE)), work, move |r| {
            send_empty(reply, r);
            drop(asking);
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::Change, req, reply) else {
            return;
        };
        let (session, name) = (self.session().clone(), text(name));
        let delivery = reply::delivery(req.unique());
        let asking = session.begin_asking(parent.0);
        let work = async move { session.rmdir_sent(delivery, parent.0, &name?).await };
        self.service.later("rmdir", (pass, Some(DEADLINE)), work, move |r| {
            send_empty(reply, r);
            drop(asking);
        });
    }

    fn symlink(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(FuseErrno::EOPNOTSUPP);
    }

    fn link(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _newparent: INodeNo,
        _newname: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(FuseErrno::EOPNOTSUPP);
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(FuseErrno::EOPNOTSUPP);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::Change, req, reply) else {
            return;
        };
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return reply.error(FuseErrno::EINVAL);
        }
        let no_replace = flags.contains(RenameFlags::RENAME_NOREPLACE);
        let (session, name, newname) = (self.session().clone(), text(name), text(newname));
        let delivery = reply::delivery(req.unique());
        let asking = [parent, newparent].map(|dir| session.begin_asking(dir.0));
        let work = async move {
            let (name, newname) = (name?, newname?);
            let (from, to) = ((parent.0, &*name), (newparent.0, &*newname));
            session.rename_sent(delivery, from, to, no_replace).await
        };
        // Copies of large objects take their time; each request to S3 has a deadline of its own.
        self.service.later("rename", (pass, None), work, move |r| {
            send_empty(reply, r);
            drop(asking);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let request = open_request(req, flags.0);
        let does = if request.write { RequestKind::OpenToChange } else { RequestKind::Open };
        let Some((_turn, pass, reply)) = self.service.enter(does, req, reply) else { return };
        let start = Instant::now();
        match self.session().open_now(&MayBlock::own_thread(), ino.0, &request) {
            OpenNow::Done(result) => {
                self.service.count("open", start);
                send_open(&self.service.door, reply, request.write, result);
            }
            OpenNow::Tell(threads) => self.service.aside(Some(threads), move |may, service| {
                match service.session.open_telling(may, ino.0, &request) {
                    OpenNow::Done(result) => service.finish(("open", start), pass, || {
                        send_open(&service.door, reply, request.write, result);
                    }),
                    OpenNow::Tell(_) | OpenNow::Ask => {
                        open_later(service, pass, reply, ino, request)
                    }
                }
            }),
            OpenNow::Ask => open_later(&self.service, pass, reply, ino, request),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::OpenToChange, req, reply)
        else {
            return;
        };
        let request = open_request(req, flags);
        let (session, door, name) = (self.session().clone(), self.service.door.clone(), text(name));
        let owned = self.session().settings().ownership;
        let ttl = self.session().settings().names.ttl.duration();
        let asking = session.begin_asking(parent.0);
        let work = async move { session.create(parent.0, &name?, &request).await };
        self.service.later("create", (pass, Some(DEADLINE)), work, move |r| {
            match r {
                Ok((attr, opened)) => {
                    door.opened(opened.fh);
                    reply.created(
                        &ttl,
                        &reply::attr(&attr, &owned),
                        Generation(0),
                        FileHandle(opened.fh),
                        FopenFlags::empty(),
                    );
                }
                Err(error) => reply.error(reply::errno(error)),
            }
            drop(asking);
        });
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::Ask, req, reply) else {
            return;
        };
        let start = Instant::now();
        match self.session().read_now(fh.0, offset, u64::from(size)) {
            Ok(ReadNow::Disk(pending)) => {
                self.service.aside(pending.threads(), move |may, service| {
                    match service.session.read_disk(may, pending) {
                        Ok(ReadNow::Disk(pending) | ReadNow::Origin(pending)) => {
                            read_later(service, pass, reply, pending);
                        }
                        Ok(ReadNow::Data(data)) => {
                            service.finish(("read", start), pass, || reply.data(&data));
                        }
                        Err(error) => {
                            service
                                .finish(("read", start), pass, || reply.error(reply::errno(error)));
                        }
                    }
                })
            }
            Ok(ReadNow::Origin(pending)) => read_later(&self.service, pass, reply, pending),
            Ok(ReadNow::Data(data)) => {
                self.service.count("read", start);
                reply.data(&data);
            }
            Err(error) => reply.error(reply::errno(error)),
        }
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::Change, req, reply) else {
            return;
        };
        let start = Instant::now();
        let copy = (data.len() > COPIED_MIN).then(|| self.service.copy(fh.0, data)).flatten();
        let Some((thread, mut copy)) = copy else {
            let may = &MayBlock::own_thread();
            return self.service.finish(("write", start), pass, || {
                send_written(reply, self.session().write(may, fh.0, offset, data));
            });
        };
        self.service.aside_on(thread, move |may, service| {
            let written = service.session.write(may, fh.0, offset, copy.bytes_mut());
            service.finish(("write", start), pass, || send_written(reply, written));
        });
    }

    fn flush(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::Change, req, reply) else {
            return;
        };
        let (session, thread) = (self.session().clone(), req.pid());
        let work = async move { session.flush(fh.0, thread).await };
        // As long as there is progress: each request to S3 has a deadline of its own.
        self.service.later("flush", (pass, None), work, move |r| send_empty(reply, r));
    }

    fn release(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::Change, req, reply) else {
            return;
        };
        self.service.door.released(fh.0);
        if self.session().release_now(fh.0) {
            return reply.ok();
        }
        let session = self.session().clone();
        let work = async move {
            session.release(fh.0).await;
            Ok(())
        };
        self.service.later("release", (pass, None), work, move |r| send_empty(reply, r));
    }

    fn fsync(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::Change, req, reply) else {
            return;
        };
        let (session, thread) = (self.session().clone(), req.pid());
        let work = async move { session.fsync(fh.0, thread).await };
        self.service.later("fsync", (pass, None), work, move |r| send_empty(reply, r));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::Open, req, reply) else {
            return;
        };
        let start = Instant::now();
        if let Some(result) = self.session().opendir_now(ino.0) {
            self.service.count("opendir", start);
            return send_opendir(&self.service.door, reply, result);
        }
        let (session, door) = (self.session().clone(), self.service.door.clone());
        let work = async move { session.opendir(ino.0).await };
        // A directory of a million keys takes a thousand requests.
        self.service.later("opendir", (pass, Some(DEADLINE * 10)), work, move |r| {
            send_opendir(&door, reply, r);
        });
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let Some((_turn, pass, mut reply)) = self.service.enter(RequestKind::Ask, req, reply)
        else {
            return;
        };
        let start = Instant::now();
        let asking = self.session().begin_asking(ino.0);
        let add = |next, name: &str, is_dir, _| add_name(&mut reply, next, name, is_dir);
        let done = self.session().readdir(fh.0, offset, false, add);
        let Ok(false) = done else {
            self.service.count("readdir", start);
            return match done {
                Ok(_) => reply.ok(),
                Err(error) => reply.error(reply::errno(error)),
            };
        };
        let session = self.session().clone();
        let work = async move { session.stream_names(fh.0, offset).await };
        self.service.later("readdir", (pass, Some(DEADLINE)), work, move |names| {
            match names {
                Ok(names) => {
                    for (next, name) in (offset + 1..).zip(&names) {
                        if !add_name(&mut reply, next, &name.name, name.is_dir) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(reply::errno(error)),
            }
            drop(asking);
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let Some((_turn, pass, mut reply)) = self.service.enter(RequestKind::Ask, req, reply)
        else {
            return;
        };
        let start = Instant::now();
        let session = self.session().clone();
        let owned = session.settings().ownership;
        let asking = session.begin_asking(ino.0);
        let done = session.readdir(fh.0, offset, true, |next, name, is_dir, shown| {
            add_shown(&mut reply, &owned, next, (name, is_dir), shown.as_ref())
        });
        let Ok(false) = done else {
            self.service.count("readdirplus", start);
            return match done {
                Ok(_) => reply.ok(),
                Err(error) => reply.error(reply::errno(error)),
            };
        };
        let asked = session.clone();
        let work = async move { asked.stream_names(fh.0, offset).await };
        self.service.later("readdirplus", (pass, Some(DEADLINE)), work, move |names| {
            match names {
                Ok(names) => {
                    for (next, name) in (offset + 1..).zip(&names) {
                        let shown = session.show_streamed(ino.0, name);
                        let told = (&*name.name, name.is_dir);
                        if !add_shown(&mut reply, &owned, next, told, shown.as_ref()) {
                            // The kernel did not get this one.
                            shown.inspect(|shown| session.forget(shown.attr.ino, 1));
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(reply::errno(error)),
            }
            drop(asking);
        });
    }

    fn releasedir(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let Some((_turn, _pass, reply)) = self.service.enter(RequestKind::Ask, req, reply) else {
            return;
        };
        self.service.door.released(fh.0);
        self.session().releasedir(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // Every change of a name is at the origin before it is answered.
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let blocks = STATFS_BYTES / u64::from(STATFS_UNIT);
        let names = u32::try_from(crate::model::key::NAME_MAX_BYTES).unwrap_or(255);
        reply.statfs(blocks, blocks, blocks, 1 << 40, 1 << 40, STATFS_UNIT, names, STATFS_UNIT);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let Some((_turn, pass, reply)) = self.service.enter(RequestKind::Ask, req, reply) else {
            return;
        };
        let start = Instant::now();
        let Ok(name) = text(name) else { return reply.error(FuseErrno::ENODATA) };
        let may = &MayBlock::own_thread();
        if let Some(result) = self.session().getxattr_now(may, ino.0, &name) {
            send_xattr(reply, size, result.map(String::into_bytes));
            return self.service.count("getxattr", start);
        }
        let session = self.session().clone();
        let work = async move { session.version_xattr(ino.0).await.map(String::into_bytes) };
        self.service
            .later("getxattr", (pass, Some(DEADLINE)), work, move |r| send_xattr(reply, size, r));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let Some((_turn, _pass, reply)) = self.service.enter(RequestKind::Ask, req, reply) else {
            return;
        };
        let mut list = Vec::new();
        for name in self.session().listxattr(ino.0) {
            list.extend_from_slice(name.as_bytes());
            list.push(0);
        }
        send_xattr(reply, size, Ok(list));
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(FuseErrno::EOPNOTSUPP);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(FuseErrno::EOPNOTSUPP);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(FuseErrno::EOPNOTSUPP);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: fuser::IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: fuser::ReplyIoctl,
    ) {
        // What every file that is no device says, as when a program asks for a terminal.
        reply.error(FuseErrno::ENOTTY);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel then copies through read and write.
        reply.error(FuseErrno::EOPNOTSUPP);
    }
}
