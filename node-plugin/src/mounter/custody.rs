//! FUSE connections kept beside the engine that serves them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::FileType;
use weir_fuse::adapter::ExpiredNames;
use weir_fuse::adapter::passthrough::DevFusePort;

use super::ids::{Ids, Total};
use super::protocol::{Deposit, Expiry, KEYS_MAX, RECORD_MAX, SESSIONS_PAGE};
use super::sealed;

/// Descriptors that one session costs: its connection, the root of its mount, record and keys.
const DESCRIPTORS_OF_A_SESSION: u64 = 4;
/// Sessions of a node at most, however many descriptors there are: each is a mount, of which a namespace
/// has 100,000 for all on the host (`fs.mount-max`), and is shown once at most in each folder that kubelet
/// has made for a volume.
const SESSIONS_MAX: usize = 10_000;
/// Descriptors that are for conversations, and for what they carry.
const DESCRIPTORS_ELSE: u64 = 512;
/// Major and minor number of /dev/fuse (Documentation/admin-guide/devices.txt).
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// Sessions, and whether an engine is there.
pub(super) struct Custody {
    orphan_timeout: Duration,
    sessions_max: usize,
    /// Backing ids of all sessions.
    ids: Total,
    state: Mutex<State>,
}

struct State {
    sessions: BTreeMap<String, Entry>,
    engine: Option<String>,
    /// Open connections of the engine, by number, to close them when it is replaced.
    connections: BTreeMap<u64, OwnedFd>,
    next_connection: u64,
    alone_since: Instant,
}

struct Entry {
    device: Arc<OwnedFd>,
    expired: Arc<ExpiredNames>,
    /// The root of its mount, where that is known.
    root: Option<Arc<OwnedFd>>,
    generation: u16,
    record: Option<OwnedFd>,
    keys: Option<(OwnedFd, Expiry)>,
    ids: Arc<Ids>,
    /// The trial that is under way, and how many engines have ended over one.
    trial: Option<u64>,
    deaths: u8,
}

impl Entry {
    /// Of a session of which no engine has said anything.
    fn new(device: OwnedFd, root: Option<OwnedFd>, ids: Arc<Ids>) -> Self {
        let (device, root) = (Arc::new(device), root.map(Arc::new));
        let expired = ExpiredNames::new(device.clone());
        Self {
            device,
            expired,
            root,
            generation: 0,
            record: None,
            keys: None,
            ids,
            trial: None,
            deaths: 0,
        }
    }

    /// An engine may have the connection still, and bring it again.
    fn let_go(self) {
        self.ids.close_all(&DevFusePort::new(self.device));
    }
}

/// What an engine takes of a session.
pub(super) struct EntryCopy {
    pub(super) generation: u16,
    pub(super) record: Option<OwnedFd>,
    pub(super) keys: Option<OwnedFd>,
    pub(super) device: OwnedFd,
    pub(super) deaths: u8,
}

/// How many sessions there may be, where a process may have `descriptors`: some are for conversations.
pub(super) fn sessions_max(descriptors: u64) -> usize {
    let sessions = descriptors.saturating_sub(DESCRIPTORS_ELSE) / DESCRIPTORS_OF_A_SESSION;
    usize::try_from(sessions).unwrap_or(usize::MAX).clamp(1, SESSIONS_MAX)
}

impl Custody {
    pub(super) fn new(orphan_timeout: Duration, sessions_max: usize) -> Self {
        Self {
            orphan_timeout,
            sessions_max,
            ids: Total::default(),
            state: Mutex::new(State {
                sessions: BTreeMap::new(),
                engine: None,
                connections: BTreeMap::new(),
                next_connection: 0,
                alone_since: Instant::now(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a connection of an engine; returns its number. A new engine replaces the one
    /// before, whose connections end.
    pub(super) fn attach(&self, engine: &str, connection: OwnedFd) -> u64 {
        let mut state = self.state();
        if state.engine.as_deref() != Some(engine) {
            tracing::info!(engine, sessions = state.sessions.len(), "an engine took over");
            for old in std::mem::take(&mut state.connections).into_values() {
                let _ = rustix::net::shutdown(&old, rustix::net::Shutdown::Both);
            }
            state.engine = Some(engine.to_owned());
            for kept in state.sessions.values_mut().filter(|kept| kept.trial.is_some()) {
                kept.trial = None;
                kept.deaths = kept.deaths.saturating_add(1);
            }
        }
        state.next_connection += 1;
        let number = state.next_connection;
        state.connections.insert(number, connection);
        number
    }

    /// Whether an engine is there.
    pub(super) fn has_engine(&self) -> bool {
        !self.state().connections.is_empty()
    }

    /// Notes that a connection ended.
    pub(super) fn detach(&self, number: u64) {
        let mut state = self.state();
        if state.connections.remove(&number).is_some() && state.connections.is_empty() {
            tracing::warn!(sessions = state.sessions.len(), "no engine is there");
            state.alone_since = Instant::now();
        }
    }

    /// Whether one more session can be kept.
    ///
    /// # Errors
    /// When there are too many of them.
    pub(super) fn has_room(&self) -> io::Result<()> {
        self.room_in(&self.state())
    }

    fn room_in(&self, state: &State) -> io::Result<()> {
        match state.sessions.len() < self.sessions_max {
            true => Ok(()),
            false => Err(full(self.sessions_max)),
        }
    }

    /// Keeps the descriptor of a session, and the root of its mount.
    ///
    /// # Errors
    /// As [`Custody::has_room`].
    pub(super) fn keep(&self, session: &str, device: OwnedFd, root: OwnedFd) -> io::Result<()> {
        let mut state = self.state();
        if !state.sessions.contains_key(session) {
            self.room_in(&state)?;
        }
        let entry = Entry::new(device, Some(root), Ids::new(&self.ids));
        state.sessions.insert(session.to_owned(), entry);
        Ok(())
    }

    /// Keeps what an engine says about a session, in place of what was kept.
    ///
    /// # Errors
    /// `NotFound` when the session is not in custody and no FUSE descriptor came along;
    /// `InvalidData` when something else came along than the message says, or too much;
    /// `PermissionDenied` when something else than a FUSE connection is said to be one.
    pub(super) fn deposit(&self, deposit: &Deposit, along: Vec<OwnedFd>) -> io::Result<()> {
        let mut along = along.into_iter();
        let mut next = |expected: bool| match (expected, expected.then(|| along.next()).flatten()) {
            (true, None) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "too little came along"))
            }
            (_, file) => Ok(file),
        };
        let record = next(true)?;
        let keys = next(deposit.keys.is_some())?;
        let device = next(deposit.device)?;
        device.as_ref().map(check_device).transpose()?;
        for (file, max) in [(&record, RECORD_MAX), (&keys, KEYS_MAX)] {
            file.as_ref().map(|file| sealed::check(file, max)).transpose()?;
        }
        let mut state = self.state();
        if !state.sessions.contains_key(&deposit.session) {
            let device = device.ok_or_else(|| absent(&deposit.session))?;
            self.room_in(&state)?;
            let entry = Entry::new(device, None, Ids::new(&self.ids));
            state.sessions.insert(deposit.session.clone(), entry);
        }
        if let Some(kept) = state.sessions.get_mut(&deposit.session) {
            kept.generation = deposit.generation;
            kept.record = record;
            kept.keys = keys.zip(deposit.keys);
        }
        Ok(())
    }

    /// Names of sessions after this one, in order; a page of them.
    pub(super) fn names(&self, after: &str) -> Vec<String> {
        let state = self.state();
        let range = (Bound::Excluded(after), Bound::Unbounded);
        state
            .sessions
            .range::<str, _>(range)
            .map(|(id, _)| id.clone())
            .take(SESSIONS_PAGE)
            .collect()
    }

    /// Copies of what is kept of a session.
    ///
    /// # Errors
    /// `NotFound` when it is not in custody.
    pub(super) fn take(&self, session: &str) -> io::Result<EntryCopy> {
        let state = self.state();
        let kept = state.sessions.get(session).ok_or_else(|| absent(session))?;
        let copy = |file: &OwnedFd| file.try_clone();
        Ok(EntryCopy {
            generation: kept.generation,
            record: kept.record.as_ref().map(copy).transpose()?,
            keys: kept.keys.as_ref().map(|(file, _)| copy(file)).transpose()?,
            device: kept.device.try_clone()?,
            deaths: kept.deaths,
        })
    }

    /// A session's descriptor, and the backing ids of its connection.
    ///
    /// # Errors
    /// `NotFound` when it is not in custody.
    pub(super) fn connection(&self, session: &str) -> io::Result<(Arc<OwnedFd>, Arc<Ids>)> {
        let state = self.state();
        let kept = state.sessions.get(session).ok_or_else(|| absent(session))?;
        Ok((kept.device.clone(), kept.ids.clone()))
    }

    /// What tells the kernel of names of a session, where that is in custody.
    pub(super) fn expired(&self, session: &str) -> Option<Arc<ExpiredNames>> {
        self.state().sessions.get(session).map(|kept| kept.expired.clone())
    }

    /// The root of a session's mount, where that is known.
    ///
    /// # Errors
    /// `NotFound` when it is not in custody.
    pub(super) fn root(&self, session: &str) -> io::Result<Option<Arc<OwnedFd>>> {
        Ok(self.state().sessions.get(session).ok_or_else(|| absent(session))?.root.clone())
    }

    /// Notes the root of a session's mount.
    pub(super) fn set_root(&self, session: &str, root: Arc<OwnedFd>) {
        if let Some(kept) = self.state().sessions.get_mut(session) {
            kept.root = Some(root);
        }
    }

    /// Notes that a trial of the present engine begins, or that it ended well: a number says which,
    /// none says any.
    pub(super) fn note_trial(&self, session: &str, number: Option<u64>, under_way: bool) {
        let mut state = self.state();
        let Some(kept) = state.sessions.get_mut(session) else { return };
        match under_way {
            true => kept.trial = number,
            false if number.is_none() || kept.trial == number => {
                kept.trial = None;
                kept.deaths = 0;
            }
            false => {}
        }
    }

    /// Whether a session is in custody.
    pub(super) fn has(&self, session: &str) -> bool {
        self.state().sessions.contains_key(session)
    }

    /// Lets go of a session.
    pub(super) fn forget(&self, session: &str) {
        let kept = self.state().sessions.remove(session);
        if let Some(kept) = kept {
            kept.let_go();
        }
    }

    /// A session that has waited too long for an engine, or that never was deposited while none is
    /// there.
    pub(super) fn orphan(&self) -> Option<String> {
        let state = self.state();
        self.is_alone_in(&state).then(|| state.sessions.keys().next().cloned()).flatten()
    }

    /// Takes a session out if it is an orphan still: an engine may have come that serves it.
    pub(super) fn take_orphan(&self, session: &str) -> bool {
        let mut state = self.state();
        let orphan = self.is_alone_in(&state).then(|| state.sessions.remove(session)).flatten();
        drop(state);
        let Some(orphan) = orphan else { return false };
        orphan.let_go();
        true
    }

    /// Whether an engine was waited for too long.
    fn is_alone_in(&self, state: &State) -> bool {
        state.connections.is_empty() && state.alone_since.elapsed() >= self.orphan_timeout
    }

    /// Lets go of keys that are of no use any more.
    pub(super) fn drop_keys_expired_at(&self, now: SystemTime) {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for kept in self.state().sessions.values_mut() {
            kept.keys.take_if(|(_, expiry)| expiry.at.is_some_and(|at| at <= now));
        }
    }
}

/// Checks that this is a connection of FUSE: later the kernel is asked by it, with all rights.
///
/// # Errors
/// `PermissionDenied` that says what it is.
fn check_device(file: &OwnedFd) -> io::Result<()> {
    let stat = rustix::fs::fstat(file)?;
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind == FileType::CharacterDevice && (major, minor) == FUSE_DEVICE {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("a connection must be of /dev/fuse, and this is a {kind:?} {major}:{minor}"),
        )),
    }
}

fn absent(session: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("session {session} is not in custody"))
}

fn full(sessions: usize) -> io::Error {
    io::Error::other(format!(
        "{sessions} volumes are mounted, which is all that this mounter takes, by its limit of open \
         files and in any case"
    ))
}

#[cfg(test)]
mod tests;
