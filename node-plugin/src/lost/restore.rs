//! Storing a lost file where nothing is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use weir_fuse::blocking::Turns;
use weir_fuse::origin::{Condition, Origin, OriginError, Part, PartKind, UploadBody, WriteIntent};
use weir_fuse::write::parts::PartPlan;

/// What goes in one PUT, in bytes, and the size of the first parts of what does not.
const PART: u64 = 8 << 20;
/// Parts on their way at once.
const AT_ONCE: usize = 4;
/// Bytes read at once for a checksum.
const CHUNK: usize = 1 << 20;

/// Why a file is not restored.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestoreError {
    /// The origin refused or did not answer.
    #[error("{0}")]
    Origin(#[from] OriginError),
    /// The file cannot be read.
    #[error("{0}")]
    File(#[from] io::Error),
    /// An object is there.
    #[error("an object is there already, and stays")]
    Taken,
}

/// Stores the bytes of `path` as `key`, if there is no such object.
///
/// # Errors
/// [`RestoreError`]; then nothing was stored.
pub(super) async fn restore(
    origin: &dyn Origin,
    path: &Path,
    key: &str,
) -> Result<(), RestoreError> {
    // Asked for endpoints that ignore conditions, and before many bytes are sent in vain.
    match origin.head(key).await {
        Ok(_) => return Err(RestoreError::Taken),
        // Not to be allowed to look is no reason not to write.
        Err(OriginError::NotFound | OriginError::Denied(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let write = WriteIntent {
        condition: Condition::Absent,
        // A text that no other writer uses.
        writer: format!("{:032x}", rand::random::<u128>()),
    };
    let size = std::fs::metadata(path)?.len();
    let stored = if size <= PART {
        let bytes = tokio::fs::read(path).await?;
        origin.put(key, UploadBody::of(bytes), &write).await.map(|_| ()).map_err(RestoreError::from)
    } else {
        in_parts(origin, path, key, size, &write).await
    };
    match stored {
        // The first reply of a request that was sent again may have been lost.
        Err(RestoreError::Origin(error)) => match origin.head(key).await {
            Ok(info) if info.writer.as_deref() == Some(write.writer.as_str()) => Ok(()),
            _ if matches!(error, OriginError::Conflict) => Err(RestoreError::Taken),
            _ => Err(error.into()),
        },
        other => other,
    }
}

async fn in_parts(
    origin: &dyn Origin,
    path: &Path,
    key: &str,
    size: u64,
    write: &WriteIntent,
) -> Result<(), RestoreError> {
    let id = origin.create_upload(key, &write.writer, PartKind::Sent).await?;
    let plan = PartPlan::new(PART);
    let file = Arc::new(File::open(path)?);
    let calls = Arc::new(Turns::new(AT_ONCE));
    let sends = (1..=plan.count(size)).map(|number| {
        let (id, file, calls) = (&id, file.clone(), calls.clone());
        async move {
            let range = plan.range(number);
            let len = range.end.min(size) - range.start;
            let crc32c = calls.in_place(|_| checksum(&file, range.start, len)).await?;
            let body = UploadBody::File { file, calls, offset: range.start, len, crc32c };
            Ok::<Part, RestoreError>(origin.upload_part(key, id, number, body).await?)
        }
    });
    let parts = stream::iter(sends).buffered(AT_ONCE).try_collect::<Vec<_>>().await;
    let done = match parts {
        Ok(parts) => origin.complete_upload(key, &id, &parts, write).await.map_err(Into::into),
        Err(error) => Err(error),
    };
    if done.is_err() {
        // One that was completed after all is gone, and this is no error.
        let _ = origin.abort_upload(key, &id).await;
    }
    done.map(|_| ())
}

/// CRC32C of a range of a file.
fn checksum(file: &File, offset: u64, len: u64) -> io::Result<u32> {
    let (mut crc, mut at, end) = (0, offset, offset + len);
    let mut buffer = vec![0; CHUNK];
    while at < end {
        let piece = &mut buffer[..CHUNK.min((end - at) as usize)];
        file.read_exact_at(piece, at)?;
        crc = crc32c::crc32c_append(crc, piece);
        at += piece.len() as u64;
    }
    Ok(crc)
}

#[cfg(test)]
mod tests {
    use weir_fuse::origin::memory::MemoryOrigin;

    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_there_stays() {
        let origin = Arc::new(MemoryOrigin::new("bucket"));
        origin.insert("k", b"old".to_vec());
        let done = restore(&*origin, file(b"new").path(), "k").await;
        assert!(matches!(done, Err(RestoreError::Taken)), "{done:?}");
        restore(&*origin, file(b"new").path(), "other").await.unwrap();
        assert_eq!(origin.head("other").await.unwrap().size, 3);
        assert_eq!(origin.head("k").await.unwrap().size, 3);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn checksums_are_of_the_range() {
        let bytes: Vec<u8> = (0..3 * CHUNK + 7).map(|n| (n / 3) as u8).collect();
        let file = file(&bytes);
        let (from, len) = (5, 2 * CHUNK + 1);
        let sum = checksum(file.as_file(), from as u64, len as u64).unwrap();
        assert_eq!(sum, crc32c::crc32c(&bytes[from..from + len]));
    }
}
