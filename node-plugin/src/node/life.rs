//! The life of a session: one task for each, to which all that happens comes as messages, one after
//! the other.
//!
//! ```text
//!            publish           mounted            last unpublish
//!   absent ----------> mounting -------> served ------------------> draining ---> ended
//!      ^                  |                ^  <---------------------   |             |
//!      |     it fails     |                |         publish           |             |
//!      +------------------+             adoption           all stored, or time is up |
//!      +-----------------------------------------------------------------------------+
//! ```
//!
//! A connection that is lost, whenever, leads to *ended*. While it drains a session hears on: who
//! publishes it again has it at once. Each step has an end: what the world does is bounded in time.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use weir_csi::Error;

use super::mailbox::Mailbox;
use super::record::Published;

#[cfg(test)]
mod tests;

/// Why sessions are cleared away.
const CONNECTION_ENDED: &str = "its connection has ended";
const UNMOUNTED: &str = "somebody has unmounted it everywhere";
const NOT_SHOWN: &str = "it could not be shown";
const NOT_KEPT: &str = "the mounter could not keep that it is shown";

/// A session that is served, as its task sees it.
pub(super) trait Live: Send + Sync + 'static {
    /// Where it is shown.
    fn targets(&self) -> Vec<(PathBuf, Published)>;
    /// Notes that it is shown at a target.
    fn shown(&self, target: PathBuf, published: Published);
    /// Notes that it is not shown there any more; says whether it is shown nowhere.
    fn hidden(&self, target: &Path) -> bool;
    /// Whether its connection is gone.
    fn has_ended(&self) -> bool;
}

/// What the tasks of sessions do to everything else. Each call ends within a bounded time.
#[async_trait]
pub(super) trait World: Send + Sync + 'static {
    /// A session.
    type Session: Live;
    /// What one is made of.
    type Volume: Send + Sync;

    /// Mounts one.
    async fn make(&self, id: &str, volume: &Self::Volume) -> Result<Arc<Self::Session>, Error>;
    /// Serves one on that an earlier run left, or ends it, which `None` says.
    async fn adopt(&self, id: &str) -> Option<Arc<Self::Session>>;
    /// Uses the credentials that a publish brings from now on, if they are new.
    async fn refresh(&self, session: &Arc<Self::Session>, volume: &Self::Volume);
    /// Answers a publish at a target that shows the session already.
    fn published_again(
        &self,
        session: &Arc<Self::Session>,
        before: &Published,
        wanted: &Wanted<Self::Volume>,
    ) -> Result<(), Error>;
    /// Shows it at a target. NotConnected says that it is mounted no more.
    async fn show(
        &self,
        session: &Arc<Self::Session>,
        wanted: &Wanted<Self::Volume>,
    ) -> io::Result<()>;
    /// Removes what is shown at a target.
    async fn hide(&self, target: &Path) -> io::Result<()>;
    /// Gives what has changed of it into custody.
    async fn keep(&self, session: &Arc<Self::Session>) -> io::Result<()>;
    /// As [`World::keep`], where the session goes on if that fails: the next engine finds which targets
    /// show it no more, and a mounter that is back is told of all again.
    async fn keep_if_possible(&self, id: &str, session: &Arc<Self::Session>) {
        if let Err(error) = self.keep(session).await {
            tracing::error!(session = id, %error, "the mounter does not know of a change");
        }
    }
    /// Waits for what is not stored; says whether the session is to end now.
    async fn store(&self, session: &Arc<Self::Session>) -> Result<(), Error>;
    /// Ends one that is shown nowhere.
    async fn end(&self, session: &Arc<Self::Session>) -> Result<(), Error>;
    /// Ends one that is of no use any more, and tells those who were shown it.
    async fn clear(&self, session: &Arc<Self::Session>, why: &str);

    /// The session that was noted last, if it is there: of a task before, which has panicked.
    fn noted(&self, id: &str) -> Option<Arc<Self::Session>>;
    /// Notes that a session is there, or is not.
    fn note(self: &Arc<Self>, id: &str, session: Option<&Arc<Self::Session>>);
    /// Notes that a publish has been answered.
    fn answered(&self, target: &Path, is_shown: bool);
    /// Notes that a target shows nothing any more.
    fn released(&self, target: &Path);
}

/// What a publish asks for.
pub(super) struct Wanted<V> {
    pub(super) target: PathBuf,
    pub(super) published: Published,
    pub(super) volume: V,
}

/// Takes an answer.
pub(super) type Reply = oneshot::Sender<Result<(), Error>>;

/// What happens to a session.
pub(super) enum Message<V> {
    /// It is to be shown.
    Publish(Box<Wanted<V>>, Reply),
    /// It is to be shown at this target no more.
    Unpublish(PathBuf, Reply),
    /// It is in custody.
    Adopt(Reply),
    /// The mounter knows nothing of it any more.
    Keep(Reply),
    /// Its connection has ended.
    Lost,
}

/// Where a session is in its life.
enum State<W: World> {
    Absent,
    Served(Arc<W::Session>),
    Draining(Draining<W>),
}

/// A session that is shown nowhere and whose bytes are being stored.
struct Draining<W: World> {
    session: Arc<W::Session>,
    /// Targets whose unpublish was not answered well yet.
    targets: BTreeSet<PathBuf>,
    /// Who waits for the end.
    waiting: Vec<Reply>,
    /// Nothing is waited for while nobody waits.
    storing: Option<BoxFuture<'static, Result<(), Error>>>,
}

impl<W: World> Draining<W> {
    async fn stored(&mut self) -> Result<(), Error> {
        match &mut self.storing {
            Some(storing) => {
                let stored = storing.await;
                self.storing = None;
                stored
            }
            None => std::future::pending().await,
        }
    }

    fn answer(&mut self, answer: &Result<(), Error>) {
        for reply in self.waiting.drain(..) {
            // Who asked may have gone: kubelet asks again.
            let _ = reply.send(answer.clone());
        }
    }
}

/// The task of one session.
pub(super) struct Life<W: World> {
    world: Arc<W>,
    id: String,
    state: State<W>,
}

/// What a task wakes for.
enum Event<V> {
    Message(Message<V>),
    Stored(Result<(), Error>),
}

impl<W: World> Life<W> {
    /// Lives until the session is absent and nobody asks for it.
    pub(super) async fn run(world: Arc<W>, id: String, mut mailbox: Mailbox<W::Volume>) {
        let state = world.noted(&id).map_or(State::Absent, State::Served);
        let mut life = Self { world, id, state };
        while let Some(event) = life.next(&mut mailbox).await {
            match event {
                Event::Message(message) => life.take(message).await,
                Event::Stored(stored) => life.stored(stored).await,
            }
        }
    }

    async fn next(&mut self, mailbox: &mut Mailbox<W::Volume>) -> Option<Event<W::Volume>> {
        match &mut self.state {
            State::Absent => mailbox.next_or_leave().map(Event::Message),
            State::Served(_) => mailbox.next().await.map(Event::Message),
            State::Draining(draining) => tokio::select! {
                message = mailbox.next() => message.map(Event::Message),
                stored = draining.stored() => Some(Event::Stored(stored)),
            },
        }
    }

    async fn take(&mut self, message: Message<W::Volume>) {
        match message {
            Message::Publish(wanted, reply) => {
                let done = match reply.is_closed() {
                    // Kubelet asks again, with newer keys.
                    true => Err(Error::Unavailable("nobody waits for it any more".into())),
                    false => self.publish(&wanted).await,
                };
                self.world.answered(&wanted.target, self.shows(&wanted.target));
                let _ = reply.send(done);
            }
            Message::Unpublish(target, reply) => self.unpublish(target, reply).await,
            Message::Adopt(reply) => {
                if matches!(self.state, State::Absent)
                    && let Some(session) = self.world.adopt(&self.id).await
                {
                    self.enter(session);
                }
                let _ = reply.send(Ok(()));
            }
            Message::Keep(reply) => {
                if let Some(session) = self.session().cloned() {
                    self.world.keep_if_possible(&self.id, &session).await;
                }
                let _ = reply.send(Ok(()));
            }
            Message::Lost => self.clear_if_ended().await,
        }
    }

    fn session(&self) -> Option<&Arc<W::Session>> {
        match &self.state {
            State::Absent => None,
            State::Served(session) | State::Draining(Draining { session, .. }) => Some(session),
        }
    }

    fn shows(&self, target: &Path) -> bool {
        let targets = self.session().map(|session| session.targets()).unwrap_or_default();
        targets.iter().any(|(path, _)| path == target)
    }

    fn enter(&mut self, session: Arc<W::Session>) {
        self.world.note(&self.id, Some(&session));
        self.state = State::Served(session);
    }

    /// Leaves the session behind. Those who waited for its end have it.
    fn leave(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Absent);
        self.world.note(&self.id, None);
        if let State::Draining(mut draining) = state {
            draining.targets.iter().for_each(|target| self.world.released(target));
            draining.answer(&Ok(()));
        }
    }

    async fn clear_if_ended(&mut self) {
        if self.session().is_some_and(|session| session.has_ended()) {
            self.clear(CONNECTION_ENDED).await;
        }
    }

    async fn clear(&mut self, why: &str) {
        let Some(session) = self.session().cloned() else { return };
        self.world.clear(&session, why).await;
        for (target, _) in session.targets() {
            self.world.released(&target);
        }
        self.leave();
    }

    async fn mount(&mut self, volume: &W::Volume) -> Result<Arc<W::Session>, Error> {
        let session = self.world.make(&self.id, volume).await?;
        self.enter(session.clone());
        Ok(session)
    }

    async fn publish(&mut self, wanted: &Wanted<W::Volume>) -> Result<(), Error> {
        self.clear_if_ended().await;
        let mut session = match self.session().cloned() {
            None => self.mount(&wanted.volume).await?,
            Some(session) => {
                // Whatever else it asks for: who republishes has newer keys.
                self.world.refresh(&session, &wanted.volume).await;
                let known = session.targets().into_iter().find(|(path, _)| *path == wanted.target);
                if let Some((_, before)) = known {
                    return self.world.published_again(&session, &before, wanted);
                }
                session
            }
        };
        let mut shown = self.world.show(&session, wanted).await;
        if shown.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotConnected) {
            self.clear(UNMOUNTED).await;
            session = self.mount(&wanted.volume).await?;
            shown = self.world.show(&session, wanted).await;
        }
        if let Err(error) = shown {
            if matches!(self.state, State::Served(_)) && session.targets().is_empty() {
                self.clear(NOT_SHOWN).await;
            }
            let target = wanted.target.display();
            return Err(Error::Internal(format!("showing {target}: {error}")));
        }
        session.shown(wanted.target.clone(), wanted.published.clone());
        if let Err(error) = self.world.keep(&session).await {
            self.take_back(&session, &wanted.target).await;
            let target = wanted.target.display();
            return Err(Error::Internal(format!("noting that {target} is shown: {error}")));
        }
        self.serve_again(session);
        Ok(())
    }

    /// Shows it no more at a target of which the next engine would not know.
    async fn take_back(&mut self, session: &Arc<W::Session>, target: &Path) {
        if let Err(error) = self.world.hide(target).await {
            // Kubelet asks for it again, or has it taken away.
            tracing::warn!(target = %target.display(), %error, "still shown");
        }
        if session.hidden(target) && matches!(self.state, State::Served(_)) {
            self.clear(NOT_KEPT).await;
        }
    }

    /// Serves a session whose end had begun.
    fn serve_again(&mut self, session: Arc<W::Session>) {
        let state = std::mem::replace(&mut self.state, State::Served(session));
        let State::Draining(mut draining) = state else { return };
        let given_up = draining.targets.iter().filter(|target| !self.shows(target));
        given_up.for_each(|target| self.world.released(target));
        // They are shown it no more, and its bytes have an owner.
        draining.answer(&Ok(()));
    }

    async fn unpublish(&mut self, target: PathBuf, reply: Reply) {
        if let Err(error) = self.world.hide(&target).await {
            let text = format!("removing {}: {error}", target.display());
            let _ = reply.send(Err(Error::Internal(text)));
            return;
        }
        let Some(session) = self.session().cloned() else {
            self.world.released(&target);
            let _ = reply.send(Ok(()));
            return;
        };
        if !session.hidden(&target) {
            self.world.keep_if_possible(&self.id, &session).await;
            self.world.released(&target);
            let _ = reply.send(Ok(()));
            return;
        }
        self.drain(session, target, reply);
    }

    /// Begins the end, or waits for it again.
    fn drain(&mut self, session: Arc<W::Session>, target: PathBuf, reply: Reply) {
        let mut draining = match std::mem::replace(&mut self.state, State::Absent) {
            State::Draining(draining) => draining,
            State::Absent | State::Served(_) => Draining {
                session: session.clone(),
                targets: BTreeSet::new(),
                waiting: Vec::new(),
                storing: None,
            },
        };
        draining.targets.insert(target);
        draining.waiting.push(reply);
        let world = self.world.clone();
        draining
            .storing
            .get_or_insert_with(|| Box::pin(async move { world.store(&session).await }));
        self.state = State::Draining(draining);
    }

    /// What was waited for is over.
    async fn stored(&mut self, stored: Result<(), Error>) {
        let State::Draining(draining) = &mut self.state else { return };
        if stored.is_err() {
            draining.answer(&stored);
            return;
        }
        let session = draining.session.clone();
        let ended = self.world.end(&session).await;
        match (ended, &mut self.state) {
            (Ok(()), _) => self.leave(),
            (refused, State::Draining(draining)) => draining.answer(&refused),
            (Err(_), State::Absent | State::Served(_)) => {}
        }
    }
}
