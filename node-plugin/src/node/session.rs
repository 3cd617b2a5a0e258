//! One FUSE session of the node: mounted by the mounter, served here, shown at any number of
//! targets.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use weir_csi::Error;
use weir_fuse::adapter::{self, Door, Handshake};
use weir_fuse::cache::{Held, Preference};
use weir_fuse::engine::end::UnstoredFile;
use weir_fuse::engine::{Engine, Session};
use weir_fuse::model::version::BucketId;
use weir_fuse::namespace::first_ino;
use weir_fuse::origin::Origin;
use weir_fuse::origin::measured::LastAnswer;

use super::credentials::{Rotating, Source};
use super::ending::Ending;
use super::record::{Published, Record, Request};
use super::sts::Sts;
use super::volume::Volume;
use crate::assembly;
use crate::exit::{Failure, Kind};
use crate::kubernetes::events::Subject;
use crate::mount::preflight;
use crate::mounter::client::{Mounter, SessionPort};
use crate::mounter::protocol::{Deposit, Mount};

/// How long the end of a session waits for what is being stored, where nobody asks again.
pub(super) const STORE_PATIENCE: Duration = Duration::from_secs(10);

/// What a session is made with.
pub(super) struct Maker {
    pub(super) engine: Arc<Engine>,
    pub(super) mounter: Arc<Mounter>,
    pub(super) sts: Sts,
}

/// The other end of a session.
struct Remote {
    source: String,
    rotating: Arc<Rotating>,
    last: Arc<LastAnswer>,
}

/// A session that is served.
pub(super) struct Served {
    pub(super) id: String,
    source: String,
    session: Arc<Session>,
    bucket: BucketId,
    remote: Remote,
    device: OwnedFd,
    handshake: Handshake,
    generation: u16,
    record: Mutex<Record>,
    door: Arc<Door>,
    /// What is known of its end.
    pub(super) ending: Ending,
    /// Whether its connection is gone.
    ended: Arc<AtomicBool>,
}

/// A failure in the terms of CSI.
pub(crate) fn failed(failure: Failure) -> Error {
    let text = failure.text.replace("--", "");
    match failure.kind {
        Kind::Usage => Error::Invalid(text),
        Kind::Credentials => Error::Denied(text),
        Kind::Bucket => Error::NotFound(text),
        Kind::Endpoint => Error::Unavailable(text),
        Kind::Other | Kind::Mountpoint | Kind::Cache | Kind::Kernel => Error::Internal(text),
    }
}

impl Maker {
    async fn origin(&self, volume: &Volume) -> Result<(Arc<dyn Origin>, Remote), Error> {
        let rotating = Rotating::new(volume.credentials.clone(), self.sts.clone());
        let mut settings = volume.s3.clone();
        if volume.credentials != Source::Driver {
            let provider: Arc<dyn ProvideCredentials> = rotating.clone();
            settings.credentials = Some(SharedCredentialsProvider::new(provider));
        }
        let explained = |error| failed(preflight::explain(&error, &volume.s3));
        let (origin, last) =
            assembly::origin(settings, &self.engine.metrics).await.map_err(explained)?;
        Ok((origin, Remote { source: volume.source(), rotating, last }))
    }

    /// Mounts a session after a look at its bucket.
    ///
    /// # Errors
    /// What is wrong, as the volume's user can mend it.
    pub(super) async fn make(
        &self,
        id: &str,
        volume: &Volume,
        request: Request,
    ) -> Result<Served, Error> {
        let (origin, remote) = self.origin(volume).await?;
        preflight::check_bucket(&*origin, &volume.s3, &volume.session.names.prefix)
            .await
            .map_err(failed)?;
        let mount = Mount {
            session: id.to_owned(),
            source: volume.source(),
            selinux_context: volume.selinux_context.clone(),
        };
        let internal = |e: io::Error| Error::Internal(format!("mounting {}: {e}", volume.source()));
        let (device, number) =
            tokio::task::block_in_place(|| self.mounter.mount(mount)).map_err(internal)?;
        let mut settings = volume.session.clone();
        settings.names.mount = format!("{:032x}", rand::random::<u128>());
        let mount = settings.names.mount.clone();
        let record = Record { request, device: number, mount, targets: Default::default() };
        let session = Session::new(self.engine.clone(), origin, settings);
        let served = self.serve(id, session, remote, device, None, (1, record));
        served.map_err(|error| {
            let _ = self.mounter.unmount(id);
            internal(error)
        })
    }

    /// Serves a session that an earlier run of the node left.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) async fn adopt(
        &self,
        deposit: Deposit,
        record: Record,
        volume: &Volume,
    ) -> Result<Served, Error> {
        let (origin, remote) = self.origin(volume).await?;
        let generation = deposit.generation.saturating_add(1);
        let mut settings = volume.session.clone();
        settings.names.first_ino = first_ino(generation);
        settings.names.mount.clone_from(&record.mount);
        let session = Session::new(self.engine.clone(), origin, settings);
        let internal =
            |e: io::Error| Error::Internal(format!("taking over {}: {e}", deposit.session));
        let device = self.mounter.take(&deposit.session).map_err(internal)?;
        let before = Some(deposit.handshake);
        self.serve(&deposit.session, session, remote, device, before, (generation, record))
            .map_err(internal)
    }

    fn serve(
        &self,
        id: &str,
        session: Arc<Session>,
        remote: Remote,
        device: OwnedFd,
        before: Option<Handshake>,
        (generation, record): (u16, Record),
    ) -> io::Result<Served> {
        session.set_device(&record.device);
        let port = SessionPort { mounter: self.mounter.clone(), session: id.to_owned() };
        let kept = device.try_clone()?;
        let adopted = before.clone();
        let keep = |served: &Served| self.mounter.deposit(served.deposit(), &served.device);
        if let Some(handshake) = adopted {
            // Before it answers anything: the next engine must count this one.
            let text = serde_json::to_string(&record).map_err(io::Error::other)?;
            let session = id.to_owned();
            let deposit = Deposit { session, handshake, generation, record: text };
            self.mounter.deposit(deposit, &kept)?;
        }
        let serving = tokio::task::block_in_place(|| {
            adapter::serve(&session, device, before, Arc::new(port))
        })?;
        let served = Served {
            id: id.to_owned(),
            source: remote.source.clone(),
            bucket: session.bucket().clone(),
            session,
            remote,
            device: kept,
            handshake: serving.handshake.clone(),
            generation,
            record: Mutex::new(record),
            door: serving.door.clone(),
            ending: Ending::default(),
            ended: Arc::default(),
        };
        tracing::info!(session = id, generation, passthrough = serving.passthrough, "serving");
        let (name, ended) = (id.to_owned(), served.ended.clone());
        std::thread::Builder::new().name("weir-session".into()).spawn(move || {
            match serving.join() {
                Ok(()) => tracing::info!(session = name, "unmounted"),
                Err(error) => tracing::error!(session = name, %error, "serving ended"),
            }
            ended.store(true, Ordering::Release);
        })?;
        keep(&served)?;
        Ok(served)
    }
}

impl Served {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deposit(&self) -> Deposit {
        Deposit {
            session: self.id.clone(),
            handshake: self.handshake.clone(),
            generation: self.generation,
            // A map of strings always is JSON.
            record: serde_json::to_string(&*self.record()).unwrap_or_default(),
        }
    }

    /// Gives what is to be kept into custody again.
    ///
    /// # Errors
    /// What the mounter reports.
    pub(super) fn keep(&self, mounter: &Mounter) -> io::Result<()> {
        mounter.deposit(self.deposit(), &self.device)
    }

    /// Whether its connection is gone: unmounted, or ended by an administrator.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// How its requests come in.
    pub(super) fn door(&self) -> &Door {
        &self.door
    }

    /// Where it is shown.
    pub(super) fn targets(&self) -> Vec<(PathBuf, Published)> {
        let record = self.record();
        record.targets.iter().map(|(path, p)| (path.clone(), p.clone())).collect()
    }

    /// Notes that it is shown at a target.
    pub(super) fn shown(&self, target: PathBuf, published: Published) {
        self.ending.cancel();
        self.record().targets.insert(target, published);
    }

    /// Notes that it is not shown there any more; says whether it is shown nowhere.
    pub(super) fn hidden(&self, target: &std::path::Path) -> bool {
        let mut record = self.record();
        let removed = record.targets.remove(target);
        let nowhere = record.targets.is_empty();
        if let (true, Some(removed)) = (nowhere, removed) {
            self.ending.begin(removed.subject);
        }
        nowhere
    }

    /// Whether it is shown nowhere.
    pub(super) fn is_nowhere(&self) -> bool {
        self.record().targets.is_empty()
    }

    /// Uses these credentials from now on; says whether they are new.
    pub(super) fn refresh(&self, volume: &Volume, request: Request) -> bool {
        if !self.remote.rotating.replace(volume.credentials.clone()) {
            return false;
        }
        self.session.credentials_changed(&volume.session.names.access.identity);
        self.record().request = request;
        true
    }

    /// What is mounted, for people.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// What of the cache is its volume's.
    pub(super) fn holds(&self) -> Held {
        let prefix = self.session.settings().names.prefix.as_str().to_owned();
        Held { bucket: self.bucket.clone(), prefix }
    }

    /// Prefers these disks of the cache from now on.
    pub(super) fn prefer(&self, preference: Preference) {
        self.session.prefer(preference);
    }

    /// Whom it is shown to.
    pub(super) fn subjects(&self) -> Vec<Subject> {
        self.record().targets.values().map(|published| published.subject.clone()).collect()
    }

    /// Why the volume is not served as it should be, if it is not.
    pub(super) fn problem(&self) -> Option<String> {
        self.remote.last.problem().map(|error| error.to_string())
    }

    /// Bytes that came from its origin.
    pub(super) fn fetched_bytes(&self) -> u64 {
        self.remote.last.fetched_bytes()
    }

    /// Tries to store what is not, until `until`; tells what is not stored then.
    pub(super) async fn store_all(&self, until: Instant) -> Vec<UnstoredFile> {
        if self.session.store_all(until).await { Vec::new() } else { self.session.unstored() }
    }

    /// Stores or keeps what is left, until `until`, then unmounts; tells what is not stored.
    ///
    /// # Errors
    /// What the mounter reports.
    pub(super) async fn end(
        &self,
        mounter: &Mounter,
        until: Instant,
    ) -> io::Result<Vec<UnstoredFile>> {
        let stored = self.session.shut_down(until).await;
        let unstored = if stored { Vec::new() } else { self.session.unstored() };
        if !stored {
            let files = unstored.len();
            tracing::error!(session = self.id, files, "not everything that was written is stored");
        }
        tokio::task::block_in_place(|| mounter.unmount(&self.id))?;
        Ok(unstored)
    }

    /// Waits for what is being stored, until `until`; open files stay open.
    pub(super) async fn rest(&self, until: Instant) {
        if !self.session.rest(until).await {
            tracing::warn!(session = self.id, "what is being stored is not stored yet");
        }
    }
}
