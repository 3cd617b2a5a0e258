//! What node and mounter say to each other: one JSON text a message, descriptors beside it.
//!
//! The two are upgraded at different times, so fields are only ever added, with defaults.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weir_fuse::adapter::Handshake;

/// Version of the protocol.
pub const VERSION: u32 = 1;

/// What the node asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// First on every connection. A new engine takes the place of the one before, whose
    /// connections are closed.
    Hello {
        /// [`VERSION`] of the node.
        version: u32,
        /// Names this run of the node.
        engine: String,
    },
    /// First on a connection of somebody who is no engine: such a one may ask whether an engine is
    /// there and what is mounted and, while none is there, take volumes away from targets.
    Visit {
        /// [`VERSION`] of the visitor.
        version: u32,
    },
    /// Is an engine there?
    HasEngine,
    /// Mount a session. The reply carries the FUSE descriptor; the mounter keeps a copy.
    Mount(Mount),
    /// Keep this about a session, in place of what was kept. After a restart of the mounter the
    /// FUSE descriptor comes along.
    Deposit(Deposit),
    /// What is in custody?
    List,
    /// The reply carries the FUSE descriptor of a session.
    Take {
        /// Which.
        session: String,
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
    /// Which process is this thread of?
    ProcessOf {
        /// Id of the thread, in the mounter's pid namespace.
        thread: u32,
    },
    /// Is this process, or this thread, there?
    IsAlive {
        /// Its id.
        process: u32,
        /// One that was killed, or exits, does not count. A mounter of an earlier release counts it.
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
    /// What is mounted below the target folders?
    Mounts,
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

/// What is kept of a session, beside its descriptor.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deposit {
    /// Its id.
    pub session: String,
    /// What kernel and first engine agreed on.
    pub handshake: Handshake,
    /// Engines that have served it, the present one included.
    pub generation: u16,
    /// Whatever the node needs to serve it again. May hold credentials: never printed.
    pub record: String,
}

impl std::fmt::Debug for Deposit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deposit")
            .field("session", &self.session)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
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
}

/// Something mounted below the target folders.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shown {
    /// Where.
    pub target: PathBuf,
    /// The session, if it is one of ours.
    pub session: Option<String>,
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
    /// What is in custody.
    Custody(Vec<Deposit>),
    /// A backing id.
    Backing(u32),
    /// A process id; 0 for none.
    Process(u32),
    /// Yes or no.
    Is(bool),
    /// What is mounted.
    Mounts(Vec<Shown>),
    /// It failed.
    Failed {
        /// The errno, where the system gave one.
        errno: Option<i32>,
        /// What went wrong, where.
        text: String,
    },
}
