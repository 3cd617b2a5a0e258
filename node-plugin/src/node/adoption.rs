//! The sessions that earlier runs of the node left: each is served on, or ended. One that is neither
//! would keep its pods waiting for ever, and its volume could not be mounted again.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use weir_csi::Error;

use super::record::Record;
use super::session::STORE_PATIENCE;
use super::sessions::{Sessions, lock, lost};
use crate::kubernetes::events::Subject;

/// How long one session may take; its pods wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(8);
/// Sessions that are taken over at once.
const AT_ONCE: usize = 16;
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
            match tokio::task::block_in_place(|| self.maker.mounter.sessions()) {
                Ok(names) => break names,
                Err(error) => tracing::warn!(%error, "waiting for the mounter"),
            }
            tokio::time::sleep(ASK_EVERY).await;
        };
        let all = names.into_iter().map(|id| {
            let sessions = self.clone();
            // A task each: they make S3 clients and start threads.
            tokio::spawn(async move {
                let mut subjects = Vec::new();
                let adopting = sessions.adopt_one(&id, &mut subjects);
                let why = match tokio::time::timeout(PATIENCE, adopting).await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => format!("it took more than {} s", PATIENCE.as_secs()),
                };
                sessions.give_up(&id, Refusal { why, subjects });
            })
        });
        stream::iter(all).buffer_unordered(AT_ONCE).for_each(|_| std::future::ready(())).await;
    }

    async fn adopt_one(&self, id: &str, subjects: &mut Vec<Subject>) -> Result<(), Error> {
        let mounter = &self.maker.mounter;
        let internal = |error: io::Error| Error::Internal(error.to_string());
        let kept = tokio::task::block_in_place(|| mounter.take(id)).map_err(internal)?;
        let Some(bytes) = &kept.record else {
            return Err(Error::Internal("its node plugin ended while it was mounted".into()));
        };
        let record = Record::read(bytes)
            .map_err(|error| Error::Internal(format!("its record cannot be read: {error}")))?;
        subjects.extend(record.targets.values().map(|published| published.subject.clone()));
        let shown = tokio::task::block_in_place(|| mounter.targets(id)).map_err(internal)?;
        let mut held = self.slot(id).await;
        let served = Arc::new(self.maker.adopt(id, kept, record).await?);
        let targets = served.targets();
        let are_all_shown = targets.iter().all(|(target, _)| shown.contains(target));
        for (target, _) in targets {
            if shown.contains(&target) {
                lock(&self.targets).insert(target, id.to_owned());
            } else {
                // Taken away while no node was there.
                served.hidden(&target);
            }
        }
        if served.is_nowhere() {
            tracing::info!(session = id, "shown nowhere any more");
            let ended = served.end(mounter, Instant::now() + STORE_PATIENCE).await;
            return ended.map(|_| ()).map_err(internal);
        }
        if !are_all_shown {
            self.keep(&served);
        }
        lock(&self.served).insert(id.to_owned(), served.clone());
        *held = Some(served);
        Ok(())
    }

    /// Ends a session that cannot be served: whoever waits for it gets an error now, and the next
    /// publish mounts it anew.
    fn give_up(&self, id: &str, refusal: Refusal) {
        let Refusal { why, mut subjects } = refusal;
        tracing::error!(session = id, why, "a session cannot be served on; its connection ends");
        let mounter = &self.maker.mounter;
        if subjects.is_empty() {
            // Nothing is known but where it was shown.
            let targets = tokio::task::block_in_place(|| mounter.targets(id)).unwrap_or_default();
            let of = |target: &std::path::PathBuf| Subject {
                volume: Subject::volume_of(target, false),
                ..Subject::default()
            };
            subjects.extend(targets.iter().map(of));
        }
        if let Err(error) = tokio::task::block_in_place(|| mounter.end(id)) {
            tracing::error!(session = id, %error, "its connection could not be ended");
        }
        for subject in subjects {
            self.announcer.say(lost(subject, &why));
        }
    }
}
