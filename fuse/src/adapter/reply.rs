//! From the session's terms to FUSE's.

use std::time::{Duration, SystemTime};

use fuser::{
    FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr,
};
use rustix::io::Errno;

use super::door::Door;
use super::passthrough;
use crate::engine::Session;
use crate::engine::open::{IoMode, OpenFile};
use crate::engine::resent::Delivery;
use crate::engine::session::{Attr, Entry};
use crate::model::attr::Ownership;
use crate::namespace::dir::kernel_cache::CacheUse;

/// Preferred size of reads, in bytes: what one request carries.
const BLOCK_SIZE: u32 = 1 << 20;

pub(super) fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

/// `FUSE_UNIQUE_RESEND` (include/uapi/linux/fuse.h): set in the number of a request that is sent
/// again after `FUSE_NOTIFY_RESEND`.
const UNIQUE_RESEND: u64 = 1 << 63;

/// Whether a request was sent before, by its number.
pub(super) fn delivery(unique: fuser::RequestId) -> Delivery {
    if unique.0 & UNIQUE_RESEND == 0 { Delivery::First } else { Delivery::Again }
}

pub(super) fn attr(attr: &Attr, owned: &Ownership) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: attr.mtime,
        mtime: attr.mtime,
        ctime: attr.mtime,
        crtime: SystemTime::UNIX_EPOCH,
        kind: if attr.is_dir { FileType::Directory } else { FileType::RegularFile },
        perm: if attr.is_dir { owned.dir_mode } else { owned.file_mode },
        nlink: if attr.is_dir { 2 } else { 1 },
        uid: owned.uid,
        gid: owned.gid,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Attributes of a name that does not exist, for a negative answer.
pub(super) fn absent(owned: &Ownership) -> FileAttr {
    let nothing = Attr { ino: 0, is_dir: false, size: 0, mtime: SystemTime::UNIX_EPOCH };
    attr(&nothing, owned)
}

pub(super) fn send_entry(session: &Session, reply: ReplyEntry, result: Result<Entry, Errno>) {
    let owned = &session.settings().ownership;
    match result {
        Ok(shown) => reply.entry(&shown.ttl, &attr(&shown.attr, owned), Generation(0)),
        Err(Errno::NOENT) => {
            reply.entry(&session.negative_ttl(), &absent(owned), Generation(0));
        }
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn send_attr(session: &Session, reply: ReplyAttr, result: Result<Entry, Errno>) {
    match result {
        Ok(shown) => {
            reply.attr(&shown.ttl, &attr(&shown.attr, &session.settings().ownership));
        }
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn send_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn send_written(reply: ReplyWrite, result: Result<u32, Errno>) {
    match result {
        Ok(written) => reply.written(written),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn send_open(
    door: &Door,
    reply: ReplyOpen,
    write: bool,
    result: Result<OpenFile, Errno>,
) {
    if let Ok(OpenFile { fh, io_mode: IoMode::KeepCache | IoMode::DropCache }) = &result {
        door.opened(*fh);
    }
    // A reader has nothing to flush; so a killed one needs no answer from us.
    let flush = if write { FopenFlags::empty() } else { FopenFlags::FOPEN_NOFLUSH };
    match result {
        Ok(OpenFile { fh, io_mode: IoMode::Passthrough(backing) }) => {
            passthrough::reply_passthrough(reply, fh, flush, backing.id);
        }
        Ok(OpenFile { fh, io_mode: IoMode::KeepCache }) => {
            reply.opened(FileHandle(fh), flush | FopenFlags::FOPEN_KEEP_CACHE);
        }
        Ok(OpenFile { fh, io_mode: IoMode::DropCache }) => reply.opened(FileHandle(fh), flush),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn send_opendir(door: &Door, reply: ReplyOpen, result: Result<(u64, CacheUse), Errno>) {
    match result {
        Ok((fh, cache_use)) => {
            door.opened(fh);
            reply.opened(
                FileHandle(fh),
                match cache_use {
                    CacheUse::Keep => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
                    CacheUse::Refill => FopenFlags::FOPEN_CACHE_DIR,
                    CacheUse::Bypass => FopenFlags::empty(),
                },
            );
        }
        Err(error) => reply.error(errno(error)),
    }
}

/// Adds a name, if there is room for it.
pub(super) fn add_name(reply: &mut ReplyDirectory, next: u64, name: &str, is_dir: bool) -> bool {
    let kind = if is_dir { FileType::Directory } else { FileType::RegularFile };
    // Any number but 0 will do: nodeids are given by lookups.
    !reply.add(INodeNo(u64::MAX), next, kind, name)
}

/// Adds a name with its attributes, if there is room for it.
pub(super) fn add_shown(
    reply: &mut ReplyDirectoryPlus,
    owned: &Ownership,
    next: u64,
    (name, is_dir): (&str, bool),
    shown: Option<&Entry>,
) -> bool {
    // Nodeid 0: the kernel takes the name alone.
    let unknown = Attr { ino: u64::MAX, is_dir, size: 0, mtime: SystemTime::UNIX_EPOCH };
    let (ino, told, ttl) = match shown {
        Some(shown) => (INodeNo(shown.attr.ino), &shown.attr, shown.ttl),
        None => (INodeNo(0), &unknown, Duration::ZERO),
    };
    !reply.add(ino, next, name, &ttl, &attr(told, owned), Generation(0))
}

pub(super) fn send_xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, Errno>) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_bit_of_a_number_tells_what_was_sent_before() {
        assert_eq!(delivery(fuser::RequestId(6)), Delivery::First);
        assert_eq!(delivery(fuser::RequestId(u64::MAX >> 1)), Delivery::First);
        assert_eq!(delivery(fuser::RequestId(0x8000_0000_0000_0006)), Delivery::Again);
    }
}
