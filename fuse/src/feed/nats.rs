//! A feed by way of NATS.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions, Event, Subscriber};
use futures_util::StreamExt;
use rustix::fs::OFlags;

use super::Change;
use super::announcement::Role;
use super::hearing::{FeedStatus, Hearing, Written};
use super::publisher::Publisher;
use super::pulse::Lapse;
use crate::blocking::aside;
use crate::chosen_file;
use crate::metrics::Metrics;

/// Messages that wait for being read; one more is a lapse. It takes a few microseconds to read one.
const WAITING_MAX: usize = 1024;
/// Longest file of credentials or certificates, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// How long a connection may take, and how long it is waited between two tries at the most.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Writes are announced together that come within so long.
const TOGETHER: Duration = Duration::from_millis(10);
/// Most writes that are announced together.
const TOGETHER_MAX: usize = 4096;

/// Where a feed is, and what is made of it. Nothing of it is secret: the credentials are in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FeedSettings {
    /// URLs of servers, any of which will do: without a user, nor a path.
    pub servers: Vec<String>,
    /// What all publish on.
    pub subject: String,
    /// File with the credentials, if there are any.
    pub credentials_file: Option<PathBuf>,
    /// PEM file of the authorities that the servers' certificates may be of, in place of the system's.
    pub ca_bundle: Option<PathBuf>,
    /// How long nothing may be heard.
    pub timeout: Duration,
    /// How long names are taken as true while it lives.
    pub lifetime: Duration,
}

/// Why a feed cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// A file that cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file that is something else.
    #[error("{}: it is neither a credentials file of NATS's nor a line USER:PASSWORD", _0.display())]
    Credentials(PathBuf),
    /// A file that is something else.
    #[error("{}: no certificate is in it: it must be PEM", _0.display())]
    Certificates(PathBuf),
    /// What the client refuses.
    #[error("{0}")]
    Client(String),
}

/// Connects, or goes on trying to: no server has to be there now. `on_event` is told of what happens to
/// the connection.
///
/// # Errors
/// What is wrong with the settings.
pub async fn connect(
    settings: &FeedSettings,
    on_event: impl Fn(&Event) + Send + Sync + 'static,
) -> Result<Client, FeedError> {
    let on_event = Arc::new(on_event);
    let mut options = ConnectOptions::new()
        .name("weir")
        .retry_on_initial_connect()
        .connection_timeout(CONNECT_PATIENCE)
        // A server that is gone without a word is noticed.
        .ping_interval(settings.timeout.max(Duration::from_secs(1)))
        .subscription_capacity(WAITING_MAX)
        .reconnect_delay_callback(|tries| {
            let most = CONNECT_PATIENCE.min(Duration::from_millis(100 << tries.min(6)));
            most.mul_f64(rand::random_range(0.5..=1.0))
        })
        .event_callback(move |event| {
            on_event(&event);
            std::future::ready(())
        });
    if let Some(path) = &settings.ca_bundle {
        if !read(path).await?.contains("-----BEGIN CERTIFICATE-----") {
            return Err(FeedError::Certificates(path.clone()));
        }
        options = options.add_root_certificates(path.clone());
    }
    if let Some(path) = &settings.credentials_file {
        options = with_credentials(options, &read(path).await?)
            .ok_or_else(|| FeedError::Credentials(path.clone()))?;
    }
    let connected = options.connect(settings.servers.clone()).await;
    connected.map_err(|error| FeedError::Client(error.to_string()))
}

async fn read(path: &Path) -> Result<String, FeedError> {
    let of = path.to_owned();
    let read = aside(move |_| chosen_file::read(&of, OFlags::empty(), FILE_MAX)).await;
    let text = read
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| io::Error::other("it is not text")));
    text.map_err(|error| FeedError::File { path: path.to_owned(), error })
}

fn with_credentials(options: ConnectOptions, text: &str) -> Option<ConnectOptions> {
    if text.contains("-----BEGIN") {
        return options.credentials(text).ok();
    }
    let (user, password) = text.trim_end_matches(['\r', '\n']).split_once(':')?;
    let is_line = !user.is_empty() && !password.is_empty() && !password.contains('\n');
    is_line.then(|| options.user_and_password(user.to_owned(), password.to_owned()))
}

/// A feed that is followed, and that this process's own writes are announced on.
pub struct Feed {
    hearing: Arc<Hearing>,
    publisher: Arc<Publisher>,
    servers: Vec<String>,
}

impl Feed {
    /// Begins to follow. `name` is this process's own, which no other has.
    ///
    /// # Errors
    /// What is wrong with the settings.
    pub async fn start(
        settings: FeedSettings,
        name: &str,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, FeedError> {
        let FeedSettings { timeout, lifetime, .. } = settings;
        let (hearing, written) = Hearing::new(name, timeout, lifetime, metrics);
        let (heard, told) = (hearing.clone(), AtomicBool::new(false));
        let client = connect(&settings, move |event| note(&heard, event, &told)).await?;
        let every = timeout / 3;
        let publisher =
            Publisher::start(client.clone(), &settings.subject, name, Role::Node, every);
        tokio::spawn(follow(hearing.clone(), client, settings.subject, every));
        tokio::spawn(announce(publisher.clone(), written));
        Ok(Arc::new(Self { hearing, publisher, servers: settings.servers }))
    }

    /// What is heard.
    pub fn hearing(&self) -> &Arc<Hearing> {
        &self.hearing
    }

    /// How it stands.
    pub fn status(&self) -> FeedStatus {
        self.hearing.status(&self.servers)
    }

    /// Says goodbye to those who listen to what is written here.
    pub async fn stop(&self) {
        // What was written last is announced before.
        tokio::time::sleep(TOGETHER * 2).await;
        self.publisher.stop().await;
    }
}

/// `told` is whether it was said that there is no connection.
fn note(hearing: &Hearing, event: &Event, told: &AtomicBool) {
    match event {
        Event::Connected => {
            told.store(false, Ordering::Relaxed);
            tracing::info!("connected to the feed");
        }
        Event::Disconnected | Event::Closed => {
            tracing::warn!("the connection to the feed is lost: names live for the short lifetime");
            hearing.lapse(Lapse::Disconnected, Instant::now());
        }
        Event::SlowConsumer(_) => hearing.lapse(Lapse::Overflow, Instant::now()),
        Event::ServerError(error) => tracing::warn!(%error, "the feed's server says"),
        Event::ClientError(error) if !told.swap(true, Ordering::Relaxed) => {
            tracing::warn!(%error, "the feed cannot be reached; trying again");
        }
        Event::ClientError(error) => tracing::debug!(%error, "the feed cannot be reached"),
        Event::LameDuckMode | Event::Draining => {}
    }
}

/// Takes what is sent, for ever.
async fn follow(hearing: Arc<Hearing>, client: Client, subject: String, every: Duration) {
    loop {
        match client.subscribe(subject.clone()).await {
            Ok(messages) => hear(&hearing, messages, every).await,
            Err(error) => tracing::error!(%error, subject, "the feed cannot be heard"),
        }
        hearing.lapse(Lapse::Disconnected, Instant::now());
        tokio::time::sleep(CONNECT_PATIENCE).await;
    }
}

async fn hear(hearing: &Hearing, mut messages: Subscriber, every: Duration) {
    let mut looks = tokio::time::interval(every);
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(message) => hearing.take(&message.payload, Instant::now()),
                None => return,
            },
            _ = looks.tick() => hearing.look(Instant::now()),
        }
    }
}

/// Announces what is written here.
async fn announce(publisher: Arc<Publisher>, mut written: Written) {
    let mut changes: Vec<Change> = Vec::new();
    while written.changes.recv_many(&mut changes, TOGETHER_MAX).await > 0 {
        tokio::time::sleep(TOGETHER).await;
        while changes.len() < TOGETHER_MAX
            && let Ok(more) = written.changes.try_recv()
        {
            changes.push(more);
        }
        if written.lost.has_changed().unwrap_or_default() {
            written.lost.mark_unchanged();
            publisher.skip().await;
        }
        // A file that is written again and again is said once.
        changes.sort_unstable();
        changes.dedup();
        if let Err(error) = publisher.send(std::mem::take(&mut changes)).await {
            tracing::warn!(%error, "what is written here is not announced");
            publisher.skip().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_a_file_of_nats_or_a_line_and_nothing_else() {
        let takes = |text: &str| with_credentials(ConnectOptions::new(), text).is_some();
        assert!(takes("user:pass:word\n"));
        for other in ["", "user", ":word", "user:", "a:b\nc:d\n", "-----BEGIN NATS USER JWT-----"] {
            assert!(!takes(other), "{other:?}");
        }
    }
}
