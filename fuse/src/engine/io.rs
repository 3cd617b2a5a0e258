//! Reading, writing and storing through open handles.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use rustix::io::Errno;

use super::handles::{Handle, ReadHandle, WriteHandle};
use super::owner;
use super::session::Session;
use crate::read::Purpose;
use crate::write::WriteError;
use crate::write::staging::Staging;

/// A read that must wait for the origin.
pub struct PendingRead {
    handle: Arc<Handle>,
    offset: u64,
    len: u64,
    extra: u64,
    then: std::ops::Range<u64>,
}

/// What a read came to without waiting.
pub enum ReadNow {
    /// The bytes.
    Data(Bytes),
    /// The origin must be asked.
    Wait(PendingRead),
}

impl Session {
    /// Reads what is here; may read the cache disk.
    ///
    /// # Errors
    /// The errno for the process.
    pub fn read_now(self: &Arc<Self>, fh: u64, offset: u64, len: u64) -> Result<ReadNow, Errno> {
        let handle = self.handles.get(fh).ok_or(Errno::BADF)?;
        let open = match &*handle {
            Handle::Write(open) => return read_staging(&open.staging, offset, len),
            Handle::Read(open) => open,
            Handle::Dir(_) => return Err(Errno::ISDIR),
        };
        if let Some(staging) = self.modes.staging(open.node.ino) {
            return read_staging(&staging, offset, len);
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
        match self.engine.reader.read_now(&source.version, offset, len, Purpose::Serve) {
            Some(data) => {
                if !then.is_empty() {
                    self.engine.reader.prefetch(source, then);
                }
                self.served(open, data.len() as u64);
                Ok(ReadNow::Data(data))
            }
            None => {
                let handle = handle.clone();
                Ok(ReadNow::Wait(PendingRead { handle, offset, len, extra, then }))
            }
        }
    }

    /// Reads what must be fetched.
    ///
    /// # Errors
    /// The errno for the process.
    pub async fn read(self: &Arc<Self>, read: PendingRead) -> Result<Bytes, Errno> {
        let Handle::Read(open) = &*read.handle else { return Err(Errno::BADF) };
        let Some(source) = &open.source else { return Err(Errno::STALE) };
        let reader = &self.engine.reader;
        let data =
            reader.read(source, read.offset, read.len, read.extra, read.then, Purpose::Serve);
        let data = data.await;
        let data = data.map_err(|error| {
            tracing::warn!(key = %source.version.key.key, offset = read.offset, %error, "read failed");
            error.errno()
        })?;
        self.served(open, data.len() as u64);
        Ok(data)
    }

    /// A file of which half was read is likely to be read again: its rest is fetched, so that
    /// its next open is passthrough.
    fn served(&self, open: &ReadHandle, bytes: u64) {
        let served = open.served.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(source) = &open.source
            && served * 2 >= source.version.size()
            && served.saturating_sub(bytes) * 2 < source.version.size()
        {
            self.engine.reader.complete(source);
        }
    }

    fn writing(&self, fh: u64) -> Result<Arc<Handle>, Errno> {
        let handle = self.handles.get(fh).ok_or(Errno::BADF)?;
        match &*handle {
            Handle::Write(_) => Ok(handle),
            Handle::Read(open) if open.writable => Err(Errno::OPNOTSUPP),
            _ => Err(Errno::BADF),
        }
    }

    /// Writes into the staging file; parts that are complete leave in the background.
    ///
    /// # Errors
    /// The errno for the process: ENOSPC when the cache disk is full, EFBIG beyond S3's limit.
    pub fn write(self: &Arc<Self>, fh: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let handle = self.writing(fh)?;
        let Handle::Write(open) = &*handle else { return Err(Errno::BADF) };
        let passed = open.staging.write(offset, data).map_err(|error| {
            tracing::warn!(key = %open.node.key(), %error, "write refused");
            error.errno()
        })?;
        self.writer.send_passed(&open.staging, passed);
        Ok(u32::try_from(data.len()).unwrap_or(u32::MAX))
    }

    /// Answers one close of a descriptor: stores the file if this close is the opener's last.
    ///
    /// # Errors
    /// Why the file is not stored.
    pub async fn flush(self: &Arc<Self>, fh: u64, thread: u32) -> Result<(), Errno> {
        let Ok(handle) = self.writing(fh) else { return Ok(()) };
        let Handle::Write(open) = &*handle else { return Ok(()) };
        if !open.staging.is_dirty() || !self.is_last_close(open, thread) {
            return Ok(());
        }
        self.store(&open.staging).await
    }

    /// Stores the file as it is now.
    ///
    /// # Errors
    /// Why it is not stored.
    pub async fn fsync(self: &Arc<Self>, fh: u64) -> Result<(), Errno> {
        let Ok(handle) = self.writing(fh) else { return Ok(()) };
        let Handle::Write(open) = &*handle else { return Ok(()) };
        self.store(&open.staging).await
    }

    /// Whether a close ends the opener's writing: the opener holds no other descriptor, or it has
    /// closed before, or it is gone. Other closes are left to the opener's, or to the release.
    fn is_last_close(&self, open: &WriteHandle, thread: u32) -> bool {
        let processes = &self.engine.processes;
        let closer = processes.process_of(thread);
        if open.opener != 0 && closer != open.opener {
            return open.opener_closed.load(Ordering::Relaxed) || !processes.is_alive(open.opener);
        }
        let (_, name) = open.node.place();
        let file = owner::FileId { device: self.device(), ino: open.node.ino, name: &name };
        if closer != 0 && processes.holds(closer, &file) {
            return false;
        }
        open.opener_closed.store(true, Ordering::Relaxed);
        true
    }

    pub(super) async fn store(&self, staging: &Arc<Staging>) -> Result<(), Errno> {
        self.finishing(self.writer.commit(staging)).await.map_err(|error| error.errno())
    }
}

fn read_staging(staging: &Staging, offset: u64, len: u64) -> Result<ReadNow, Errno> {
    let data = staging.read(offset, usize::try_from(len).unwrap_or(usize::MAX));
    data.map(|data| ReadNow::Data(data.into())).map_err(|error| WriteError::Staging(error).errno())
}
