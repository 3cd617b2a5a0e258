//! A thread for each connection, and one that watches for orphans.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SocketFlags;
use weir_fuse::adapter::mount::{self, MountOptions};
use weir_fuse::adapter::passthrough::DevFusePort;
use weir_fuse::engine::kernel::KernelPort;

use super::custody::Custody;
use super::protocol::{Bind, Mount, Reply, Request, Shown, VERSION};
use super::roots::{Place, Roots};
use super::{process, wire};

/// Connections served at once.
const CONNECTIONS_MAX: usize = 64;
/// How often orphans are looked for.
const WATCH_EVERY: Duration = Duration::from_millis(500);

struct Mounter {
    roots: Roots,
    custody: Custody,
}

/// Serves until the listener fails.
///
/// # Errors
/// What accept reports.
pub(super) fn run(listener: &OwnedFd, roots: Roots, custody: Custody) -> io::Result<()> {
    let mounter = Arc::new(Mounter { roots, custody });
    let watched = mounter.clone();
    std::thread::Builder::new().name("orphans".into()).spawn(move || watched.watch())?;
    loop {
        let accept = || rustix::net::accept_with(listener, SocketFlags::CLOEXEC);
        let connection = rustix::io::retry_on_intr(accept)?;
        if Arc::strong_count(&mounter) > CONNECTIONS_MAX + 2 {
            tracing::warn!("too many connections; one is refused");
            continue;
        }
        let mounter = mounter.clone();
        std::thread::Builder::new()
            .name("connection".into())
            .spawn(move || mounter.converse(&connection))?;
    }
}

impl Mounter {
    fn watch(&self) {
        loop {
            std::thread::sleep(WATCH_EVERY);
            for session in self.custody.take_orphans() {
                tracing::error!(session, "no engine came for this session; its connection ends");
                if let Err(error) = self.end(&session, true) {
                    tracing::error!(session, %error, "an orphan could not be unmounted");
                }
            }
        }
    }

    fn converse(&self, connection: &OwnedFd) {
        let mut buffer = Vec::new();
        let mut number = None;
        let mut visits = false;
        loop {
            let (request, descriptor) = match wire::receive::<Request>(connection, &mut buffer) {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "a connection ends");
                    break;
                }
            };
            let answered = match (&request, number) {
                (Request::Hello { engine, .. }, None) => connection.try_clone().map(|copy| {
                    number = Some(self.custody.attach(engine, copy));
                    (Reply::Hello { version: VERSION }, None)
                }),
                (Request::Visit { .. }, None) => {
                    visits = true;
                    Ok((Reply::Hello { version: VERSION }, None))
                }
                (_, None) if visits => self.answer_visitor(request),
                (_, None) => Err(io::Error::other("the first message must be Hello or Visit")),
                _ => self.answer(request, descriptor),
            };
            let (reply, descriptor) = answered.unwrap_or_else(|error| {
                let failed = Reply::Failed { errno: error.raw_os_error(), text: error.to_string() };
                (failed, None)
            });
            if wire::send(connection, &reply, descriptor.as_ref().map(AsFd::as_fd)).is_err() {
                break;
            }
        }
        if let Some(number) = number {
            self.custody.detach(number);
        }
    }

    fn answer(
        &self,
        request: Request,
        descriptor: Option<OwnedFd>,
    ) -> io::Result<(Reply, Option<OwnedFd>)> {
        if let Some(reply) = process::answer(&request) {
            return Ok((reply, None));
        }
        let reply = match request {
            Request::Mount(mount) => return self.mount(&mount),
            Request::Take { session } => {
                return Ok((Reply::Done, Some(self.custody.device(&session)?)));
            }
            Request::Deposit(deposit) => {
                self.custody.deposit(deposit, descriptor)?;
                Reply::Done
            }
            Request::List => Reply::Custody(self.custody.list()),
            Request::Bind(bind) => self.bind(&bind)?,
            Request::Unbind { target } => self.unbind(&target)?,
            Request::Unmount { session } => {
                self.custody.forget(&session);
                self.end(&session, false)?;
                Reply::Done
            }
            Request::OpenBacking { session } => {
                let file = descriptor.ok_or_else(|| io::Error::other("no file came along"))?;
                let port = DevFusePort::new(self.custody.device(&session)?);
                Reply::Backing(port.open_backing(&File::from(file))?)
            }
            Request::CloseBacking { session, id } => {
                // Of a session that is gone, the kernel has closed them.
                if let Ok(device) = self.custody.device(&session) {
                    DevFusePort::new(device).close_backing(id);
                }
                Reply::Done
            }
            Request::Mounts => Reply::Mounts(self.shown()?),
            Request::HasEngine => Reply::Is(self.custody.has_engine()),
            Request::Hello { .. } | Request::Visit { .. } => {
                return Err(io::Error::other("Hello was said already"));
            }
            Request::ProcessOf { .. } | Request::IsAlive { .. } | Request::Holds { .. } => {
                return Err(io::Error::other("a question without an answer"));
            }
        };
        Ok((reply, None))
    }

    fn answer_visitor(&self, request: Request) -> io::Result<(Reply, Option<OwnedFd>)> {
        match request {
            Request::Unbind { .. } if self.custody.has_engine() => {
                Err(io::Error::other("an engine is there: it is the one to do that"))
            }
            Request::HasEngine | Request::Mounts | Request::Unbind { .. } => {
                self.answer(request, None)
            }
            _ => Err(io::Error::other("visitors may not ask that")),
        }
    }

    fn mount(&self, wanted: &Mount) -> io::Result<(Reply, Option<OwnedFd>)> {
        if self.custody.has(&wanted.session) {
            let text = format!("session {} is mounted already", wanted.session);
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let place = self.roots.session(&wanted.session, true)?;
        // What an earlier run left here serves nobody: nobody holds its connection.
        while place.unmount(true).is_ok() {}
        let folder = place.folder()?;
        let options = MountOptions {
            source: wanted.source.clone(),
            mountpoint: PathBuf::from(Place::path_of(&folder)),
            allow_other: true,
            read_only: false,
            selinux_context: wanted.selinux_context.clone(),
        };
        let device = mount::mount_device(&options).map_err(io::Error::other)?;
        let number = mount::device_of(&self.roots.session_path(&wanted.session));
        if let Some(number) = &number {
            mount::set_read_ahead(number);
        }
        self.custody.keep(&wanted.session, device.try_clone()?);
        Ok((Reply::Mounted { device: number.unwrap_or_default() }, Some(device)))
    }

    fn bind(&self, wanted: &Bind) -> io::Result<Reply> {
        let session = self.roots.session(&wanted.session, false)?;
        let from = session.folder()?;
        let target = self.roots.target(&wanted.target, true)?;
        target.bind(&from, wanted.read_only)?;
        Ok(Reply::Done)
    }

    fn unbind(&self, path: &std::path::Path) -> io::Result<Reply> {
        let target = match self.roots.target(path, false) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Reply::Done),
            Err(error) => return Err(error),
        };
        // Each bind on top of another one, if a publish was repeated.
        while self.shown()?.iter().any(|shown| shown.target == path) {
            target.unmount(false)?;
        }
        target.remove()?;
        Ok(Reply::Done)
    }

    fn end(&self, session: &str, force: bool) -> io::Result<()> {
        let place = match self.roots.session(session, false) {
            Ok(place) => place,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        while place.unmount(force).is_ok() {}
        place.remove()
    }

    fn shown(&self) -> io::Result<Vec<Shown>> {
        let table = mount::mount_table()?;
        let sessions: Vec<(String, String)> = table
            .iter()
            .filter_map(|e| Some((e.device.clone(), self.roots.session_at(&e.mountpoint)?)))
            .collect();
        let of = |device: &str| sessions.iter().find(|(d, _)| d == device).map(|(_, s)| s.clone());
        let targets = table.into_iter().filter(|e| self.roots.is_target(&e.mountpoint));
        Ok(targets.map(|e| Shown { session: of(&e.device), target: e.mountpoint }).collect())
    }
}
