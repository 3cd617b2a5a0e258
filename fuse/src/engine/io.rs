//! Reading, writing and storing through open handles.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use rustix::io::Errno;

use super::handles::{FileHandle, Handle, Handles, Opener};
use super::owner;
use super::session::Session;
use crate::blocking::{MayBlock, Turns, aside};
use crate::logged::LoggedName;
use crate::read::{Purpose, Source};
use crate::write::WriteError;
use crate::write::draft::Draft;

/// A read that must wait.
pub struct PendingRead {
    handle: Arc<Handle>,
    offset: u64,
    len: u64,
    extra: u64,
    then: Range<u64>,
}

impl PendingRead {
    /// Turns of the engine's threads at the disk that is to be read.
    pub fn threads(&self) -> Option<Arc<Turns>> {
        let Handle::File(open) = &*self.handle else { return None };
        match (open.inode.draft(), &open.source) {
            (Some(draft), _) => Some(draft.threads().clone()),
            (None, Some(source)) => Some(source.version.threads().clone()),
            (None, None) => None,
        }
    }
}

/// What a close is to what the opener has begun.
enum Close {
    /// The opener, or what it passed the file to, goes on.
    Other,
    /// Nobody is left who would close it.
    Last,
    /// The opener's own last.
    LastOfOpener,
}

/// What a read came to without waiting.
pub enum ReadNow {
    /// The bytes.
    Data(Bytes),
    /// The cache's disk must be read: [`Session::read_disk`].
    Disk(PendingRead),
    /// The origin must be asked: [`Session::read`].
    Origin(PendingRead),
}

impl Session {
    /// Reads what is in memory.
    ///
    /// # Errors
    /// The errno for the process.
    pub fn read_now(self: &Arc<Self>, fh: u64, offset: u64, len: u64) -> Result<ReadNow, Errno> {
        let handle = self.handles.get(fh).ok_or(Errno::BADF)?;
        let Handle::File(open) = &*handle else { return Err(Errno::ISDIR) };
        let pending =
            |extra, then| PendingRead { handle: handle.clone(), offset, len, extra, then };
        if let Some(draft) = open.inode.draft() {
            return Ok(match draft.read_now(offset, bytes_of(len)) {
                Some(data) => ReadNow::Data(data.into()),
                None => ReadNow::Disk(pending(0, 0..0)),
            });
        }
        let Some(source) = &open.source else { return Err(Errno::STALE) };
        let size = source.version.size();
        if offset >= size || len == 0 {
            return Ok(ReadNow::Data(Bytes::new()));
        }
        let (extra, then) = {
            let mut window = open.window.lock().unwrap_or_else(PoisonError::into_inner);
            let extra = window.read(offset, len);
            (extra, window.ahead(self.engine.reader.part_bytes(), size))
        };
        let reader = &self.engine.reader;
        Ok(match reader.read_now(&source.version, offset, len, Purpose::Serve) {
            Some(data) => ReadNow::Data(self.serve(open, source, data, then)),
            None if reader.is_here(&source.version, offset, len) => {
                ReadNow::Disk(pending(extra, then))
            }
            None => ReadNow::Origin(pending(extra, then)),
        })
    }

    /// Reads what is on the cache's disk.
    ///
    /// # Errors
    /// The errno for the process.
    pub fn read_disk(
        self: &Arc<Self>,
        may: &MayBlock,
        read: PendingRead,
    ) -> Result<ReadNow, Errno> {
        let Handle::File(open) = &*read.handle else { return Err(Errno::BADF) };
        if let Some(draft) = open.inode.draft() {
            let data = draft.read(may, read.offset, bytes_of(read.len));
            let data = data.map_err(|error| WriteError::Staging(error).errno())?;
            return Ok(ReadNow::Data(data.into()));
        }
        let Some(source) = &open.source else { return Err(Errno::STALE) };
        let (version, reader) = (&source.version, &self.engine.reader);
        Ok(match reader.read_disk(may, version, read.offset, read.len, Purpose::Serve) {
            Some(data) => ReadNow::Data(self.serve(open, source, data, read.then.clone())),
            None => ReadNow::Origin(read),
        })
    }

    /// Bytes that were here, for the process; what it will ask for next is fetched.
    fn serve(&self, open: &FileHandle, source: &Source, data: Bytes, then: Range<u64>) -> Bytes {
        if !then.is_empty() {
            self.engine.reader.prefetch(source, then);
        }
        self.served(open, data.len() as u64);
        data
    }

    /// Reads what must be waited for, wherever it is.
    ///
    /// # Errors
    /// The errno for the process.
    pub async fn read(self: &Arc<Self>, mut read: PendingRead) -> Result<Bytes, Errno> {
        let draft = match &*read.handle {
            Handle::File(open) => open.inode.draft(),
            Handle::Dir(_) | Handle::DirStream(_) => None,
        };
        if let Some(draft) = draft {
            read = match draft.calls().in_place(|may| self.read_disk(may, read)).await? {
                ReadNow::Data(data) => return Ok(data),
                ReadNow::Disk(read) | ReadNow::Origin(read) => read,
            };
        }
        let Handle::File(open) = &*read.handle else { return Err(Errno::BADF) };
        let Some(source) = &open.source else { return Err(Errno::STALE) };
        let reader = &self.engine.reader;
        let data =
            reader.read(source, read.offset, read.len, read.extra, read.then, Purpose::Serve);
        let data = data.await;
        let data = data.map_err(|error| {
            let (session, key) = (self.names.session(), LoggedName(&source.version.key.key));
            tracing::warn!(session, %key, offset = read.offset, %error, "read failed");
            error.errno()
        })?;
        self.served(open, data.len() as u64);
        Ok(data)
    }

    /// A file of which half was read is likely to be read again: its rest is fetched, so that
    /// its next open is passthrough.
    fn served(&self, open: &FileHandle, bytes: u64) {
        let served = open.served.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(source) = &open.source
            && served * 2 >= source.version.size()
            && served.saturating_sub(bytes) * 2 < source.version.size()
        {
            self.engine.reader.complete(source);
        }
    }

    /// Turns of the engine's threads at the disk that is written to through a handle.
    pub fn threads_of(&self, fh: u64) -> Option<Arc<Turns>> {
        let handle = self.handles.get(fh)?;
        let Handle::File(open) = &*handle else { return None };
        Some(open.inode.draft()?.threads().clone())
    }

    /// Writes into the staging file; parts that are complete leave in the background.
    ///
    /// # Errors
    /// The errno for the process: ENOSPC when the cache disk is full, EFBIG beyond S3's limit, EIO
    /// through a handle of an earlier engine.
    pub fn write(
        self: &Arc<Self>,
        may: &MayBlock,
        fh: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<u32, Errno> {
        let handle = self.handles.get(fh).ok_or_else(|| self.refuse_write(may, fh))?;
        let Handle::File(open @ FileHandle { writer: Some(_), .. }) = &*handle else {
            return Err(Errno::BADF);
        };
        let draft = open.inode.draft().ok_or(Errno::OPNOTSUPP)?;
        let passed = draft.write(may, offset, data).map_err(|error| {
            let (session, key) = (self.names.session(), draft.key());
            tracing::warn!(session, key = %LoggedName(&key), %error, "write refused");
            error.errno()
        })?;
        self.writer.send_passed(&draft, passed);
        Ok(u32::try_from(data.len()).unwrap_or(u32::MAX))
    }

    /// Answers one close of a descriptor: stores the file if this close is the opener's last.
    ///
    /// # Errors
    /// Why the file is not stored; EIO for a writer's handle that is not known: what it wrote is
    /// not stored. Where an earlier engine's record says that it is, there is no error.
    pub async fn flush(self: &Arc<Self>, fh: u64, thread: u32) -> Result<(), Errno> {
        let Some(handle) = self.handles.get(fh) else { return self.unknown(fh) };
        let Handle::File(open @ FileHandle { writer: Some(opener), .. }) = &*handle else {
            return Ok(());
        };
        match open.inode.draft() {
            Some(draft) if draft.is_dirty() && self.is_last_close(open, opener, thread).await => {
                self.store(&draft, thread).await
            }
            _ => Ok(()),
        }
    }

    /// Stores the file as it is now, whoever asks: what fsync promises is of the file, not of the
    /// descriptor.
    ///
    /// # Errors
    /// As [`Session::flush`].
    pub async fn fsync(self: &Arc<Self>, fh: u64, thread: u32) -> Result<(), Errno> {
        let Some(handle) = self.handles.get(fh) else { return self.unknown(fh) };
        let Handle::File(open) = &*handle else { return Ok(()) };
        match open.inode.draft() {
            Some(draft) => self.store(&draft, thread).await,
            None => Ok(()),
        }
    }

    /// The answer for a handle of an engine before this one. Readers have nothing to store.
    fn unknown(&self, fh: u64) -> Result<(), Errno> {
        let mount = &self.settings.names.mount;
        match !Handles::is_writer(fh) || self.engine.leftovers.is_clean(mount, fh) {
            true => Ok(()),
            false => Err(Errno::IO),
        }
    }

    /// The answer to a write through a handle that is not known.
    fn refuse_write(&self, may: &MayBlock, fh: u64) -> Errno {
        if !Handles::is_writer(fh) {
            return Errno::BADF;
        }
        // Its close must tell.
        self.engine.leftovers.forget_handle(may, &self.settings.names.mount, fh);
        Errno::IO
    }

    /// Whether a close ends the opener's writing: the opener holds no other descriptor, or it has
    /// closed before, or it is gone. Other closes are left to the opener's, or to the release.
    async fn is_last_close(&self, open: &FileHandle, opener: &Opener, thread: u32) -> bool {
        let processes = self.engine.processes.clone();
        let (device, (_, name)) = (self.device().to_owned(), open.node.place());
        let (ino, opener_is) = (open.node.ino, opener.process);
        let has_closed = opener.has_closed.load(Ordering::Relaxed);
        // It is never closed.
        let _turn = self.closes.acquire().await;
        let closes = aside(move |may| {
            let closer = processes.process_of(may, thread);
            if opener_is != 0 && closer != opener_is {
                let is_over = has_closed || !processes.is_alive(may, opener_is);
                return if is_over { Close::Last } else { Close::Other };
            }
            let file = owner::FileId { device: &device, ino, name: &name };
            let holds = closer != 0 && processes.holds(may, closer, &file);
            if holds { Close::Other } else { Close::LastOfOpener }
        });
        match closes.await {
            Close::Other => false,
            Close::Last => true,
            Close::LastOfOpener => {
                opener.has_closed.store(true, Ordering::Relaxed);
                true
            }
        }
    }

    /// Stores a file under change, in a task that goes on when nobody waits for it any more. That it
    /// failed is told to the thread that asked, if that is there to hear it.
    async fn store(self: &Arc<Self>, draft: &Arc<Draft>, thread: u32) -> Result<(), Errno> {
        let (session, draft) = (self.clone(), draft.clone());
        self.task(async move {
            let generation = draft.generation();
            let done = session.finishing(session.writer.commit(&draft)).await;
            let Err(error) = done else { return Ok(()) };
            let processes = session.engine.processes.clone();
            if !aside(move |may| processes.is_dying(may, thread)).await {
                draft.report(generation);
            }
            Err(error.errno())
        })
        .await
    }

    /// Runs work that changes the origin as a task of its own: it goes on to its end although the
    /// process that asked was answered, or is gone.
    pub(super) async fn task<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Errno>> + Send + 'static,
    ) -> Result<T, Errno> {
        self.engine.runtime.spawn(work).await.unwrap_or(Err(Errno::IO))
    }
}

fn bytes_of(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
