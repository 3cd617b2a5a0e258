//! A body that begins at the region, and goes on at the origin from where the region fails.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::proof::Proofs;
use super::{Leave, Region};
use crate::model::version::Version;
use crate::origin::{Body, Origin, OriginError};

/// How long a region is waited for over all of a body, besides the time that its bytes take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many bytes a second a region gives at least.
const RATE: u64 = 1 << 20;

type Pieces = BoxStream<'static, Result<Bytes, OriginError>>;

/// What is left to come.
pub(super) struct Rest {
    pub(super) region: Arc<Region>,
    pub(super) origin: Arc<dyn Origin>,
    pub(super) proofs: Arc<Proofs>,
    pub(super) key: Box<str>,
    pub(super) version: Version,
    pub(super) range: Range<u64>,
    /// How long the region is waited for yet. While nobody wants a piece, nobody waits for it.
    pub(super) patience: Duration,
}

enum From {
    Region(Pieces, Leave),
    Origin(Pieces),
    Nowhere,
}

/// The body that `rest` is asked for, from the region as long as that gives it.
pub(super) fn with_origin_behind(rest: Rest, pieces: Pieces, leave: Leave) -> Body {
    let etag = rest.version.etag.clone();
    let borrowed = rest.region.doubts.can_judge(&rest.key, &etag);
    let pieces =
        stream::unfold((rest, From::Region(pieces, leave)), |(mut rest, from)| async move {
            let (item, from) = rest.next(from).await?;
            Some((item, (rest, from)))
        });
    Body { etag, pieces: pieces.boxed(), borrowed }
}

/// All bytes of a body.
///
/// # Errors
/// That it ends early.
pub(super) async fn all_of(mut body: Body) -> Result<Vec<u8>, OriginError> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.pieces.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

/// A body of all bytes of a version, which are what they should be.
pub(super) fn whole(version: &Version, bytes: Vec<u8>) -> Body {
    let pieces = stream::iter([Ok(bytes.into())]).boxed();
    Body { etag: version.etag.clone(), pieces, borrowed: false }
}

impl Rest {
    /// How long a region is waited for over all of a range.
    pub(super) fn patience(range: &Range<u64>) -> Duration {
        let bytes = range.end.saturating_sub(range.start);
        PATIENCE + Duration::from_millis(bytes.saturating_mul(1000) / RATE)
    }

    fn left(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// The next piece of a region's, of which something is left.
    async fn piece(&mut self, pieces: &mut Pieces) -> Result<Bytes, OriginError> {
        let (left, asked) = (self.left(), Instant::now());
        let item = timeout(self.patience, pieces.next()).await;
        self.patience = self.patience.saturating_sub(asked.elapsed());
        match item {
            // The region has answered.
            Err(_) | Ok(Some(Err(OriginError::TimedOut))) => {
                self.region.was_late(&self.key, &self.version);
                Err(OriginError::Unavailable("its body is late".into()))
            }
            Ok(None) => Err(OriginError::BadBody(format!("{left} bytes are missing"))),
            Ok(Some(Ok(piece))) if piece.len() as u64 > left => {
                Err(OriginError::BadBody("longer than was asked for".into()))
            }
            Ok(Some(item)) => item,
        }
    }

    async fn of_origin(&self) -> Result<Pieces, OriginError> {
        let asked = Instant::now();
        let answer = self.origin.get(&self.key, &self.version, self.range.clone()).await;
        self.proofs.note(&self.key, &self.version, asked, &answer);
        Ok(answer?.pieces)
    }

    async fn next(&mut self, from: From) -> Option<(Result<Bytes, OriginError>, From)> {
        let mut pieces = match from {
            From::Nowhere => return None,
            From::Origin(pieces) => pieces,
            From::Region(_, leave) if self.left() == 0 => {
                self.region.told(leave, None);
                return None;
            }
            From::Region(mut pieces, leave) => match self.piece(&mut pieces).await {
                Ok(piece) => {
                    self.range.start += piece.len() as u64;
                    self.region.metrics.region_fetched_bytes.inc_by(piece.len() as u64);
                    if self.left() > 0 {
                        return Some((Ok(piece), From::Region(pieces, leave)));
                    }
                    // What comes after the last byte is of no interest.
                    self.region.told(leave, None);
                    return Some((Ok(piece), From::Nowhere));
                }
                Err(error) => {
                    tracing::debug!(key = %self.key, %error, "the origin goes on where the region fails");
                    self.region.told(leave, Some(&error));
                    match self.of_origin().await {
                        Ok(pieces) => pieces,
                        Err(error) => return Some((Err(error), From::Nowhere)),
                    }
                }
            },
        };
        let item = pieces.next().await?;
        let from = if item.is_ok() { From::Origin(pieces) } else { From::Nowhere };
        Some((item, from))
    }
}
