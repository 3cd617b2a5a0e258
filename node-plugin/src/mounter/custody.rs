//! FUSE connections kept beside the engine that serves them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::protocol::Deposit;

/// Sessions, and whether an engine is there.
pub(super) struct Custody {
    orphan_timeout: Duration,
    state: Mutex<State>,
}

struct State {
    sessions: BTreeMap<String, Kept>,
    engine: Option<String>,
    /// Open connections of the engine, by number, to close them when it is replaced.
    connections: BTreeMap<u64, OwnedFd>,
    next_connection: u64,
    alone_since: Instant,
}

struct Kept {
    device: OwnedFd,
    deposit: Option<Deposit>,
}

impl Custody {
    pub(super) fn new(orphan_timeout: Duration) -> Self {
        Self {
            orphan_timeout,
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

    /// Keeps the descriptor of a session.
    pub(super) fn keep(&self, session: &str, device: OwnedFd) {
        self.state().sessions.insert(session.to_owned(), Kept { device, deposit: None });
    }

    /// Keeps what an engine says about a session.
    ///
    /// # Errors
    /// `NotFound` when the session is not in custody and no descriptor came along.
    pub(super) fn deposit(&self, deposit: Deposit, device: Option<OwnedFd>) -> io::Result<()> {
        let mut state = self.state();
        match (state.sessions.get_mut(&deposit.session), device) {
            (Some(kept), _) => kept.deposit = Some(deposit),
            (None, Some(device)) => {
                let session = deposit.session.clone();
                state.sessions.insert(session, Kept { device, deposit: Some(deposit) });
            }
            (None, None) => return Err(absent(&deposit.session)),
        }
        Ok(())
    }

    /// Sessions that an engine has deposited.
    pub(super) fn list(&self) -> Vec<Deposit> {
        self.state().sessions.values().filter_map(|kept| kept.deposit.clone()).collect()
    }

    /// A copy of a session's descriptor.
    ///
    /// # Errors
    /// `NotFound` when it is not in custody.
    pub(super) fn device(&self, session: &str) -> io::Result<OwnedFd> {
        self.state().sessions.get(session).ok_or_else(|| absent(session))?.device.try_clone()
    }

    /// Whether a session is in custody.
    pub(super) fn has(&self, session: &str) -> bool {
        self.state().sessions.contains_key(session)
    }

    /// Lets go of a session.
    pub(super) fn forget(&self, session: &str) {
        self.state().sessions.remove(session);
    }

    /// Takes the sessions out that have waited too long for an engine, and those that never
    /// were deposited while none is there.
    pub(super) fn take_orphans(&self) -> Vec<String> {
        let mut state = self.state();
        if !state.connections.is_empty() || state.alone_since.elapsed() < self.orphan_timeout {
            return Vec::new();
        }
        std::mem::take(&mut state.sessions).into_keys().collect()
    }
}

fn absent(session: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("session {session} is not in custody"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn deposit(session: &str) -> Deposit {
        let handshake = weir_fuse::adapter::Handshake { request: Vec::new(), reply: Vec::new() };
        Deposit { session: session.into(), handshake, generation: 1, record: "canary".into() }
    }

    #[test]
    fn sessions_wait_for_an_engine_until_the_deadline() {
        let custody = Custody::new(Duration::ZERO);
        custody.keep("a", descriptor());
        custody.deposit(deposit("a"), None).unwrap();
        assert!(custody.deposit(deposit("b"), None).is_err());
        custody.deposit(deposit("b"), Some(descriptor())).unwrap();
        let connection = custody.attach("one", descriptor());
        assert!(custody.take_orphans().is_empty());
        let other = custody.attach("two", descriptor());
        // The end of a connection that was closed for another engine says nothing.
        custody.detach(connection);
        assert!(custody.take_orphans().is_empty() && custody.list().len() == 2);
        custody.detach(other);
        assert_eq!(custody.take_orphans(), ["a", "b"]);
        assert!(custody.device("a").is_err());
    }

    #[test]
    fn records_are_not_printed() {
        assert!(!format!("{:?}", deposit("a")).contains("canary"));
    }
}
