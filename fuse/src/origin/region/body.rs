//! A body that begins at the region, and goes on at the origin from where the region fails.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};

use super::Region;
use super::breaker::Pass;
use crate::model::version::Version;
use crate::origin::{Body, Origin, OriginError};

type Pieces = BoxStream<'static, Result<Bytes, OriginError>>;

/// What is left to come.
pub(super) struct Rest {
    pub(super) region: Arc<Region>,
    pub(super) origin: Arc<dyn Origin>,
    pub(super) key: Box<str>,
    pub(super) version: Version,
    pub(super) range: Range<u64>,
}

enum From {
    Region(Pieces, Pass),
    Origin(Pieces),
    Nowhere,
}

/// The body that `rest` is asked for, from the region as long as that gives it.
pub(super) fn with_origin_behind(rest: Rest, pieces: Pieces, pass: Pass) -> Body {
    let etag = rest.version.etag.clone();
    let borrowed = rest.region.doubts.can_judge(&rest.key, &etag);
    let pieces =
        stream::unfold((rest, From::Region(pieces, pass)), |(mut rest, from)| async move {
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
    /// A piece of a region's, if it may be one.
    fn checked(
        &self,
        item: Option<Result<Bytes, OriginError>>,
    ) -> Option<Result<Bytes, OriginError>> {
        let left = self.range.end - self.range.start;
        match item {
            Some(Ok(piece)) if piece.len() as u64 > left => {
                Some(Err(OriginError::BadBody("longer than was asked for".into())))
            }
            None if left > 0 => {
                Some(Err(OriginError::BadBody(format!("{left} bytes are missing"))))
            }
            item => item,
        }
    }

    async fn next(&mut self, from: From) -> Option<(Result<Bytes, OriginError>, From)> {
        let mut pieces = match from {
            From::Nowhere => return None,
            From::Origin(pieces) => pieces,
            From::Region(mut pieces, pass) => match self.checked(pieces.next().await) {
                Some(Ok(piece)) => {
                    self.range.start += piece.len() as u64;
                    self.region.metrics.region_fetched_bytes.inc_by(piece.len() as u64);
                    return Some((Ok(piece), From::Region(pieces, pass)));
                }
                None => {
                    self.region.told(pass, None);
                    return None;
                }
                Some(Err(error)) => {
                    tracing::debug!(key = %self.key, %error, "the origin goes on where the region fails");
                    self.region.told(pass, Some(&error));
                    match self.origin.get(&self.key, &self.version, self.range.clone()).await {
                        Ok(body) => body.pieces,
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
