//! The reference model: what files and their readers and writers may see, whatever the order of
//! operations. It drives sessions without a kernel, real mounts, and crashes alike.
//!
//! What it holds Weir to:
//! - a reader gets bytes of the one version that its name had when it was opened, or an error,
//!   and an error only if that version is not current any more;
//! - when fsync, or the close of the last writer, succeeds, S3 holds exactly what was written;
//!   when it fails S3 is as it was, and it fails only if somebody else changed the object;
//! - after every operation S3 holds what the operations so far say, and a listing shows it.

mod files;
mod interpreter;
mod store;

pub use files::{Files, MountFiles, SessionFiles};
pub use interpreter::Interpreter;
pub use store::Store;

use proptest::prelude::*;

/// Names that operations use; few, so that they meet.
pub const NAMES: [&str; 5] = ["a", "b", "dir/c", "dir/d", "other/e"];
/// Descriptors of each kind.
pub const SLOTS: usize = 4;

/// Bytes of a file: every content is told by its number and its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Number of the content.
    pub seed: u64,
    /// Its length.
    pub len: usize,
}

impl Content {
    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        crate::random_bytes(self.seed, self.len)
    }
}

/// One operation. Names and slots are indices.
#[derive(Clone, Debug)]
pub enum Op {
    /// Somebody else stores an object.
    RemotePut(usize, Content),
    /// Somebody else removes one.
    RemoteDelete(usize),
    /// Opens for reading.
    OpenRead(usize, usize),
    /// Reads from an open file.
    Read(usize, u64, usize),
    /// Closes a reader.
    CloseRead(usize),
    /// Creates or empties a file and opens it for writing.
    OpenWrite(usize, usize),
    /// Writes at an offset.
    Write(usize, u64, Content),
    /// Cuts or extends through a writer.
    Truncate(usize, u64),
    /// Stores what a writer wrote.
    Fsync(usize),
    /// Closes a writer.
    CloseWrite(usize),
    /// Removes a name.
    Unlink(usize),
    /// Renames one to another.
    Rename(usize, usize),
    /// Lists the directories.
    List,
    /// Ends the node and starts it again over the same cache.
    Restart,
}

fn content() -> impl Strategy<Value = Content> {
    // Around the limits: nothing, a page, a block, several blocks, more than one part.
    let len = prop_oneof![
        Just(0_usize),
        1..200_usize,
        4000..4200_usize,
        130_000..132_000_usize,
        1..700_000_usize,
        Just(131_072),
    ];
    (1..1000_u64, len).prop_map(|(seed, len)| Content { seed, len })
}

fn op() -> impl Strategy<Value = Op> {
    let (name, slot) = (|| 0..NAMES.len(), || 0..SLOTS);
    prop_oneof![
        3 => (name(), content()).prop_map(|(n, c)| Op::RemotePut(n, c)),
        1 => name().prop_map(Op::RemoteDelete),
        5 => (slot(), name()).prop_map(|(s, n)| Op::OpenRead(s, n)),
        8 => (slot(), 0..700_000_u64, 1..300_000_usize).prop_map(|(s, at, len)| Op::Read(s, at, len)),
        3 => slot().prop_map(|s| Op::Read(s, 0, 800_000)),
        2 => slot().prop_map(Op::CloseRead),
        4 => (slot(), name()).prop_map(|(s, n)| Op::OpenWrite(s, n)),
        6 => (slot(), 0..300_000_u64, content()).prop_map(|(s, at, c)| Op::Write(s, at, c)),
        2 => (slot(), content()).prop_map(|(s, c)| Op::Write(s, 0, c)),
        1 => (slot(), 0..400_000_u64).prop_map(|(s, at)| Op::Truncate(s, at)),
        2 => slot().prop_map(Op::Fsync),
        4 => slot().prop_map(Op::CloseWrite),
        1 => name().prop_map(Op::Unlink),
        1 => (name(), name()).prop_map(|(a, b)| Op::Rename(a, b)),
        1 => Just(Op::List),
        1 => Just(Op::Restart),
    ]
}

/// Sequences of operations.
pub fn ops(max: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..max)
}
