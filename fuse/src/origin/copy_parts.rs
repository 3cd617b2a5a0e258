//! A copy by parts: for what one copy request does not take.

use std::ops::Range;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::uploads::{self, UploadLog};
use super::{Condition, CopySource, Origin, OriginError, Part, Stored, WriteIntent};
use crate::logged::LoggedName;

/// The largest object that one copy request takes, in bytes (API reference, CopyObject: 5 GB).
pub(super) const COPY_MAX: u64 = 5_000_000_000;
/// The smallest size of a part, in bytes; the last one may be smaller.
const PART_MIN: u64 = 512 << 20;
/// Sizes of parts are multiples of this many bytes.
const PART_STEP: u64 = 1 << 20;
/// The largest, in bytes (Amazon S3 user guide, "Multipart upload limits").
const PART_MAX: u64 = 5 << 30;
/// Most parts, as far as [`PART_MAX`] lets it: some endpoints take fewer than S3's 10,000 (OpenStack Swift,
/// `max_upload_part_num` of s3api).
const PARTS_MAX: u64 = 1000;
/// Parts under way at once.
const PARTS_AT_ONCE: usize = 4;

/// Copies `source` by parts. The source's version is checked by each part, `condition` when the
/// upload is completed. `source` may not be empty. An upload that fails is aborted; `log` knows of it
/// until it is gone.
///
/// # Errors
/// As [`Origin::copy`].
pub(super) async fn copy_by_parts(
    origin: &dyn Origin,
    log: &dyn UploadLog,
    source: &CopySource,
    to: &str,
    condition: &Condition,
) -> Result<Stored, OriginError> {
    let (upload, logged) = uploads::begin(log, to, origin.create_copy(source, to)).await?;
    let done = fill(origin, source, to, &upload, condition).await;
    if done.is_err() {
        match origin.abort_upload(to, &upload).await {
            Ok(()) | Err(OriginError::NoSuchUpload) => {}
            Err(error) => {
                tracing::warn!(key = %LoggedName(to), %error, "upload of a copy not aborted; the next mount will");
                return done;
            }
        }
    }
    logged.ended().await;
    done
}

async fn fill(
    origin: &dyn Origin,
    source: &CopySource,
    to: &str,
    upload: &str,
    condition: &Condition,
) -> Result<Stored, OriginError> {
    let copies = (1..).zip(ranges(source.size)).map(|(number, range)| async move {
        origin.copy_part(source, range, to, upload, number).await
    });
    let parts: Vec<Part> = stream::iter(copies).buffered(PARTS_AT_ONCE).try_collect().await?;
    let write = WriteIntent { condition: condition.clone(), writer: String::new() };
    origin.complete_upload(to, upload, &parts, &write).await
}

/// The bytes of each part.
fn ranges(size: u64) -> impl Iterator<Item = Range<u64>> {
    let part = size.div_ceil(PARTS_MAX).next_multiple_of(PART_STEP).clamp(PART_MIN, PART_MAX);
    (0..size.div_ceil(part)).map(move |n| n * part..((n + 1) * part).min(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_copy_are_every_byte_once_and_never_too_many() {
        let most = PARTS_MAX * PART_MAX;
        for size in [1, PART_MIN, PART_MIN + 1, 5 << 30, 1 << 40, most, 5 << 40] {
            let mut end = 0;
            let mut count = 0;
            for range in ranges(size) {
                assert_eq!(range.start, end);
                assert!(range.end > range.start && range.end - range.start <= PART_MAX);
                end = range.end;
                count += 1;
            }
            assert_eq!(end, size);
            let most = if size > most { 10_000 } else { PARTS_MAX };
            assert!(count <= most, "{size}: {count} parts");
        }
    }
}
