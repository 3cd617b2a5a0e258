//! The orderly end of the node plugin: the mounts stay, and the next run serves them on. No pod is
//! to notice more than a pause.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use weir_fuse::blocking::aside;

use super::sessions::Sessions;

/// How long all is served on, so that what was opened and is read at once is closed again.
const SETTLING: Duration = Duration::from_secs(1);
/// How long those are waited for who have opened something since the signal. Meanwhile nobody
/// opens anything.
const READING_OUT: Duration = Duration::from_secs(2);

/// How long the mounter is waited for in the end.
const ACQUITTED_WITHIN: Duration = Duration::from_secs(1);

impl Sessions {
    /// Begins the end: unpublishes that wait for stores wait no more.
    pub(super) fn begin_leaving(&self) {
        self.leaving.send_replace(true);
        for served in self.all() {
            served.door().note_opens();
        }
    }

    /// Waits until the end has begun.
    pub(super) async fn leaving(&self) {
        // The sender lives as long as this.
        let _ = self.leaving.subscribe().wait_for(|leaving| *leaving).await;
    }

    /// Ends all serving by `until`: closes that are under way are stored, requests are answered or
    /// left to the next run. Nothing of a session may be used afterwards.
    pub(super) async fn leave(&self, until: Instant) {
        let begun = Instant::now();
        let grace = until.saturating_duration_since(begun);
        self.begin_leaving();
        // While large files are being stored pods go on, for half of the time.
        let settled = tokio::time::sleep(SETTLING.min(grace / 4));
        tokio::join!(settled, self.rest(begun + grace / 2));
        let all = self.all();
        let read_out = until.min(Instant::now() + READING_OUT);
        join_all(all.iter().map(|served| served.door().set_opens_aside(read_out))).await;
        let closed = join_all(
            all.iter().map(|served| async { (served.door().close(until).await, &served.id) }),
        );
        for (_, session) in closed.await.into_iter().filter(|(answered, _)| !answered) {
            tracing::warn!(session, "changes are under way that did not end in time");
        }
        self.rest(until).await;
        join_all(all.iter().map(|served| served.door().shut())).await;
        let mounter = self.maker.mounter.clone();
        let acquitted = aside(move |may| {
            for served in all {
                if let Err(error) = mounter.acquit(may, &served.id) {
                    return tracing::warn!(%error, "the mounter does not know that this end is in order");
                }
            }
        });
        // A mounter that is not there remembers nothing that would have to be acquitted.
        let _ = tokio::time::timeout(ACQUITTED_WITHIN, acquitted).await;
    }

    /// Waits for what is being stored, in all sessions, until `until`; the mounts stay.
    async fn rest(&self, until: Instant) {
        let all = self.all();
        join_all(all.iter().map(|served| served.rest(until))).await;
    }
}
