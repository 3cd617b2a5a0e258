//! The sessions that earlier runs of the node left: each is served on, or ended. One that is neither
//! would keep its pods waiting for ever, and its volume could not be mounted again.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use weir_csi::Error;
use weir_fuse::blocking::aside;

use super::life::{Live, Message, World};
use super::record::Record;
use super::session::{STORE_PATIENCE, Served};
use super::sessions::{Sessions, lost};
use crate::kubernetes::events::Subject;

/// How long one session may take; its pods wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(8);
/// Sessions that are taken over at once.
const AT_ONCE: usize = 16;
/// A session whose requests, sent again, have ended so many node plugins is served by no other: the
/// other volumes of the node go on.
const DEATHS_MAX: u8 = 2;
/// How often a mounter that is not there is asked what it keeps.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Why a session cannot be served, and whom it was shown to.
struct Refusal {
    why: String,
    subjects: Vec<Subject>,
}

impl Sessions {
    /// Serves what is in custody, and ends what cannot be served. Returns once each is one or the
    /// other; until then nothing may be published. Without a mounter it waits for one.
    pub(super) async fn adopt(self: &Arc<Self>) {
        let names = loop {
            let mounter = self.maker.mounter.clone();
            match aside(move |may| mounter.sessions(may)).await {
                Ok(names) => break names,
                Err(error) => tracing::warn!(%error, "waiting for the mounter"),
            }
            tokio::time::sleep(ASK_EVERY).await;
        };
        let all = names.iter().map(|id| self.ask(id, Message::Adopt));
        stream::iter(all).buffer_unordered(AT_ONCE).for_each(|_| std::future::ready(())).await;
    }

    /// Serves what is in custody of a session, or ends it.
    pub(super) async fn adopt_or_end(&self, id: &str) -> Option<Arc<Served>> {
        let mut subjects = Vec::new();
        let adopting = self.adopt_one(id, &mut subjects);
        let why = match tokio::time::timeout(PATIENCE, adopting).await {
            Ok(Ok(served)) => return served,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it took more than {} s", PATIENCE.as_secs()),
        };
        self.give_up(id, Refusal { why, subjects }).await;
        None
    }

    async fn adopt_one(
        &self,
        id: &str,
        subjects: &mut Vec<Subject>,
    ) -> Result<Option<Arc<Served>>, Error> {
        let internal = |error: io::Error| Error::Internal(error.to_string());
        let (mounter, name) = (self.maker.mounter.clone(), id.to_owned());
        let kept = aside(move |may| {
            let kept = mounter.take(may, &name)?;
            let shown = mounter.targets(may, &name)?;
            Ok((kept, shown))
        });
        let (kept, shown) = kept.await.map_err(internal)?;
        let Some(bytes) = &kept.record else {
            return Err(Error::Internal("its node plugin ended while it was mounted".into()));
        };
        let record = Record::read(bytes)
            .map_err(|error| Error::Internal(format!("its record cannot be read: {error}")))?;
        subjects.extend(record.targets.values().map(|published| published.subject.clone()));
        if kept.deaths >= DEATHS_MAX {
            let text = format!("{} node plugins have ended over its requests", kept.deaths);
            return Err(Error::Internal(text));
        }
        let served = Arc::new(self.maker.adopt(id, kept, record).await?);
        let targets = served.targets();
        // Taken away while no node was there.
        let gone: Vec<_> = targets.iter().filter(|(target, _)| !shown.contains(target)).collect();
        for (target, _) in &gone {
            served.hidden(target);
        }
        if served.targets().is_empty() {
            tracing::info!(session = id, "shown nowhere any more");
            let until = Instant::now() + STORE_PATIENCE;
            let ended = served.end(&self.maker.mounter, until).await;
            return ended.map(|_| None).map_err(internal);
        }
        if !gone.is_empty() {
            self.keep_if_possible(&served.id, &served).await;
        }
        Ok(Some(served))
    }

    /// Ends a session that cannot be served: whoever waits for it gets an error now, and the next
    /// publish mounts it anew.
    async fn give_up(&self, id: &str, refusal: Refusal) {
        let Refusal { why, mut subjects } = refusal;
        tracing::error!(session = id, why, "a session cannot be served on; its connection ends");
        if subjects.is_empty() {
            // Nothing is known but where it was shown.
            let (mounter, name) = (self.maker.mounter.clone(), id.to_owned());
            let targets = aside(move |may| mounter.targets(may, &name)).await.unwrap_or_default();
            subjects.extend(targets.iter().map(|target| Subject {
                volume: Subject::volume_of(target, false),
                ..Subject::default()
            }));
        }
        self.maker.abandon(id).await;
        for subject in subjects {
            self.announcer.say(lost(subject, &why));
        }
    }
}
