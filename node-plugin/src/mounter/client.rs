//! The node's end: calls to the mounter, and the connection that says which engine is there.

mod port;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use port::SessionPort;
use weir_fuse::blocking::MayBlock;

use super::notices::Notices;
use super::protocol::{
    Bind, Deposit, Expiry, KEYS_MAX, Mount, RECORD_MAX, Reply, Request, VERSION,
};
use super::{sealed, wire};
use crate::readiness::Flag;

/// How long a call waits for a mounter that restarts.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is tried meanwhile.
const TRY_EVERY: Duration = Duration::from_millis(100);
/// How long a mounter that is there may take to answer a question, or to note something.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// How long it may take to mount, to show or to end something, which the kernel may delay.
const CHANGE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a mounter that did not answer is asked nothing that can do without an answer.
const SILENCE: Duration = Duration::from_secs(10);
/// How long one that was not there is not: it may be back at any time.
const ABSENCE: Duration = Duration::from_secs(1);
/// Connections kept open.
const POOL_MAX: usize = 8;

/// A connection, and the memory for what comes on it.
struct Line {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// What is kept of a session.
pub struct Entry {
    /// Engines that have served it.
    pub generation: u16,
    /// What an engine has deposited, if any has.
    pub record: Option<Vec<u8>>,
    /// What it needs to sign, if that is kept.
    pub keys: Option<Vec<u8>>,
    /// The FUSE connection.
    pub device: OwnedFd,
    /// Engines that ended one after the other while requests of it were under way that the kernel
    /// had sent again.
    pub deaths: u8,
}

/// What is given into custody.
pub struct NewEntry<'a> {
    /// The session.
    pub session: &'a str,
    /// Engines that have served it, this one included.
    pub generation: u16,
    /// All that another engine needs to serve it, but no secret.
    pub record: &'a [u8],
    /// What it needs to sign, and until when that is of use.
    pub keys: Option<&'a (Vec<u8>, Expiry)>,
    /// The FUSE connection.
    pub device: &'a OwnedFd,
}

/// Why a mounter is asked nothing that can do without an answer.
#[derive(Clone, Copy)]
enum Mute {
    /// It is there, and did not answer.
    Silent,
    /// Nobody listens.
    Away,
}

impl Mute {
    fn lasts(self) -> Duration {
        match self {
            Self::Silent => SILENCE,
            Self::Away => ABSENCE,
        }
    }

    fn error(self) -> io::Error {
        match self {
            Self::Silent => silence(),
            Self::Away => io::Error::new(io::ErrorKind::NotFound, "no mounter is there now"),
        }
    }
}

/// Speaks to the mounter of this node. Each call waits for it.
pub struct Mounter {
    socket: PathBuf,
    hello: Request,
    patience: Duration,
    pool: Mutex<Vec<Line>>,
    /// When it was found not to answer, and why.
    mute: Mutex<Option<(Instant, Mute)>>,
    attached: Flag,
    notices: Arc<Notices>,
}

impl Mounter {
    /// `engine` names this run of the node.
    pub fn new(socket: &Path, engine: String) -> Arc<Self> {
        Self::made(socket, Request::Hello { version: VERSION, engine }, PATIENCE)
    }

    /// As somebody who is no engine, and does not wait for a mounter that is not there.
    pub fn visit(socket: &Path) -> Arc<Self> {
        Self::made(socket, Request::Visit { version: VERSION }, Duration::ZERO)
    }

    fn made(socket: &Path, hello: Request, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            socket: socket.to_owned(),
            hello,
            patience,
            pool: Mutex::default(),
            mute: Mutex::default(),
            attached: Flag::default(),
            notices: Arc::default(),
        })
    }

    /// Says from now on that this engine is there. `again` runs each time that a mounter without
    /// memory was found after the first: what it is to keep must be deposited again.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn attach(self: &Arc<Self>, again: impl Fn() + Send + 'static) -> io::Result<()> {
        let mounter = Arc::downgrade(self);
        let attached = self.attached.clone();
        let (notices, of) = (self.notices.clone(), mounter.clone());
        let say = move || {
            let may = MayBlock::own_thread();
            notices.run(|notice| {
                if let Some(mounter) = of.upgrade()
                    && let Err(error) = mounter.done(&may, notice, &[])
                {
                    tracing::debug!(?notice, %error, "not heard by the mounter");
                }
            })
        };
        std::thread::Builder::new().name("notices".into()).spawn(say)?;
        let run = move || {
            let may = MayBlock::own_thread();
            let mut first = true;
            while let Some(mounter) = mounter.upgrade() {
                let line = mounter.connect(&may).and_then(|line| {
                    wire::set_deadline(&line.socket, None)?;
                    Ok(line)
                });
                let Ok(mut line) = line else {
                    drop(mounter);
                    std::thread::sleep(TRY_EVERY);
                    continue;
                };
                if !first {
                    mounter.pool().clear();
                    again();
                    tracing::info!("the mounter is back, and knows of every session again");
                }
                first = false;
                mounter.note_mute(None);
                attached.set(true);
                drop(mounter);
                // It says nothing more on this connection; its end wakes us.
                let _ = wire::receive::<Reply>(&line.socket, &mut line.buffer);
                attached.set(false);
                tracing::warn!("the mounter is gone; waiting for it");
            }
        };
        std::thread::Builder::new().name("mounter".into()).spawn(run)?;
        Ok(())
    }

    /// Whether the mounter has this engine's connection now.
    pub(crate) fn attached(&self) -> Flag {
        self.attached.clone()
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Vec<Line>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, _: &MayBlock) -> io::Result<Line> {
        let socket = wire::connect(&self.socket, ANSWER_DEADLINE).map_err(told_late)?;
        let mut line = Line { socket, buffer: Vec::new() };
        match line.exchange(&self.hello, &[])? {
            (Reply::Hello { version: VERSION }, _) => Ok(line),
            (Reply::Failed { text, .. }, _) => Err(io::Error::other(text)),
            _ => Err(io::Error::other("the mounter does not know this version of Weir")),
        }
    }

    fn call(
        &self,
        may: &MayBlock,
        request: &Request,
        along: &[BorrowedFd<'_>],
    ) -> io::Result<(Reply, Vec<OwnedFd>)> {
        self.call_within(may, self.patience, request, along)
    }

    fn call_within(
        &self,
        may: &MayBlock,
        patience: Duration,
        request: &Request,
        along: &[BorrowedFd<'_>],
    ) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let deadline = deadline_of(request);
        let can_be_left = can_be_left(request);
        if let Some(mute) = self.mute().filter(|_| can_be_left) {
            return Err(mute.error());
        }
        // Whoever can do without an answer waits for no mounter that is not there.
        let patience = if can_be_left { Duration::ZERO } else { patience };
        let until = Instant::now() + patience;
        loop {
            let pooled = self.pool().pop();
            // One that was kept may be of a mounter that is gone.
            let was_kept = pooled.is_some();
            let line = pooled.map_or_else(|| self.connect(may), Ok);
            let answered = line.and_then(|mut line| {
                wire::set_deadline(&line.socket, Some(deadline))?;
                let answer = line.exchange(request, along)?;
                let mut pool = self.pool();
                if pool.len() < POOL_MAX {
                    pool.push(line);
                }
                Ok(answer)
            });
            match answered {
                Ok((Reply::Failed { errno, text }, _)) => {
                    let kind = |errno| io::Error::from_raw_os_error(errno).kind();
                    let kind = errno.map_or(io::ErrorKind::Other, kind);
                    return Err(io::Error::new(kind, text));
                }
                Ok(answer) => {
                    self.note_mute(None);
                    return Ok(answer);
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    self.note_mute(Some(Mute::Silent));
                    return Err(error);
                }
                // No other try is shorter.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
                Err(_) if was_kept => {}
                Err(error) => {
                    if is_nobody(&error) {
                        self.note_mute(Some(Mute::Away));
                    }
                    if Instant::now() >= until {
                        let text = format!("mounter at {}: {error}", self.socket.display());
                        return Err(io::Error::new(error.kind(), text));
                    }
                    std::thread::sleep(TRY_EVERY);
                }
            }
        }
    }

    fn mute(&self) -> Option<Mute> {
        let noted = *self.mute.lock().unwrap_or_else(PoisonError::into_inner);
        noted.filter(|(since, mute)| since.elapsed() < mute.lasts()).map(|(_, mute)| mute)
    }

    fn note_mute(&self, mute: Option<Mute>) {
        let noted = mute.map(|mute| (Instant::now(), mute));
        *self.mute.lock().unwrap_or_else(PoisonError::into_inner) = noted;
    }

    fn is_so(&self, may: &MayBlock, question: &Request) -> io::Result<bool> {
        match self.call(may, question, &[])? {
            (Reply::Is(so), _) => Ok(so),
            _ => Err(unexpected()),
        }
    }

    fn done(&self, may: &MayBlock, request: &Request, along: &[BorrowedFd<'_>]) -> io::Result<()> {
        match self.call(may, request, along)? {
            (Reply::Done, _) => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Mounts a session; returns the connection and the device number.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn mount(&self, may: &MayBlock, mount: Mount) -> io::Result<(OwnedFd, String)> {
        match self.call(may, &Request::Mount(mount), &[])? {
            (Reply::Mounted { device }, mut along) => {
                Ok((along.pop().ok_or_else(unexpected)?, device))
            }
            _ => Err(unexpected()),
        }
    }

    /// Gives what is to be kept of a session into custody.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn deposit(&self, may: &MayBlock, entry: &NewEntry<'_>) -> io::Result<()> {
        let record = sealed::write("weir-record", entry.record)?;
        let keys = entry.keys.map(|(keys, _)| sealed::write("weir-keys", keys)).transpose()?;
        let deposit = Deposit {
            session: entry.session.to_owned(),
            generation: entry.generation,
            keys: entry.keys.map(|(_, expiry)| *expiry),
            device: true,
        };
        let along = [Some(record.as_fd()), keys.as_ref().map(AsFd::as_fd)];
        let along: Vec<_> = along.into_iter().flatten().chain([entry.device.as_fd()]).collect();
        self.done(may, &Request::Deposit(deposit), &along)
    }

    /// The sessions in custody.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn sessions(&self, may: &MayBlock) -> io::Result<Vec<String>> {
        self.all_pages(
            may,
            |after| Request::Sessions { after },
            |reply| match reply {
                Reply::Sessions(page) => Some(page),
                _ => None,
            },
        )
    }

    /// All pages of an answer, each asked for after the last of those before.
    fn all_pages<T: Clone + Default>(
        &self,
        may: &MayBlock,
        request: impl Fn(T) -> Request,
        page_of: impl Fn(Reply) -> Option<Vec<T>>,
    ) -> io::Result<Vec<T>> {
        let mut all: Vec<T> = Vec::new();
        loop {
            let after = all.last().cloned().unwrap_or_default();
            let (reply, _) = self.call(may, &request(after), &[])?;
            let page = page_of(reply).ok_or_else(unexpected)?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    /// What is kept of a session.
    ///
    /// # Errors
    /// What the mounter reports: NotFound when it is not in custody.
    pub fn take(&self, may: &MayBlock, session: &str) -> io::Result<Entry> {
        let (reply, along) = self.call(may, &Request::Take { session: session.to_owned() }, &[])?;
        let Reply::Entry { generation, record, keys, deaths } = reply else {
            return Err(unexpected());
        };
        let mut along = along.into_iter();
        let mut next = |max| along.next().ok_or_else(unexpected).map(|file| (file, max));
        let record = record.then(|| next(RECORD_MAX)).transpose()?;
        let keys = keys.then(|| next(KEYS_MAX)).transpose()?;
        let read = |(file, max)| sealed::read(file, max);
        Ok(Entry {
            generation,
            record: record.map(read).transpose()?,
            keys: keys.map(read).transpose()?,
            device: along.next().ok_or_else(unexpected)?,
            deaths,
        })
    }

    /// Where a session is shown.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn targets(&self, may: &MayBlock, session: &str) -> io::Result<Vec<PathBuf>> {
        self.all_pages(
            may,
            |after| Request::Targets { session: session.to_owned(), after },
            |reply| match reply {
                Reply::Targets(page) => Some(page),
                _ => None,
            },
        )
    }

    /// Shows a session at a target.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn bind(&self, may: &MayBlock, bind: Bind) -> io::Result<()> {
        self.done(may, &Request::Bind(bind), &[])
    }

    /// Removes what is shown at a target, and the target.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn unbind(&self, may: &MayBlock, target: &Path) -> io::Result<()> {
        self.done(may, &Request::Unbind { target: target.to_owned() }, &[])
    }

    /// Unmounts a session and forgets it.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn unmount(&self, may: &MayBlock, session: &str) -> io::Result<()> {
        self.done(may, &Request::Unmount { session: session.to_owned(), force: false }, &[])
    }

    /// Ends the connection of a session, so that whoever waits for it gets an error, unmounts it and
    /// forgets it.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn end(&self, may: &MayBlock, session: &str) -> io::Result<()> {
        self.done(may, &Request::Unmount { session: session.to_owned(), force: true }, &[])
    }

    /// Notes that this engine ends in order: what is under way of a session is not what ends it.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn acquit(&self, may: &MayBlock, session: &str) -> io::Result<()> {
        let session = session.to_owned();
        self.done(may, &Request::Trial { session, number: None, under_way: false }, &[])
    }

    /// Whether an engine is there.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn has_engine(&self, may: &MayBlock) -> io::Result<bool> {
        self.is_so(may, &Request::HasEngine)
    }

    /// Whether any volume is shown to a pod.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn is_showing(&self, may: &MayBlock) -> io::Result<bool> {
        self.is_so(may, &Request::IsShowing)
    }
}

impl Line {
    fn exchange(
        &mut self,
        request: &Request,
        along: &[BorrowedFd<'_>],
    ) -> io::Result<(Reply, Vec<OwnedFd>)> {
        wire::send(&self.socket, request, along).map_err(told_late)?;
        wire::receive(&self.socket, &mut self.buffer).map_err(told_late)?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::ConnectionReset, "it closed the connection")
        })
    }
}

/// How long the mounter may take for a request.
fn deadline_of(request: &Request) -> Duration {
    if request.is_change() { CHANGE_DEADLINE } else { ANSWER_DEADLINE }
}

/// Whether who asks can do without the answer: the file is served by the engine, or stored once more, and
/// what the kernel was told of a name ends by itself.
fn can_be_left(request: &Request) -> bool {
    matches!(
        request,
        Request::OpenBacking { .. }
            | Request::Expire { .. }
            | Request::ProcessOf { .. }
            | Request::IsAlive { .. }
            | Request::Holds { .. }
    )
}

/// The error of a call whose deadline has passed.
fn told_late(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { silence() } else { error }
}

/// Whether nobody listens at the socket.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

fn silence() -> io::Error {
    let text = "the mounter is there and does not answer; look at its pod and at the kernel's log";
    io::Error::new(io::ErrorKind::TimedOut, text)
}

fn unexpected() -> io::Error {
    io::Error::other("the mounter gave an answer to another question")
}
