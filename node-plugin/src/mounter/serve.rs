//! A thread for each connection, and one that watches for orphans. Nothing that a conversation
//! meets, and no lack that passes, ends the mounter: every mount of the node would end with it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::custody::Custody;
use super::mounts::Mounts;
use super::protocol::{Reply, Request, VERSION};
use super::slots::{Slot, Slots};
use super::wire;

/// Connections served at once, at each socket.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Changes under way at once, at each socket. The kernel may hold any of them for ever: greetings and
/// questions are answered all the same.
pub(super) const CHANGES_MAX: usize = 48;
/// How often orphans are looked for.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// How often refused connections are told, at each socket.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Longest text of an error, in characters.
const TEXT_MAX: usize = 2048;
/// How long nobody is let in while descriptors, memory or threads are lacking.
const PAUSE: Duration = Duration::from_millis(100);

/// Who may connect to a socket: what is not there for them cannot be said by claiming to be another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Peer {
    /// The node plugin.
    Engine,
    /// Anybody else.
    Visitor,
}

/// An answer, and the descriptors that go with it.
type Answer = io::Result<(Reply, Vec<OwnedFd>)>;

/// The connection of an engine, until it ends: also by a panic.
struct Attachment<'a> {
    custody: &'a Custody,
    number: u64,
}

impl Drop for Attachment<'_> {
    fn drop(&mut self) {
        self.custody.detach(self.number);
    }
}

/// Serves at both sockets, for ever.
///
/// # Errors
/// When the threads that this needs cannot be started.
pub(super) fn run(engines: OwnedFd, visitors: OwnedFd, mounts: Arc<Mounts>) -> io::Result<()> {
    let watched = mounts.clone();
    std::thread::Builder::new().name("orphans".into()).spawn(move || {
        again_and_again("orphans", || watch(&watched));
    })?;
    let visited = mounts.clone();
    std::thread::Builder::new()
        .name("visitors".into())
        .spawn(move || accept(&visitors, &visited, Peer::Visitor))?;
    accept(&engines, &mounts, Peer::Engine)
}

/// Does this for ever. A panic costs what was being done, not what would have come after it.
fn again_and_again(what: &str, mut round: impl FnMut()) -> ! {
    loop {
        if panic::catch_unwind(AssertUnwindSafe(&mut round)).is_err() {
            tracing::error!(what, "a round of the mounter's own work has panicked; it goes on");
            std::thread::sleep(PAUSE);
        }
    }
}

fn accept(listener: &OwnedFd, mounts: &Arc<Mounts>, peer: Peer) -> ! {
    let room = Room {
        connections: Slots::new(CONNECTIONS_MAX),
        changes: Arc::new(Slots::new(CHANGES_MAX)),
    };
    let mut refused = Refused::default();
    again_and_again("connections", || {
        let accepted =
            rustix::io::retry_on_intr(|| rustix::net::accept_with(listener, SocketFlags::CLOEXEC));
        let served = accepted
            .map_err(io::Error::from)
            .and_then(|connection| serve(mounts, connection, peer, &room));
        match served {
            Ok(()) => {}
            Err(error) if is_lack(&error) => {
                tracing::warn!(?peer, %error, "a connection is not served");
                std::thread::sleep(PAUSE);
            }
            // The connection is closed; who waits behind it waits for nothing.
            Err(error) => refused.note(peer, &error),
        }
    })
}

/// What is done at once for the peers of a socket.
struct Room {
    connections: Slots,
    changes: Arc<Slots>,
}

/// Serves a connection on a thread of its own.
///
/// # Errors
/// Why it is not served.
fn serve(mounts: &Arc<Mounts>, connection: OwnedFd, peer: Peer, room: &Room) -> io::Result<()> {
    mounts.peers.check(&mounts.roots, &connection, peer)?;
    let slot = room.connections.take();
    let slot = slot.ok_or_else(|| io::Error::other("too many connections, try again"))?;
    let (mounts, changes) = (mounts.clone(), room.changes.clone());
    let converse = move || {
        converse(&mounts, &connection, peer, &changes);
        drop(slot);
    };
    std::thread::Builder::new().name("connection".into()).spawn(converse).map(|_| ())
}

/// Whether descriptors, memory or threads are lacking. That passes.
fn is_lack(error: &io::Error) -> bool {
    const LACKS: [Errno; 5] =
        [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::AGAIN];
    error.raw_os_error().is_some_and(|raw| LACKS.contains(&Errno::from_raw_os_error(raw)))
}

/// Connections that were refused: who tries again and again fills no log.
#[derive(Default)]
struct Refused {
    told: Option<Instant>,
    untold: u64,
}

impl Refused {
    fn note(&mut self, peer: Peer, error: &io::Error) {
        self.untold += 1;
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            tracing::warn!(?peer, %error, count = self.untold, "a connection is refused");
            *self = Self { told: Some(Instant::now()), untold: 0 };
        }
    }
}

fn watch(mounts: &Mounts) {
    std::thread::sleep(WATCH_EVERY);
    mounts.custody.drop_keys_expired_at(SystemTime::now());
    mounts.end_orphans();
}

fn converse(mounts: &Mounts, connection: &OwnedFd, peer: Peer, changes: &Slots) {
    let mut buffer = Vec::new();
    let mut greeted = false;
    let mut attachment = None;
    loop {
        let (request, along) = match wire::receive::<Request>(connection, &mut buffer) {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(?peer, %error, "a connection ends");
                break;
            }
        };
        let answered = match (&request, peer) {
            (Request::Hello { version, engine }, Peer::Engine) if !greeted => {
                check_version(*version).and_then(|()| {
                    let number = mounts.custody.attach(engine, connection.try_clone()?);
                    attachment = Some(Attachment { custody: &mounts.custody, number });
                    greeted = true;
                    log_peer(connection, engine);
                    Ok((Reply::Hello { version: VERSION }, Vec::new()))
                })
            }
            (Request::Visit { version }, Peer::Visitor) if !greeted => {
                check_version(*version).map(|()| {
                    greeted = true;
                    (Reply::Hello { version: VERSION }, Vec::new())
                })
            }
            _ if !greeted => Err(io::Error::other("the first message must be a greeting")),
            (_, Peer::Engine) => {
                mounts.abort_if_forced(&request);
                slot_of(&request, changes).and_then(|_slot| mounts.answer(request, along))
            }
            (_, Peer::Visitor) => {
                slot_of(&request, changes).and_then(|_slot| answer_visitor(mounts, request))
            }
        };
        let (reply, along) = answered.unwrap_or_else(|error| failed(&error));
        let along: Vec<BorrowedFd<'_>> = along.iter().map(AsFd::as_fd).collect();
        if let Err(error) = wire::send(connection, &reply, &along) {
            tracing::debug!(%error, "an answer is not sent");
            break;
        }
    }
    drop(attachment);
}

/// A slot for what may wait for the kernel.
///
/// # Errors
/// When there is none.
fn slot_of(request: &Request, changes: &Slots) -> io::Result<Option<Slot>> {
    // What is kept in memory waits for nothing.
    if !request.is_change() || matches!(request, Request::Deposit(_)) {
        return Ok(None);
    }
    let none = || {
        io::Error::other(format!(
            "{CHANGES_MAX} changes are under way in the mounter, which is all that it does at once; \
             where that lasts look for mounts that hang, in the kernel's log"
        ))
    };
    changes.take().map(Some).ok_or_else(none)
}

/// An error as an answer. Errors repeat what was asked, which may be as long as a message.
pub(super) fn failed(error: &io::Error) -> (Reply, Vec<OwnedFd>) {
    let text = error.to_string().chars().take(TEXT_MAX).collect();
    let said = match error.kind() {
        io::ErrorKind::NotFound => Some(Errno::NOENT),
        io::ErrorKind::AlreadyExists => Some(Errno::EXIST),
        _ => None,
    };
    let errno = error.raw_os_error().or(said.map(Errno::raw_os_error));
    (Reply::Failed { errno, text }, Vec::new())
}

/// What visitors may ask: nothing of any one session, and nothing is changed while an engine is
/// there, which knows what it has shown.
fn answer_visitor(mounts: &Mounts, request: Request) -> Answer {
    match request {
        Request::Unbind { .. } if mounts.custody.has_engine() => {
            Err(io::Error::other("an engine is there: it is the one to do that"))
        }
        Request::HasEngine | Request::IsShowing | Request::Unbind { .. } => {
            mounts.answer(request, Vec::new())
        }
        _ => Err(io::Error::other("visitors may not ask that")),
    }
}

fn check_version(of_peer: u32) -> io::Result<()> {
    match of_peer == VERSION {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "this mounter speaks version {VERSION} and not {of_peer}: delete its pod (weir-mounter) \
             on this node, so that it is replaced"
        ))),
    }
}

fn log_peer(connection: &OwnedFd, engine: &str) {
    if let Ok(peer) = rustix::net::sockopt::socket_peercred(connection) {
        let (pid, uid) = (peer.pid.as_raw_pid(), peer.uid.as_raw());
        tracing::debug!(engine, pid, uid, "an engine has connected");
    }
}
