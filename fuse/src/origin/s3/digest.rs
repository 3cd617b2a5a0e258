//! Digests of bodies that go among the signed headers of their requests.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::Md5;
use sha2::{Digest, Sha256};

use super::body::read;
use crate::blocking::{MayBlock, beside};
use crate::origin::{OriginError, UploadBody};

/// Bodies in memory up to this size, in bytes, are digested at once: it takes less than handing them
/// to another thread and back.
const AT_ONCE_MAX: usize = 16 * 1024;

/// The value of Content-MD5.
///
/// # Errors
/// What reading the file reports.
pub(super) async fn content_md5(body: UploadBody) -> Result<String, OriginError> {
    Ok(STANDARD.encode(digest::<Md5>(body).await?))
}

/// The value of x-amz-content-sha256.
///
/// # Errors
/// What reading the file reports.
pub(super) async fn content_sha256(body: UploadBody) -> Result<String, OriginError> {
    Ok(hex(&digest::<Sha256>(body).await?))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn digest<D: Digest + 'static>(body: UploadBody) -> Result<Vec<u8>, OriginError> {
    if let UploadBody::Memory { bytes, .. } = &body
        && bytes.len() <= AT_ONCE_MAX
    {
        return Ok(D::digest(bytes).to_vec());
    }
    let digest = match &body {
        UploadBody::File { calls, .. } => {
            let calls = calls.clone();
            calls.beside(move |may| digest_of::<D>(may, &body)).await
        }
        UploadBody::Memory { .. } => beside(move |may| digest_of::<D>(may, &body)),
    };
    let digest = digest.await;
    let digest = digest.map_err(io::Error::other).and_then(|digest| digest);
    digest.map_err(|e| OriginError::Invalid(format!("staging file: {e}")))
}

fn digest_of<D: Digest>(may: &MayBlock, body: &UploadBody) -> io::Result<Vec<u8>> {
    let (file, calls, mut at, len) = match body {
        UploadBody::Memory { bytes, .. } => return Ok(D::digest(bytes).to_vec()),
        UploadBody::File { file, calls, offset, len, .. } => (file, calls, *offset, *len),
    };
    let end = at + len;
    let mut digest = D::new();
    while at < end {
        let piece = read(may, (file, calls), at, end)?;
        at += piece.len() as u64;
        digest.update(&piece);
    }
    Ok(digest.finalize().to_vec())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;
    use crate::blocking::Turns;

    #[tokio::test]
    async fn a_digest_is_that_of_the_bytes_wherever_they_are() {
        for len in [0, 1, AT_ONCE_MAX, AT_ONCE_MAX + 1, 700_000] {
            let content: Vec<u8> = (0..len + 20).map(|n| (n * 7 / 3) as u8).collect();
            let part = &content[10..10 + len];
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&content).unwrap();
            let (file, len) = (Arc::new(file), len as u64);
            let calls = Arc::new(Turns::new(1));
            let in_file = UploadBody::File { file, calls, offset: 10, len, crc32c: 0 };
            for body in [UploadBody::of(part.to_vec()), in_file] {
                let md5 = content_md5(body.clone()).await.unwrap();
                assert_eq!(md5, STANDARD.encode(Md5::digest(part)));
                let sha256 = content_sha256(body).await.unwrap();
                assert_eq!(sha256, hex(&Sha256::digest(part)));
            }
        }
    }

    #[tokio::test]
    async fn a_digest_is_written_as_its_header_wants_it() {
        // FIPS 180-4 and RFC 1321: those of "abc".
        let body = UploadBody::of("abc");
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(content_sha256(body.clone()).await.unwrap(), sha256);
        assert_eq!(content_md5(body).await.unwrap(), "kAFQmDzST7DWlj99KOF/cg==");
    }
}
