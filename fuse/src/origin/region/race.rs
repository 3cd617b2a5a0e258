//! Several sources that are asked for the same bytes: the next one where one fails, or is late.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, future};
use tokio::time::{Instant as Deadline, sleep_until};

use super::{FIRST_BYTE, Leave, Region, Verdict};
use crate::model::version::Version;
use crate::origin::{Body, OriginError};

/// A region that may be asked.
pub(super) struct Source {
    pub(super) region: Arc<Region>,
    pub(super) leave: Leave,
}

/// What came of asking regions.
pub(super) enum Outcome {
    /// One has answered.
    Given(Source, Body),
    /// The origin has, which was asked beside them.
    OfOrigin(Result<Body, OriginError>),
    /// None gives it; some of them have another version.
    Nowhere(Vec<Arc<Region>>),
}

/// Asks one after the other, each once the one before fails or is late, and the origin after them where
/// the last one is late; all of them together are waited for as long as one.
///
/// `sources` are in the order in which they are asked. `of_origin` asks the origin; `None`: it may not be
/// asked for so much beside others.
pub(super) async fn first<F>(
    sources: Vec<Source>,
    (key, version, range): (&str, &Version, &Range<u64>),
    may_ask_origin: impl Fn() -> bool,
    of_origin: impl FnOnce() -> F,
) -> Outcome
where
    F: Future<Output = Result<Body, OriginError>> + Send,
{
    let bytes = range.end.saturating_sub(range.start);
    let (end, mut next) = (Deadline::now() + FIRST_BYTE, VecDeque::from(sources));
    let (mut stale, mut asked) = (Vec::new(), FuturesUnordered::new());
    // Those that are under way, by number.
    let mut under_way: Vec<Option<(Source, Instant)>> = Vec::new();
    let mut of_origin = Some(of_origin);
    let mut origin = None;
    let mut begin = |under_way: &mut Vec<_>, asked: &mut FuturesUnordered<_>, beside: bool| {
        let may = |source: &Source| !beside || source.region.pace.may_ask_beside(bytes);
        let source = next.pop_front_if(|source| may(source))?;
        source.region.pace.ask(bytes);
        let (region, number) = (source.region.clone(), under_way.len());
        let patience = region.pace.patience();
        let answer = async move { region.replica.get(key, version, range.clone()).await };
        asked.push(answer.map(move |answer| (number, answer)));
        under_way.push(Some((source, Instant::now())));
        Some(patience)
    };
    let after = |patience: Option<Duration>| patience.map(|patience| Deadline::now() + patience);
    let mut late = after(begin(&mut under_way, &mut asked, false));
    loop {
        if asked.is_empty() && origin.is_none() {
            return Outcome::Nowhere(stale);
        }
        let look = sleep_until(late.unwrap_or(end).min(end));
        let answer = async {
            match &mut origin {
                Some(origin) => origin.await,
                None => future::pending::<Result<Body, OriginError>>().await,
            }
        };
        tokio::select! {
            Some((number, answer)) = asked.next() => {
                let Some((source, began)) = under_way.get_mut(number).and_then(Option::take) else {
                    continue;
                };
                match answer {
                    Ok(body) => {
                        source.region.pace.note(began.elapsed());
                        note_overtaken(&under_way);
                        return Outcome::Given(source, body);
                    }
                    Err(error) => {
                        tracing::debug!(key, %error, "the next one is asked for what a region does not give");
                        let Source { region, leave } = source;
                        if region.refused(key, leave, &error) == Verdict::Stale {
                            stale.push(region);
                        }
                        late = after(begin(&mut under_way, &mut asked, false)).or(late);
                    }
                }
            }
            body = answer => match body {
                // It does not answer: a region may.
                Err(error) if error.is_outage() && !asked.is_empty() => origin = None,
                body => {
                    note_overtaken(&under_way);
                    return Outcome::OfOrigin(body);
                }
            },
            () = look => {
                if Deadline::now() >= end {
                    for (source, began) in under_way.into_iter().flatten() {
                        source.region.pace.note(began.elapsed());
                        source.region.was_late(key, version);
                        source.region.refused(key, source.leave, &OriginError::TimedOut);
                    }
                    return match origin {
                        Some(origin) => Outcome::OfOrigin(origin.await),
                        None => Outcome::Nowhere(stale),
                    };
                }
                let before = under_way.len();
                late = after(begin(&mut under_way, &mut asked, true));
                if under_way.len() == before
                    && may_ask_origin()
                    && let Some(ask) = of_origin.take()
                {
                    origin = Some(Box::pin(ask()));
                }
            }
        }
    }
}

/// Those that others were sooner than have taken so long at least.
fn note_overtaken(under_way: &[Option<(Source, Instant)>]) {
    for (source, began) in under_way.iter().flatten() {
        source.region.pace.note(began.elapsed());
    }
}
