//! Sends announcements: a run of numbered messages, and heartbeats between them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Client;
use futures_util::StreamExt;

use super::Change;
use super::announcement::{Announcement, MESSAGE_MAX, Role};

/// Bytes of changes in one message.
const CHANGES_BYTES: usize = MESSAGE_MAX / 4;
/// How long the server may take to confirm.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// Heartbeats of a node after its last write: whoever missed that learns so from them. Then it is silent,
/// so that a thousand nodes that write nothing send nothing.
const NODE_BEATS: u32 = 3;

/// Why it is not known that the server has a message.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It was not sent.
    #[error("the NATS client takes nothing more: {0}")]
    Client(String),
    /// Nobody knows.
    #[error("the NATS server did not confirm within {} s", PATIENCE.as_secs())]
    Unconfirmed,
    /// Nobody knows.
    #[error("the connection to the NATS server was lost before it confirmed")]
    Reconnected,
}

/// Announces changes on a subject. What it has sent before it was lost is missing for those who listen,
/// and they notice.
pub struct Publisher {
    client: Client,
    subject: String,
    name: Box<str>,
    role: Role,
    epoch: u64,
    started: Instant,
    relays: Mutex<BTreeMap<Box<str>, Option<u64>>>,
    /// Held while a message is sent, so that they are sent in the order of their numbers.
    run: tokio::sync::Mutex<Run>,
}

#[derive(Default)]
struct Run {
    sequence: u64,
    /// Heartbeats since the last message with changes.
    beats: u32,
    ended: bool,
}

impl Publisher {
    /// Begins a run, with a heartbeat each `every`, for as long as it is there: a third of the time after
    /// which listeners take it for silent. A relay's `name` says what it relays: whoever takes its place
    /// has the same, and no two run at once. It counts as one for the buckets that [`Self::relays`] names.
    pub fn start(
        client: Client,
        subject: &str,
        name: &str,
        role: Role,
        every: Duration,
    ) -> Arc<Self> {
        let publisher = Arc::new(Self {
            client,
            subject: subject.to_owned(),
            name: name.into(),
            role,
            epoch: rand::random(),
            started: Instant::now(),
            relays: Mutex::default(),
            run: tokio::sync::Mutex::default(),
        });
        let weak = Arc::downgrade(&publisher);
        tokio::spawn(async move {
            while let Some(publisher) = weak.upgrade() {
                publisher.beat().await;
                drop(publisher);
                tokio::time::sleep(every).await;
            }
        });
        publisher
    }

    /// Says from now on that all changes of these buckets are relayed; with each, within how many
    /// milliseconds an object that was written there came back as an event, if that was tried.
    pub fn relays(&self, buckets: BTreeMap<Box<str>, Option<u64>>) {
        *self.relays.lock().unwrap_or_else(PoisonError::into_inner) = buckets;
    }

    /// Announces changes. Returns once the server that it is connected to has all of them.
    ///
    /// # Errors
    /// Why that is not known: they are to be announced again.
    pub async fn announce(&self, changes: Vec<Change>) -> Result<(), PublishError> {
        let connects = || self.client.statistics().connects.load(Ordering::Acquire);
        let before = connects();
        let sent = async {
            self.send(changes).await?;
            self.confirmed().await
        };
        // What is given up here before it is sent has a number, and is missed.
        tokio::time::timeout(PATIENCE, sent).await.map_err(|_| PublishError::Unconfirmed)??;
        // What a connection held that was lost is not sent again.
        if connects() == before { Ok(()) } else { Err(PublishError::Reconnected) }
    }

    /// Announces changes, and does not wait for the server.
    ///
    /// # Errors
    /// That the client has ended.
    pub async fn send(&self, changes: Vec<Change>) -> Result<(), PublishError> {
        let mut rest = changes.into_iter().peekable();
        while rest.peek().is_some() {
            let mut bytes = 0;
            let mut message = Vec::new();
            while let Some(change) = rest.peek()
                && bytes < CHANGES_BYTES
            {
                // As they are at their longest: every byte escaped.
                bytes += (change.bucket.len() + change.key.len()) * 6 + 64;
                message.extend(rest.next());
            }
            let mut run = self.run.lock().await;
            run.sequence += 1;
            run.beats = 0;
            self.publish(&run, message, false).await?;
        }
        Ok(())
    }

    /// Notes that something was not announced: who listens notices a gap.
    pub async fn skip(&self) {
        let mut run = self.run.lock().await;
        run.sequence += 1;
        run.beats = 0;
    }

    /// Says goodbye; nothing is to be announced afterwards.
    pub async fn stop(&self) {
        let said = tokio::time::timeout(GOODBYE, async {
            let mut run = self.run.lock().await;
            run.ended = true;
            self.publish(&run, Vec::new(), true).await?;
            self.client.flush().await.map_err(client_error)
        });
        let said = said.await;
        tracing::debug!(?said, "goodbye");
    }

    async fn beat(&self) {
        let mut run = self.run.lock().await;
        let is_idle = self.role == Role::Node && (run.sequence == 0 || run.beats >= NODE_BEATS);
        if run.ended || is_idle {
            return;
        }
        run.beats = run.beats.saturating_add(1);
        if let Err(error) = self.publish(&run, Vec::new(), false).await {
            tracing::warn!(%error, "no heartbeat was sent");
        }
    }

    async fn publish(
        &self,
        run: &Run,
        changes: Vec<Change>,
        goodbye: bool,
    ) -> Result<(), PublishError> {
        let clock = self.started.elapsed().as_millis();
        let message = Announcement {
            clock_ms: u64::try_from(clock).unwrap_or(u64::MAX),
            relays: self.relays.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            goodbye,
            changes,
            ..Announcement::new(&self.name, self.role, self.epoch, run.sequence)
        };
        let sent = self.client.publish(self.subject.clone(), message.to_bytes().into()).await;
        sent.map_err(client_error)
    }

    /// Waits until the server has handled what was sent before. `Client::flush` waits for the socket
    /// alone; a message to ourselves goes the same way behind all others, and comes back from the server.
    async fn confirmed(&self) -> Result<(), PublishError> {
        let inbox = self.client.new_inbox();
        let mut back = self.client.subscribe(inbox.clone()).await.map_err(client_error)?;
        self.client.publish(inbox, bytes::Bytes::new()).await.map_err(client_error)?;
        back.next().await.map(drop).ok_or(PublishError::Unconfirmed)
    }
}

fn client_error(error: impl std::fmt::Display) -> PublishError {
    PublishError::Client(error.to_string())
}
