//! What node and mounter say to each other: one JSON text a message, descriptors beside it.
//!
//! The two are upgraded at different times, so fields are only ever added, with defaults.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Version of the protocol.
pub const VERSION: u32 = 2;
/// Longest record of a session, in bytes: its settings, and every target that shows it.
pub const RECORD_MAX: u64 = 1 << 20;
/// Longest keys of a session, in bytes.
pub const KEYS_MAX: u64 = 64 << 10;
/// Sessions named in one answer.
pub const SESSIONS_PAGE: usize = 256;
/// Targets named in one answer.
pub const TARGETS_PAGE: usize = 32;

/// What the node asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// First on every connection of an engine, at the engine's socket. A new engine takes the place
    /// of the one before, whose connections are closed.
    Hello {
        /// [`VERSION`] of the node.
        version: u32,
        /// Names this run of the node.
        engine: String,
    },
    /// First on every connection at the visitors' socket: a visitor may ask whether an engine is
    /// there and whether anything is shown and, while none is there, take volumes away from targets.
    Visit {
        /// [`VERSION`] of the visitor.
        version: u32,
    },
    /// Is an engine there?
    HasEngine,
    /// Is any session shown anywhere?
    IsShowing,
    /// Mount a session. The reply carries the FUSE descriptor; the mounter keeps a copy.
    Mount(Mount),
    /// Keep this about a session, in place of what was kept.
    Deposit(Deposit),
    /// Which sessions are in custody? In order, [`SESSIONS_PAGE`] at most.
    Sessions {
        /// Those after this one; empty for the first.
        after: String,
    },
    /// The reply carries what is kept of a session.
    Take {
        /// Which.
        session: String,
    },
    /// Where is a session shown? In order, [`TARGETS_PAGE`] at most.
    Targets {
        /// Which.
        session: String,
        /// Those after this one; empty for the first.
        after: PathBuf,
    },
    /// Show a session at a target.
    Bind(Bind),
    /// Remove what is shown at a target, and the target. Success where there is nothing.
    Unbind {
        /// Where.
        target: PathBuf,
    },
    /// Unmount a session and forget it. Success where there is none.
    Unmount {
        /// Which.
        session: String,
        /// End its connection, so that whoever waits for it gets an error.
        #[serde(default)]
        force: bool,
    },
    /// Register the file that comes along for passthrough.
    OpenBacking {
        /// On this connection.
        session: String,
    },
    /// Give a backing id back.
    CloseBacking {
        /// On this connection.
        session: String,
        /// Which.
        id: u32,
    },
    /// Tell the kernel, soon, that a name is to be looked up at its next use. It knows how to be told.
    Expire {
        /// On this connection.
        session: String,
        /// Nodeid of the name's directory.
        parent: u64,
        /// The name.
        name: String,
    },
    /// Note whether requests are under way that were sent again: an engine that ends meanwhile may
    /// have ended over them.
    Trial {
        /// Of which session.
        session: String,
        /// Which trial of this engine; the end of another one is none of this one's. Without a number
        /// it is the end of any.
        number: Option<u64>,
        /// Whether they are under way, or all were answered.
        under_way: bool,
    },
    /// Which process is this thread of?
    ProcessOf {
        /// Id of the thread, in the mounter's pid namespace.
        thread: u32,
    },
    /// Is this process, or this thread, there?
    IsAlive {
        /// Its id.
        process: u32,
        /// One that was killed, or exits, does not count.
        #[serde(default)]
        and_stays: bool,
    },
    /// Has this process the file open for writing?
    Holds {
        /// Its id.
        process: u32,
        /// Device of the mount, as `major:minor`.
        device: String,
        /// Inode number.
        ino: u64,
        /// Name of the file.
        name: String,
    },
}

impl Request {
    /// Whether it changes what is mounted or kept: the kernel may delay that, or what is being done to
    /// the same session.
    pub(super) fn is_change(&self) -> bool {
        matches!(
            self,
            Self::Mount(_)
                | Self::Deposit(_)
                | Self::Bind(_)
                | Self::Unbind { .. }
                | Self::Unmount { .. }
        )
    }
}

/// How to mount a session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// Its id: lower-case hexadecimal digits.
    pub session: String,
    /// Source in the mount table.
    pub source: String,
    /// SELinux context, where one is asked for.
    pub selinux_context: Option<String>,
}

/// What is kept of a session. The message says what comes along, in this order: the record; the
/// keys, where there are any; after a restart of the mounter, the FUSE descriptor.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Deposit {
    /// Its id.
    pub session: String,
    /// Engines that have served it, the present one included.
    pub generation: u16,
    /// Whether keys come along; what was kept is dropped else.
    pub keys: Option<Expiry>,
    /// Whether the FUSE descriptor comes along.
    pub device: bool,
}

/// Until when keys are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Expiry {
    /// Seconds since 1970; `None` for keys that do not say.
    pub at: Option<u64>,
}

/// Where to show a session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Bind {
    /// Its id.
    pub session: String,
    /// Where; made if it is not there.
    pub target: PathBuf,
    /// Whether nobody may write there.
    pub read_only: bool,
    /// In place of what is mounted there, if that is ours. The folder stays, whatever becomes of it.
    #[serde(default)]
    pub replace: bool,
}

/// What the mounter answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// The mounter's version, after Hello.
    Hello {
        /// [`VERSION`] of the mounter.
        version: u32,
    },
    /// A session is mounted, as this device (`major:minor`).
    Mounted {
        /// The device.
        device: String,
    },
    /// Names of sessions in custody.
    Sessions(Vec<String>),
    /// What is kept of a session. Along come the record, the keys where they are kept, and the FUSE
    /// descriptor.
    Entry {
        /// Engines that have served it.
        generation: u16,
        /// Whether a record comes along: none does if no engine has deposited one.
        record: bool,
        /// Whether keys come along.
        keys: bool,
        /// Engines that ended one after the other while requests were under way that were sent again.
        deaths: u8,
    },
    /// Where a session is shown.
    Targets(Vec<PathBuf>),
    /// A backing id.
    Backing(u32),
    /// A process id; 0 for none.
    Process(u32),
    /// Yes or no.
    Is(bool),
    /// It failed.
    Failed {
        /// The errno, where the system gave one.
        errno: Option<i32>,
        /// What went wrong, where.
        text: String,
    },
}
