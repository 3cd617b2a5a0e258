//! The states of a file under change, and what each operation comes to in each of them.

use std::fmt;

/// Where a file under change stands with the origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The origin does not hold what is here.
    Writing,
    /// A commit prepares or sends it; its holder has the gate.
    Committing,
    /// A request that changes the origin was sent, and how it ended is not known.
    InDoubt,
    /// The origin holds exactly what is here.
    Stored,
    /// Its name was removed: nothing of it is stored any more.
    Unlinked,
    /// Somebody else stored another version first. Final: what a later try would overwrite is not
    /// what its writer has seen, even if the bytes are the same.
    Superseded,
    /// The last writer is gone and its bytes are where they belong.
    Sealed,
}

/// What is asked of a file under change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// WRITE: bytes at an offset.
    Write,
    /// A new size.
    Truncate,
    /// fsync, or the close that counts.
    Commit,
    /// The end of its last writer.
    Finish,
    /// Removal of its name, or a rename of another file over it.
    Unlink,
    /// A rename of it, or of a directory above it.
    Move,
    /// A later engine finds its record.
    Resume,
}

/// What an operation comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is carried out.
    Apply,
    /// Whoever holds the gate is waited for; then the phase is looked at again.
    Wait,
    /// The origin is asked how the last request ended; then the phase is looked at again.
    Settle,
    /// There is nothing to do: a success.
    Nothing,
    /// An error.
    Refuse(Refusal),
}

/// Why an operation is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The name belongs to a version that somebody else stored.
    Superseded,
    /// It has no name any more.
    Nameless,
    /// Writing to it has ended.
    Ended,
}

impl Phase {
    /// All phases, for those who walk the table.
    pub const ALL: [Self; 7] = [
        Self::Writing,
        Self::Committing,
        Self::InDoubt,
        Self::Stored,
        Self::Unlinked,
        Self::Superseded,
        Self::Sealed,
    ];

    /// What `operation` comes to in this phase. WRITE and sizes never wait; all others hold the
    /// gate, so that they meet `Committing` only while they wait for it.
    pub fn outcome(self, operation: Operation) -> Outcome {
        use Operation as O;
        use Outcome::{Apply, Nothing, Refuse, Settle, Wait};
        match (self, operation) {
            (Self::Superseded, O::Write | O::Truncate | O::Commit | O::Unlink | O::Move) => {
                Refuse(Refusal::Superseded)
            }
            (Self::Sealed, O::Write | O::Truncate) => Refuse(Refusal::Ended),
            (Self::Unlinked, O::Unlink | O::Move) => Refuse(Refusal::Nameless),
            (_, O::Write | O::Truncate) => Apply,
            (Self::Committing, O::Commit | O::Finish | O::Unlink | O::Move) => Wait,
            (Self::InDoubt, O::Commit | O::Finish | O::Unlink | O::Move) => Settle,
            (Self::Stored | Self::Unlinked | Self::Sealed, O::Commit) => Nothing,
            (Self::Sealed, O::Finish) => Nothing,
            (Self::Writing, O::Commit)
            | (Self::Writing | Self::Stored | Self::Unlinked | Self::Superseded, O::Finish)
            | (Self::Writing | Self::Stored | Self::Sealed, O::Unlink | O::Move) => Apply,
            // What the origin holds is there; the rest goes where a person finds it. Nobody knows
            // whether the writer of what was superseded still heard of it.
            (Self::Stored | Self::Unlinked | Self::Sealed, O::Resume) => Nothing,
            (Self::Writing | Self::Committing | Self::InDoubt | Self::Superseded, O::Resume) => {
                Apply
            }
        }
    }
}

impl Operation {
    /// All operations, for those who walk the table.
    pub const ALL: [Self; 7] = [
        Self::Write,
        Self::Truncate,
        Self::Commit,
        Self::Finish,
        Self::Unlink,
        Self::Move,
        Self::Resume,
    ];
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Writing => "writing",
            Self::Committing => "committing",
            Self::InDoubt => "in doubt",
            Self::Stored => "stored",
            Self::Unlinked => "unlinked",
            Self::Superseded => "superseded",
            Self::Sealed => "sealed",
        })
    }
}
