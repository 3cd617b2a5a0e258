//! What an engine asks for: sessions mounted, shown and ended, each under a lock of its own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_fuse::adapter::mount::{self, MountEntry, MountOptions};
use weir_fuse::adapter::passthrough::DevFusePort;
use weir_fuse::blocking::MayBlock;

use super::backing::Backing;
use super::custody::{Custody, EntryCopy};
use super::locks::Locks;
use super::peers::Peers;
use super::process;
use super::protocol::{Bind, Mount, Reply, Request, TARGETS_PAGE};
use super::roots::{Place, Roots};

/// The mounts of a node.
pub(super) struct Mounts {
    pub(super) roots: Roots,
    pub(super) custody: Custody,
    pub(super) backing: Backing,
    pub(super) locks: Locks,
    pub(super) peers: Peers,
}

type Answer = io::Result<(Reply, Vec<OwnedFd>)>;

fn done(_: ()) -> (Reply, Vec<OwnedFd>) {
    (Reply::Done, Vec::new())
}

fn alone(reply: Reply) -> Answer {
    Ok((reply, Vec::new()))
}

impl Mounts {
    /// Answers an engine that has said who it is.
    ///
    /// # Errors
    /// Why it is not done.
    pub(super) fn answer(&self, request: Request, along: Vec<OwnedFd>) -> Answer {
        if let Some(reply) = process::answer(&MayBlock::own_thread(), &request) {
            return alone(reply);
        }
        match request {
            Request::Mount(mount) => self.locks.hold(&mount.session, || self.mount(&mount)),
            Request::Take { session } => self.custody.take(&session).map(entry),
            Request::Deposit(deposit) => {
                self.roots.session(&deposit.session)?;
                let keep = || self.custody.deposit(&deposit, along);
                self.locks.hold(&deposit.session, keep).map(done)
            }
            Request::Sessions { after } => alone(Reply::Sessions(self.custody.names(&after))),
            Request::Targets { session, after } => {
                alone(Reply::Targets(self.targets_after(&session, &after)?))
            }
            Request::Bind(bind) => self.locks.hold(&bind.session, || self.bind(&bind)).map(done),
            Request::Unbind { target } => self.unbind(&target).map(done),
            Request::Unmount { session, force } => {
                let end = || {
                    let ended = self.end(&session, force);
                    self.custody.forget(&session);
                    ended
                };
                self.locks.hold(&session, end).map(done)
            }
            Request::OpenBacking { session } => {
                let file = along.into_iter().next();
                let file = file.ok_or_else(|| io::Error::other("no file came along"))?;
                alone(Reply::Backing(self.open_backing(&session, file)?))
            }
            Request::CloseBacking { session, id } => {
                // Of a session that is gone, the kernel has closed them.
                if let Ok((device, ids)) = self.custody.connection(&session) {
                    ids.close(&DevFusePort::new(device), id);
                }
                alone(Reply::Done)
            }
            Request::Expire { session, parent, name } => {
                // Of a session that is gone, the kernel has forgotten all.
                if let Some(expired) = self.custody.expired(&session) {
                    expired.add(parent, &name);
                }
                alone(Reply::Done)
            }
            Request::Trial { session, number, under_way } => {
                self.custody.note_trial(&session, number, under_way);
                alone(Reply::Done)
            }
            Request::HasEngine => alone(Reply::Is(self.custody.has_engine())),
            Request::IsShowing => {
                alone(Reply::Is(mount::mount_table()?.iter().any(|entry| self.shows(entry))))
            }
            Request::Hello { .. } | Request::Visit { .. } => {
                Err(io::Error::other("a greeting was said already"))
            }
            Request::ProcessOf { .. } | Request::IsAlive { .. } | Request::Holds { .. } => {
                Err(io::Error::other("a question without an answer"))
            }
        }
    }

    fn mount(&self, wanted: &Mount) -> Answer {
        if self.custody.has(&wanted.session) {
            let text = format!("session {} is mounted already", wanted.session);
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        self.custody.has_room()?;
        let place = self.roots.session(&wanted.session)?;
        place.make()?;
        self.mount_at(&place, wanted).inspect_err(|_| {
            place.abort();
            let _ = place.clear().and_then(|()| place.remove());
        })
    }

    fn mount_at(&self, place: &Place, wanted: &Mount) -> Answer {
        // What an earlier run left here serves nobody: nobody holds its connection.
        place.abort();
        place.clear()?;
        let folder = place.folder()?;
        let options = MountOptions {
            source: wanted.source.clone(),
            mountpoint: PathBuf::from(Place::path_of(&folder)),
            allow_other: true,
            read_only: false,
            selinux_context: wanted.selinux_context.clone(),
        };
        let device = mount::mount_device(&options, folder.as_fd()).map_err(io::Error::other)?;
        let root = place.folder()?;
        let entry = ours(&root)?;
        mount::set_read_ahead(&entry.device);
        self.custody.keep(&wanted.session, device.try_clone()?, root)?;
        Ok((Reply::Mounted { device: entry.device }, vec![device]))
    }

    fn bind(&self, wanted: &Bind) -> io::Result<()> {
        let target = self.roots.target(&wanted.target)?;
        target.check_provenance()?;
        if wanted.replace {
            target.clear()?;
        }
        let root = self.root(&wanted.session)?;
        target.make()?;
        target.show(&root, wanted.read_only)
    }

    /// The root of a session's mount: as a descriptor where this mounter has mounted it; after a
    /// restart what is mounted at its place; else, where somebody has unmounted that, any target that
    /// shows it.
    fn root(&self, session: &str) -> io::Result<Arc<OwnedFd>> {
        let kept = self.custody.root(session)?;
        if let Some(root) = kept.filter(|root| ours(root).is_ok()) {
            return Ok(root);
        }
        let mut places = vec![self.roots.session(session)?];
        let targets = self.targets(session).unwrap_or_default();
        places.extend(targets.iter().filter_map(|target| self.roots.target(target).ok()));
        let found = places.iter().find_map(|place| {
            let root = place.folder().ok()?;
            ours(&root).ok().map(|_| Arc::new(root))
        });
        let root = found.ok_or(rustix::io::Errno::NOTCONN)?;
        self.custody.set_root(session, root.clone());
        Ok(root)
    }

    fn unbind(&self, path: &Path) -> io::Result<()> {
        let target = match self.roots.target(path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        target.clear()?;
        // A directory of another driver, or of nobody, is not ours to remove.
        match target.check_provenance() {
            Ok(()) => target.remove(),
            Err(_) => Ok(()),
        }
    }

    /// Unmounts a session. With `force` its connection ends, wherever it is shown.
    ///
    /// # Errors
    /// What the system reports.
    pub(super) fn end(&self, session: &str, force: bool) -> io::Result<()> {
        #[cfg(test)]
        assert_ne!(session, tests::PANICS);
        let place = self.roots.session(session)?;
        if force {
            let is_mounted = place.mounted().is_ok_and(|mounted| mounted.is_some());
            let targets = if is_mounted { Vec::new() } else { self.targets(session)? };
            place.abort();
            // Any of them ends it for all.
            for target in targets.iter().filter_map(|target| self.roots.target(target).ok()) {
                target.abort();
            }
        }
        place.clear()?;
        place.remove()
    }

    /// Ends the sessions that no engine came for, one after the other: one that comes meanwhile keeps
    /// those that are left, and what it mounts anew.
    pub(super) fn end_orphans(&self) {
        while let Some(session) = self.custody.orphan() {
            self.locks.hold(&session, || {
                if !self.custody.take_orphan(&session) {
                    return;
                }
                tracing::error!(session, "no engine came for this session; its connection ends");
                if let Err(error) = self.end(&session, true) {
                    tracing::error!(session, %error, "an orphan could not be unmounted");
                }
            });
        }
    }

    fn open_backing(&self, session: &str, file: OwnedFd) -> io::Result<u32> {
        let file = self.backing.open(&file)?;
        let (device, ids) = self.custody.connection(session)?;
        ids.open(&DevFusePort::new(device), &file.into())
    }

    /// Ends the connection of a session that an engine wants unmounted by force, whatever is being done
    /// to it meanwhile, and however much to others: whoever waits for it has his error.
    pub(super) fn abort_if_forced(&self, request: &Request) {
        if let Request::Unmount { session, force: true } = request
            && let Ok(place) = self.roots.session(session)
        {
            place.abort();
        }
    }

    /// Whether a mount is a target that shows something of ours.
    fn shows(&self, entry: &MountEntry) -> bool {
        entry.is_ours() && self.roots.is_target(&entry.mountpoint)
    }

    /// Where a session is shown, in order.
    fn targets(&self, session: &str) -> io::Result<Vec<PathBuf>> {
        // Once: that of a full node is long.
        let table = mount::mount_table()?;
        let device_of = |root: Arc<OwnedFd>| {
            let id = mount::mount_id(root.as_fd()).ok()?;
            let entry = table.iter().find(|entry| entry.id == id && entry.is_ours());
            entry.map(|entry| entry.device.clone())
        };
        let kept = self.custody.root(session).ok().flatten();
        let device = match kept.and_then(device_of) {
            Some(device) => Some(device),
            None => self.roots.session(session)?.mounted()?.map(|entry| entry.device),
        };
        let Some(device) = device else { return Ok(Vec::new()) };
        let of_session = |entry: &MountEntry| entry.device == device && self.shows(entry);
        let shown = table.into_iter().filter(of_session);
        let mut targets: Vec<_> = shown.map(|entry| entry.mountpoint).collect();
        targets.sort();
        targets.dedup();
        Ok(targets)
    }

    fn targets_after(&self, session: &str, after: &Path) -> io::Result<Vec<PathBuf>> {
        let targets = self.targets(session)?.into_iter();
        Ok(targets.filter(|target| target.as_path() > after).take(TARGETS_PAGE).collect())
    }
}

/// What is kept, as an answer.
fn entry(copy: EntryCopy) -> (Reply, Vec<OwnedFd>) {
    let EntryCopy { generation, record, keys, device, deaths } = copy;
    let (has_record, has_keys) = (record.is_some(), keys.is_some());
    let reply = Reply::Entry { generation, record: has_record, keys: has_keys, deaths };
    (reply, record.into_iter().chain(keys).chain([device]).collect())
}

/// The mount of ours that a folder is on.
///
/// # Errors
/// ENOTCONN when it is on none: a folder of the node's own disk is shown to nobody.
fn ours(folder: &OwnedFd) -> io::Result<MountEntry> {
    let entry = mount::mount_of(folder.as_fd())?;
    Ok(entry.filter(MountEntry::is_ours).ok_or(rustix::io::Errno::NOTCONN)?)
}

#[cfg(test)]
mod tests;
