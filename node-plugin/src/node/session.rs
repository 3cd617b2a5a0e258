//! One FUSE session of the node: mounted by the mounter, served here, shown at any number of
//! targets.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use weir_csi::Error;
use weir_fuse::adapter::{self, Door, Handshake};
use weir_fuse::blocking::{MayBlock, WaitingThreads, aside, aside_for_mounts};
use weir_fuse::cache::{Held, Preference};
use weir_fuse::engine::end::UnstoredFile;
use weir_fuse::engine::{Engine, Session};
use weir_fuse::model::version::BucketId;
use weir_fuse::namespace::{AccessSettings, first_ino};
use weir_fuse::origin::Origin;
use weir_fuse::origin::measured::LastAnswer;
use weir_fuse::origin::region::{ProofScope, Regions};

use super::credentials::{Kind, Rotating, Source};
use super::ending::Ending;
use super::exchange::Exchange;
use super::identity;
use super::life::Live;
use super::record::{Published, Record};
use super::volume::{Settings, Volume};
use crate::assembly::{self, Near};
use crate::csi::failed;
use crate::kubernetes::events::Subject;
use crate::mount::preflight::{self, Start};
use crate::mounter::client::{Entry, Mounter, NewEntry, SessionPort};
use crate::mounter::protocol::Mount;

/// How long the end of a session waits for what is being stored, where nobody asks again.
pub(super) const STORE_PATIENCE: Duration = Duration::from_secs(10);

/// Threads that end the connections of sessions that are not served.
const ENDING_THREADS: usize = 8;

/// What a session is made with.
pub(super) struct Maker {
    pub(super) engine: Arc<Engine>,
    pub(super) mounter: Arc<Mounter>,
    exchange: Exchange,
    /// What is before the origins of volumes that name none of their own.
    regions: Option<Arc<Regions>>,
    endings: WaitingThreads,
}

/// The other end of a session.
struct Remote {
    source: String,
    rotating: Arc<Rotating>,
    last: Arc<LastAnswer>,
}

/// A session whose requests are taken.
struct Service {
    session: Arc<Session>,
    remote: Remote,
    serving: adapter::Serving,
}

/// Credentials that take the place of those that a session uses.
pub(super) struct NewKeys {
    credentials: Source,
    /// Who signs with them, where that is somebody else.
    access: Option<AccessSettings>,
}

/// A session that is served.
pub(super) struct Served {
    pub(super) id: String,
    source: String,
    session: Arc<Session>,
    bucket: BucketId,
    remote: Remote,
    device: OwnedFd,
    generation: u16,
    record: Mutex<Record>,
    door: Arc<Door>,
    /// What is known of its end.
    pub(super) ending: Ending,
    /// Whether its connection is gone.
    ended: watch::Receiver<bool>,
    /// Whether its pods were told that it was made with other settings than they would get now.
    told: AtomicBool,
}

impl Maker {
    /// # Errors
    /// When no thread can be started.
    pub(super) fn new(
        engine: Arc<Engine>,
        mounter: Arc<Mounter>,
        exchange: Exchange,
        regions: Option<Arc<Regions>>,
    ) -> io::Result<Self> {
        let endings = WaitingThreads::new("weir-ending", ENDING_THREADS)?;
        Ok(Self { engine, mounter, exchange, regions, endings })
    }

    async fn origin(
        &self,
        settings: &Settings,
        credentials: Option<Source>,
    ) -> Result<(Arc<dyn Origin>, Remote), Error> {
        let rotating = Rotating::new(credentials, self.exchange.clone());
        let mut s3 = settings.s3.clone();
        if settings.source != Kind::Driver {
            let provider: Arc<dyn ProvideCredentials> = rotating.clone();
            s3.credentials = Some(SharedCredentialsProvider::new(provider));
        }
        let explained = |error| failed(preflight::explain(&error, &settings.s3));
        let regions = self.regions.as_deref().filter(|_| settings.near);
        let near = regions.map(|regions| Near { regions, proof: proof(settings) });
        let origin = assembly::origin(s3, &self.engine.metrics, near).await;
        let (origin, last) = origin.map_err(explained)?;
        Ok((origin, Remote { source: settings.source(), rotating, last }))
    }

    /// Mounts a session after a look at its bucket, or without one where that is away and the volume
    /// may begin so.
    ///
    /// # Errors
    /// What is wrong, as the volume's user can mend it.
    pub(super) async fn make(&self, id: &str, volume: &Volume) -> Result<Arc<Served>, Error> {
        let settings = &volume.settings;
        let (origin, remote) = self.origin(settings, Some(volume.credentials.clone())).await?;
        let names = &settings.session.names;
        let wanted = volume.wanted(&self.engine, origin.bucket_id());
        let look = preflight::look(&*origin, &names.prefix);
        let start = wanted.start(look).await.map_err(failed)?;
        let mount = Mount {
            session: id.to_owned(),
            source: settings.source(),
            selinux_context: settings.selinux_context.clone(),
        };
        let internal =
            |e: io::Error| Error::Internal(format!("mounting {}: {e}", settings.source()));
        let (mounter, name) = (self.mounter.clone(), id.to_owned());
        let mounted = aside_for_mounts(move |may| match mounter.mount(may, mount.clone()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Nobody serves it, or it would be known here.
                mounter.end(may, &name)?;
                mounter.mount(may, mount)
            }
            mounted => mounted,
        });
        let (device, number) = mounted.await.map_err(internal)?;
        let mut session = settings.session.clone();
        session.names.mount = format!("{:032x}", rand::random::<u128>());
        let mount = session.names.mount.clone();
        let tenant = tenant([&volume.subject], settings);
        let engine = self.engine.clone();
        let session = Session::new(engine, origin.clone(), session, &tenant).await;
        if let Start::Away(error) = start {
            tracing::warn!(session = id, %error, "the origin is away; beginning with what is cached");
            remote.last.failed(error);
            session.begin_away(preflight::answer(origin, names.prefix.clone()));
        }
        let service = self.begin(id, session, remote, &device, None, &number).await;
        let served = service.and_then(|service| {
            let handshake = service.serving.handshake.clone();
            let record = Record::new(settings.clone(), handshake, number, mount);
            Self::served(id, service, device, 1, record).map(Arc::new)
        });
        let kept = match served {
            Ok(served) => served.keep(&self.mounter).await.map(|()| served),
            Err(error) => Err(error),
        };
        if kept.is_err() {
            // Whoever has looked into it meanwhile must not wait for ever.
            self.abandon(id).await;
        }
        kept.map_err(internal)
    }

    /// Ends the connection of a session that is not served. What keeps it from being served may keep
    /// every other thread, too.
    pub(super) async fn abandon(&self, id: &str) {
        let (mounter, name) = (self.mounter.clone(), id.to_owned());
        let (done, ended) = oneshot::channel();
        self.endings.begin(&Handle::current(), move |may| {
            // Nobody may wait for it any more.
            let _ = done.send(mounter.end(may, &name));
        });
        if let Ok(Err(error)) = ended.await {
            tracing::error!(session = id, %error, "its connection could not be ended");
        }
    }

    /// Serves a session that an earlier run of the node left, as it was made.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) async fn adopt(
        &self,
        id: &str,
        kept: Entry,
        mut record: Record,
    ) -> Result<Served, Error> {
        let credentials = Source::kept(record.settings.source, kept.keys.as_deref());
        if let Some(credentials) = &credentials {
            record.settings.name_as_now(credentials);
        }
        let settings = &record.settings;
        let (origin, remote) = self.origin(settings, credentials).await?;
        let generation = kept.generation.saturating_add(1);
        let mut session = settings.session.clone();
        session.names.first_ino = first_ino(generation);
        session.names.mount.clone_from(&record.mount);
        let subjects = record.targets.values().map(|published| &published.subject);
        let tenant = tenant(subjects, settings);
        let session = Session::new(self.engine.clone(), origin, session, &tenant).await;
        let before = Some(record.handshake.clone());
        let number = record.device.clone();
        let keys = remote.rotating.keys();
        let bytes = record.bytes();
        // Before it answers anything: the next engine must count this one.
        let (mounter, name, device) = (self.mounter.clone(), id.to_owned(), kept.device);
        let deposited = aside(move |may| {
            let (session, record, keys) = (&*name, &*bytes, keys.as_ref());
            let entry = NewEntry { session, generation, record, keys, device: &device };
            mounter.deposit(may, &entry).map(|()| device)
        });
        let internal = |e: io::Error| Error::Internal(format!("taking it over: {e}"));
        let device = deposited.await.map_err(internal)?;
        let service = self.begin(id, session, remote, &device, before, &number).await;
        service
            .and_then(|service| Self::served(id, service, device, generation, record))
            .map_err(internal)
    }

    /// Begins to take a session's requests.
    async fn begin(
        &self,
        id: &str,
        session: Arc<Session>,
        remote: Remote,
        device: &OwnedFd,
        before: Option<Handshake>,
        number: &str,
    ) -> io::Result<Service> {
        session.set_device(number);
        let mounter = self.mounter.clone();
        let port = Arc::new(SessionPort { mounter, session: id.to_owned() });
        let (device, served) = (device.try_clone()?, session.clone());
        let serving =
            aside(move |_| adapter::serve(&served, device, before, port.clone(), Some(port)));
        Ok(Service { session, remote, serving: serving.await? })
    }

    /// A session whose requests are taken, as it is known here.
    fn served(
        id: &str,
        service: Service,
        device: OwnedFd,
        generation: u16,
        record: Record,
    ) -> io::Result<Served> {
        let Service { session, remote, serving } = service;
        let (has_ended, ended) = watch::channel(false);
        let served = Served {
            id: id.to_owned(),
            source: remote.source.clone(),
            bucket: session.bucket().clone(),
            session,
            remote,
            device,
            generation,
            record: Mutex::new(record),
            door: serving.door.clone(),
            ending: Ending::default(),
            ended,
            told: AtomicBool::new(false),
        };
        tracing::info!(session = id, generation, passthrough = serving.passthrough, "serving");
        let name = id.to_owned();
        std::thread::Builder::new().name("weir-session".into()).spawn(move || {
            match serving.join() {
                Ok(()) => tracing::info!(session = name, "unmounted"),
                Err(error) => tracing::error!(session = name, %error, "serving ended"),
            }
            has_ended.send_replace(true);
        })?;
        Ok(served)
    }
}

/// What one word of the origin is good for before bytes of a region are shown, and how long.
fn proof(settings: &Settings) -> (ProofScope, Duration) {
    let scope = match settings.source {
        Kind::Driver => ProofScope::Mount,
        Kind::Secret | Kind::Pod => ProofScope::Version,
    };
    (scope, settings.session.names.permission_lifetime())
}

/// With whom a session shares what it may take of the cache: the namespace of its pods or, where none is
/// known, who has the same credentials.
fn tenant<'a>(subjects: impl IntoIterator<Item = &'a Subject>, settings: &Settings) -> String {
    let mut namespaces = subjects.into_iter().map(|subject| &subject.namespace);
    let namespace = namespaces.find(|namespace| !namespace.is_empty());
    namespace.unwrap_or(&settings.session.names.access.identity).clone()
}

impl Served {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives what is to be kept into custody again.
    ///
    /// # Errors
    /// What the mounter reports.
    pub(super) async fn keep(self: &Arc<Self>, mounter: &Arc<Mounter>) -> io::Result<()> {
        let (served, mounter) = (self.clone(), mounter.clone());
        aside(move |may| served.keep_now(may, &mounter)).await
    }

    /// As [`Served::keep`].
    ///
    /// # Errors
    /// As [`Served::keep`].
    pub(super) fn keep_now(&self, may: &MayBlock, mounter: &Mounter) -> io::Result<()> {
        let keys = self.remote.rotating.keys();
        let entry = NewEntry {
            session: &self.id,
            generation: self.generation,
            record: &self.record().bytes(),
            keys: keys.as_ref(),
            device: &self.device,
        };
        mounter.deposit(may, &entry)
    }

    /// Waits until its connection is gone.
    pub(super) fn until_ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            // Without a sender nobody serves it.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }

    /// How its requests come in.
    pub(super) fn door(&self) -> &Door {
        &self.door
    }

    /// The credentials of a volume that are to be used from now on: new ones that the origin takes. Those
    /// of another kind, or of what its account says otherwise by now, are for the session that the pod
    /// gets when it starts again.
    ///
    /// # Errors
    /// Why new ones are not used. Those before are kept.
    pub(super) async fn newer(
        &self,
        volume: &Volume,
        maker: &Maker,
    ) -> Result<Option<NewKeys>, Error> {
        let settings = self.settings();
        let of_another = settings.source != volume.settings.source
            || settings.annotated != volume.settings.annotated;
        if of_another || self.remote.rotating.is(&volume.credentials) {
            return Ok(None);
        }
        let before = &settings.session.names.access;
        let access = identity::succeeding(before, &volume.settings.session.names.access);
        let credentials = volume.credentials.clone();
        if access.identity == before.identity {
            return Ok(Some(NewKeys { credentials, access: None }));
        }
        let (origin, _) = maker.origin(&settings, Some(credentials.clone())).await?;
        preflight::look(&*origin, &settings.session.names.prefix)
            .await
            .map_err(|unfit| failed(unfit.explain(&settings.s3)))?;
        Ok(Some(NewKeys { credentials, access: Some(access) }))
    }

    /// Uses these credentials from now on. It ends soon, and is to be waited for: requests are signed
    /// with what is allowed to those who sign.
    pub(super) async fn take(&self, keys: NewKeys) {
        self.remote.rotating.replace(keys.credentials);
        if let Some(access) = keys.access {
            self.record().settings.session.names.access = access.clone();
            self.session.credentials_changed(&access).await;
        }
    }

    /// Says whether this is the first time that it is asked.
    pub(super) fn tell_once(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }

    /// What it was made with.
    pub(super) fn settings(&self) -> Settings {
        self.record().settings.clone()
    }

    /// Whether it was made with other settings than these.
    pub(super) fn differs_from(&self, settings: &Settings) -> bool {
        !self.record().settings.serves_as(settings)
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
        let error = self.remote.last.problem()?;
        let advice = "what is cached is read, the rest fails until it answers; check the endpoint \
                      and the network";
        Some(if error.is_outage() { format!("{error}; {advice}") } else { error.to_string() })
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
        mounter: &Arc<Mounter>,
        until: Instant,
    ) -> io::Result<Vec<UnstoredFile>> {
        let stored = self.session.shut_down(until).await;
        let unstored = if stored { Vec::new() } else { self.session.unstored() };
        if !stored {
            let files = unstored.len();
            tracing::error!(session = self.id, files, "not everything that was written is stored");
        }
        let (mounter, id) = (mounter.clone(), self.id.clone());
        aside_for_mounts(move |may| mounter.unmount(may, &id)).await?;
        Ok(unstored)
    }

    /// Waits for what is being stored, until `until`; open files stay open.
    pub(super) async fn rest(&self, until: Instant) {
        if !self.session.rest(until).await {
            tracing::warn!(session = self.id, "what is being stored is not stored yet");
        }
    }
}

impl Live for Served {
    fn targets(&self) -> Vec<(PathBuf, Published)> {
        let record = self.record();
        record.targets.iter().map(|(path, p)| (path.clone(), p.clone())).collect()
    }

    fn shown(&self, target: PathBuf, published: Published) {
        self.ending.cancel();
        self.record().targets.insert(target, published);
    }

    fn hidden(&self, target: &Path) -> bool {
        let mut record = self.record();
        let removed = record.targets.remove(target);
        let nowhere = record.targets.is_empty();
        if let (true, Some(removed)) = (nowhere, removed) {
            self.ending.begin(removed.subject);
        }
        nowhere
    }

    fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pod_may_read_is_asked_for_as_often_as_metadata() {
        let of = |source: &Source| {
            let mut settings = Settings { source: source.kind(), ..Settings::default() };
            settings.session.names.access = identity::access(source, &settings.s3);
            proof(&settings)
        };
        let ttl = Settings::default().session.names.ttl.duration();
        let pod = serde_json::json!({"Pod": {"token": "t", "account": "a/b"}});
        let pod = Source::kept(Kind::Pod, Some(pod.to_string().as_bytes())).unwrap();
        assert_eq!(of(&pod), (ProofScope::Version, ttl));
        let (scope, lifetime) = of(&Source::Driver);
        assert!(scope == ProofScope::Mount && lifetime > ttl);
    }

    #[test]
    fn pods_of_a_namespace_are_one_tenant_and_without_one_who_has_the_same_credentials() {
        let of = |namespace: &str| Subject { namespace: namespace.into(), ..Subject::default() };
        let mut settings = Settings::default();
        settings.session.names.access.identity = "driver 1".into();
        assert_eq!(tenant([&of("a"), &of("b")], &settings), "a");
        assert_eq!(tenant([&of(""), &of("b")], &settings), "b");
        assert_eq!(tenant([&of("")], &settings), "driver 1");
    }
}
