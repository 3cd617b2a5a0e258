//! What an open gets, by what it meets: one table, and no rule about it anywhere else. Whoever
//! opens gathers what is there under the lock of the modes, asks [`admission`], and does what it
//! says.
//!
//! What the table stands on:
//! - The kernel answers ESTALE from open with one lookup and one more open, of whatever inode that
//!   names; a second ESTALE goes to the process (fs/namei.c: `path_openat` with LOOKUP_REVAL). Where
//!   there is no name to look up (a file mounted by subPath, `/proc/self/fd`) the same inode is
//!   opened again. So a retry is served wherever it can be.
//! - The kernel refuses passthrough and page cache together on one inode (fs/fuse/iomode.c), so
//!   an open joins the mode that the inode is in, or the name gets a new inode.
//! - All opens of a lock file must meet in one inode: what is small never gets a new one because
//!   of how it is opened.

use rustix::io::Errno;

use super::SMALL_MAX;
use super::modes::Mode;
use super::open::OpenRequest;
use crate::namespace::file::FileNode;

/// Where the name leads by which an inode was looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Name {
    /// To this inode.
    Own,
    /// To another one or nowhere; or this inode gave the name up, which it does not get back.
    Other,
}

/// An inode that is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Inode {
    /// Neither a stored version nor a file under change.
    Blank,
    /// A stored version that nobody has open.
    Closed(Size),
    /// Open, served by the daemon through the page cache.
    Streaming(Size),
    /// As that, but large and complete: on an inode of its own the kernel could read it itself.
    Passable,
    /// Open, read by the kernel itself.
    Cached,
    /// Under change, with a writer.
    Draft,
    /// Under change; the last writer has closed, and what he left is being stored.
    Finishing,
    /// What was written is stored; who has opened it meanwhile still reads it.
    Sealed(Size),
    /// Under change, but somebody else stored another version first.
    Superseded,
}

/// How much an inode holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Size {
    /// Nothing.
    Empty,
    /// Up to [`SMALL_MAX`].
    Small,
    /// More.
    Large,
}

/// What an open asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Request {
    /// O_RDONLY.
    Read,
    /// O_WRONLY or O_RDWR.
    Update,
    /// As that, with O_APPEND.
    Append,
    /// O_TRUNC.
    Truncate,
}

/// Which open of a thread it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Attempt {
    /// An open by a process.
    First,
    /// The kernel's, after the first was answered ESTALE.
    Retry,
}

/// What an open comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admission {
    /// It joins the mode that the inode is in; where nobody has it open, the one that fits.
    Join,
    /// A file under change begins, which all opens of the inode see.
    Begin,
    /// Until what the last writer left is stored; then what is there is looked at again.
    Wait,
    /// It opens nothing.
    Refuse(Refusal),
}

/// Why an open is refused, and what that does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// ESTALE: the kernel opens what a lookup finds.
    Stale,
    /// ESTALE, and the inode gives its name up to a new one.
    NewInode,
    /// As that, and the name is reserved for the writer until he is back.
    Reservation,
    /// EBUSY: it is a retry, and the new inode is already held in a way that bars a writer.
    Busy,
    /// EOPNOTSUPP: appending to what has content.
    Unsupported,
    /// EEXIST: O_EXCL of what is there.
    Exists,
}

/// What an open comes to that meets `inode` by `name`.
pub(super) fn admission(
    (name, inode): (Name, Inode),
    request: Request,
    attempt: Attempt,
) -> Admission {
    use Admission::{Begin, Join, Refuse, Wait};
    use Inode as I;
    use Refusal::{Busy, NewInode, Reservation, Stale, Unsupported};
    use Request::{Append, Read, Truncate, Update};
    use Size::{Empty, Large, Small};
    let first = attempt == Attempt::First;
    match (name, inode, request) {
        // There is nothing to show, or nothing that may be shown.
        (_, I::Blank | I::Superseded, _) => Refuse(Stale),
        // A reader without another name to go by is served what he has; a writer would replace
        // what he has not seen.
        (Name::Other, _, Read) if !first => Join,
        (Name::Other, _, _) => Refuse(Stale),
        (Name::Own, I::Passable, Read) if first => Refuse(NewInode),
        (Name::Own, _, Read) => Join,
        (Name::Own, I::Draft, _) => Join,
        (Name::Own, I::Finishing, _) => Wait,
        (Name::Own, I::Cached | I::Passable, Append) => Refuse(Unsupported),
        // Who reads a large version, or one that the kernel reads, keeps it.
        (Name::Own, I::Cached, Update | Truncate)
        | (Name::Own, I::Passable | I::Streaming(Large) | I::Sealed(Large), Truncate) => {
            Refuse(if first { Reservation } else { Busy })
        }
        (Name::Own, I::Passable, Update) => Join,
        (Name::Own, I::Closed(size) | I::Streaming(size) | I::Sealed(size), request) => {
            match (size, request) {
                (Empty, _) | (_, Truncate) => Begin,
                (Small | Large, Append) => Refuse(Unsupported),
                (Small | Large, Read | Update) => Join,
            }
        }
    }
}

/// What a creation comes to, by whether its name is taken.
pub(super) fn creation(taken: bool, exclusive: bool) -> Admission {
    match (taken, exclusive) {
        (false, _) => Admission::Begin,
        (true, true) => Admission::Refuse(Refusal::Exists),
        // Somebody was faster: the kernel looks again and opens what is there.
        (true, false) => Admission::Refuse(Refusal::Stale),
    }
}

impl Request {
    /// What the flags of an open ask for.
    pub(super) fn of(flags: &OpenRequest) -> Self {
        match (flags.truncate, flags.write, flags.append) {
            (true, _, _) => Self::Truncate,
            (false, false, _) => Self::Read,
            (false, true, true) => Self::Append,
            (false, true, false) => Self::Update,
        }
    }

    /// Whether it waits, before anything else, while the name is reserved for a writer: the first
    /// reader would hold the new inode just as the old one was held.
    pub(super) fn heeds_reservations(self) -> bool {
        self == Self::Read
    }
}

impl Refusal {
    /// What the kernel is answered.
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::Stale | Self::NewInode | Self::Reservation => Errno::STALE,
            Self::Busy => Errno::BUSY,
            Self::Unsupported => Errno::OPNOTSUPP,
            Self::Exists => Errno::EXIST,
        }
    }
}

impl Name {
    /// By whether the name leads to the inode.
    pub(super) fn of(current: bool) -> Self {
        if current { Self::Own } else { Self::Other }
    }
}

impl Size {
    /// Of so many bytes.
    pub(super) fn of(bytes: u64) -> Self {
        match bytes {
            0 => Self::Empty,
            1..=SMALL_MAX => Self::Small,
            _ => Self::Large,
        }
    }
}

impl Inode {
    /// By the mode that it is in, whose lock is held. `passable`: the kernel may read its version
    /// by itself, which matters to readers alone.
    pub(super) fn of(node: &FileNode, mode: Option<&Mode>, passable: bool) -> Self {
        let size = Size::of(node.size_and_mtime().0);
        match mode {
            None if node.version().is_none() => Self::Blank,
            None => Self::Closed(size),
            Some(Mode::Streaming) if passable && size == Size::Large => Self::Passable,
            Some(Mode::Streaming) => Self::Streaming(size),
            Some(Mode::Cached(_)) => Self::Cached,
            // In this order: none of these states goes back to one after it.
            Some(Mode::Draft(draft)) if draft.is_superseded() => Self::Superseded,
            Some(Mode::Draft(draft)) if draft.is_finishing() => Self::Finishing,
            Some(Mode::Draft(draft)) if draft.is_sealed() => Self::Sealed(size),
            Some(Mode::Draft(_)) => Self::Draft,
        }
    }
}

#[cfg(test)]
mod tests;
