//! The node's end: calls to the mounter, and the connection that says which engine is there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use weir_fuse::engine::kernel::KernelPort;
use weir_fuse::engine::owner::{FileId, Processes};

use super::protocol::{Bind, Deposit, Mount, Reply, Request, Shown, VERSION};
use super::wire;
use crate::readiness::Flag;

/// How long a call waits for a mounter that restarts.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is tried meanwhile.
const TRY_EVERY: Duration = Duration::from_millis(100);
/// Connections kept open.
const POOL_MAX: usize = 8;

/// A connection, and the memory for what comes on it.
struct Line {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// Speaks to the mounter of this node.
pub struct Mounter {
    socket: PathBuf,
    hello: Request,
    patience: Duration,
    pool: Mutex<Vec<Line>>,
    attached: Flag,
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
            attached: Flag::default(),
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
        let run = move || {
            let mut first = true;
            while let Some(mounter) = mounter.upgrade() {
                let Ok(mut line) = mounter.connect() else {
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

    fn connect(&self) -> io::Result<Line> {
        let mut line = Line { socket: wire::connect(&self.socket)?, buffer: Vec::new() };
        match line.exchange(&self.hello, None)? {
            (Reply::Hello { .. }, _) => Ok(line),
            _ => Err(io::Error::other("the mounter does not know this version of Weir")),
        }
    }

    fn call(
        &self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Reply, Option<OwnedFd>)> {
        let until = Instant::now() + self.patience;
        loop {
            let pooled = self.pool().pop();
            let line = pooled.map_or_else(|| self.connect(), Ok);
            let answered = line.and_then(|mut line| {
                let answer = line.exchange(request, descriptor)?;
                let mut pool = self.pool();
                if pool.len() < POOL_MAX {
                    pool.push(line);
                }
                Ok(answer)
            });
            match answered {
                Ok((Reply::Failed { errno: Some(errno), text }, _)) => {
                    tracing::debug!(%text, "the mounter refused");
                    return Err(io::Error::from_raw_os_error(errno));
                }
                Ok((Reply::Failed { errno: None, text }, _)) => return Err(io::Error::other(text)),
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() >= until => {
                    let text = format!("mounter at {}: {error}", self.socket.display());
                    return Err(io::Error::new(error.kind(), text));
                }
                Err(_) => std::thread::sleep(TRY_EVERY),
            }
        }
    }

    fn done(&self, request: &Request, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        match self.call(request, descriptor)? {
            (Reply::Done, _) => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Mounts a session; returns the connection and the device number.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn mount(&self, mount: Mount) -> io::Result<(OwnedFd, String)> {
        match self.call(&Request::Mount(mount), None)? {
            (Reply::Mounted { device }, Some(descriptor)) => Ok((descriptor, device)),
            _ => Err(unexpected()),
        }
    }

    /// Gives what is to be kept of a session into custody.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn deposit(&self, deposit: Deposit, device: &OwnedFd) -> io::Result<()> {
        self.done(&Request::Deposit(deposit), Some(device.as_fd()))
    }

    /// What is in custody.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn list(&self) -> io::Result<Vec<Deposit>> {
        match self.call(&Request::List, None)? {
            (Reply::Custody(all), _) => Ok(all),
            _ => Err(unexpected()),
        }
    }

    /// The connection of a session in custody.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn take(&self, session: &str) -> io::Result<OwnedFd> {
        match self.call(&Request::Take { session: session.to_owned() }, None)? {
            (Reply::Done, Some(descriptor)) => Ok(descriptor),
            _ => Err(unexpected()),
        }
    }

    /// Shows a session at a target.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn bind(&self, bind: Bind) -> io::Result<()> {
        self.done(&Request::Bind(bind), None)
    }

    /// Removes what is shown at a target, and the target.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn unbind(&self, target: &Path) -> io::Result<()> {
        self.done(&Request::Unbind { target: target.to_owned() }, None)
    }

    /// Unmounts a session and forgets it.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn unmount(&self, session: &str) -> io::Result<()> {
        self.done(&Request::Unmount { session: session.to_owned() }, None)
    }

    /// Whether an engine is there.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn has_engine(&self) -> io::Result<bool> {
        match self.call(&Request::HasEngine, None)? {
            (Reply::Is(there), _) => Ok(there),
            _ => Err(unexpected()),
        }
    }

    /// What is mounted below the target folders.
    ///
    /// # Errors
    /// What the mounter reports.
    pub fn mounts(&self) -> io::Result<Vec<Shown>> {
        match self.call(&Request::Mounts, None)? {
            (Reply::Mounts(all), _) => Ok(all),
            _ => Err(unexpected()),
        }
    }
}

impl Line {
    fn exchange(
        &mut self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Reply, Option<OwnedFd>)> {
        wire::send(&self.socket, request, descriptor)?;
        wire::receive(&self.socket, &mut self.buffer)?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::ConnectionReset, "it closed the connection")
        })
    }
}

fn unexpected() -> io::Error {
    io::Error::other("the mounter gave an answer to another question")
}

impl Processes for Mounter {
    fn process_of(&self, thread: u32) -> u32 {
        match self.call(&Request::ProcessOf { thread }, None) {
            Ok((Reply::Process(process), _)) => process,
            _ => 0,
        }
    }

    fn is_alive(&self, process: u32) -> bool {
        let answer = self.call(&Request::IsAlive { process, and_stays: false }, None);
        // Who cannot be asked about counts as gone: then the close stores the file.
        matches!(answer, Ok((Reply::Is(true), _)))
    }

    fn is_dying(&self, thread: u32) -> bool {
        if thread == 0 {
            return false;
        }
        let question = Request::IsAlive { process: thread, and_stays: true };
        matches!(self.call(&question, None), Ok((Reply::Is(false), _)))
    }

    fn holds(&self, process: u32, file: &FileId<'_>) -> bool {
        let question = Request::Holds {
            process,
            device: file.device.to_owned(),
            ino: file.ino,
            name: file.name.to_owned(),
        };
        matches!(self.call(&question, None), Ok((Reply::Is(true), _)))
    }
}

/// The privileged side of one session's connection.
pub struct SessionPort {
    /// Who does it.
    pub mounter: Arc<Mounter>,
    /// For which session.
    pub session: String,
}

impl KernelPort for SessionPort {
    fn open_backing(&self, file: &File) -> io::Result<u32> {
        let request = Request::OpenBacking { session: self.session.clone() };
        match self.mounter.call(&request, Some(file.as_fd()))? {
            (Reply::Backing(id), _) => Ok(id),
            _ => Err(unexpected()),
        }
    }

    fn close_backing(&self, id: u32) {
        let request = Request::CloseBacking { session: self.session.clone(), id };
        if let Err(error) = self.mounter.done(&request, None) {
            tracing::debug!(%error, id, "backing id not closed");
        }
    }
}
