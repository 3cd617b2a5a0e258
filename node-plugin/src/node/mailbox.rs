//! Where messages for sessions come in: a session has a task as long as there is something to it, and
//! no message falls between a task that ends and the next one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::life::{Life, Message, World};

type Senders<V> = Arc<Mutex<HashMap<String, UnboundedSender<Message<V>>>>>;

fn lock<V>(senders: &Senders<V>) -> MutexGuard<'_, HashMap<String, UnboundedSender<Message<V>>>> {
    senders.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The mailboxes of all sessions that have a task.
pub(super) struct Mailboxes<V> {
    senders: Senders<V>,
}

impl<V> Default for Mailboxes<V> {
    fn default() -> Self {
        Self { senders: Arc::default() }
    }
}

/// The mailbox of one session: not longer than there are calls under way.
pub(super) struct Mailbox<V> {
    id: String,
    messages: UnboundedReceiver<Message<V>>,
    senders: Senders<V>,
    has_left: bool,
}

impl<V: Send + Sync + 'static> Mailboxes<V> {
    /// Sends a message to the task of a session, which is begun if there is none.
    pub(super) fn send<W: World<Volume = V>>(&self, world: &Arc<W>, id: &str, message: Message<V>) {
        let mut senders = lock(&self.senders);
        let sender = senders.entry(id.to_owned()).or_insert_with(|| {
            let (sender, messages) = mpsc::unbounded_channel();
            let senders = self.senders.clone();
            let mailbox = Mailbox { id: id.to_owned(), messages, senders, has_left: false };
            tokio::spawn(Life::run(world.clone(), id.to_owned(), mailbox));
            sender
        });
        // Its receiver lives as long as it is in the map.
        let _ = sender.send(message);
    }

    /// Whether no session has a task.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.senders).is_empty()
    }
}

impl<V> Mailbox<V> {
    /// Waits for the next message.
    pub(super) async fn next(&mut self) -> Option<Message<V>> {
        self.messages.recv().await
    }

    /// The next message if one is there; else the mailbox is gone.
    pub(super) fn next_or_leave(&mut self) -> Option<Message<V>> {
        let mut senders = lock(&self.senders);
        // Whoever sends holds the lock.
        let next = self.messages.try_recv().ok();
        if next.is_none() {
            senders.remove(&self.id);
            self.has_left = true;
        }
        next
    }
}

impl<V> Drop for Mailbox<V> {
    /// A task that panics leaves, too: the next message begins another.
    fn drop(&mut self) {
        if !self.has_left {
            lock(&self.senders).remove(&self.id);
        }
    }
}
