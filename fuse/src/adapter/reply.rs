//! From the session's terms to FUSE's.

use std::time::SystemTime;

use fuser::{FileAttr, FileType, INodeNo};
use rustix::io::Errno;

use crate::engine::session::Attr;
use crate::model::attr::Ownership;

/// Preferred size of reads, in bytes: what one request carries.
const BLOCK_SIZE: u32 = 1 << 20;

pub(super) fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
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
