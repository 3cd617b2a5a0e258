//! A name for who signs the requests of a mount.

use serde::Serialize;
use sha2::{Digest, Sha256};
use weir_fuse::origin::s3::S3Settings;

/// All that decides what the origin allows, and nothing else.
#[derive(Serialize)]
struct Signer<'a, T> {
    credentials: &'a T,
    profile: Option<&'a str>,
    anonymous: bool,
    requester_pays: bool,
}

/// Names who signs with these credentials under these settings. No secret can be read from it, and
/// nobody who lacks one can have the same name.
///
/// Every field of the settings is named here, so that a new one is decided about: what changes whom
/// the origin sees, or what it allows him, is part of the name. What says only where the bucket is,
/// or how an object is to be stored, is not.
pub(crate) fn of<T: Serialize>(kind: &str, credentials: &T, s3: &S3Settings) -> String {
    let S3Settings {
        profile,
        no_sign_request,
        requester_pays,
        bucket: _,
        region: _,
        endpoint_url: _,
        force_path_style: _,
        expected_bucket_owner: _,
        sse: _,
        sse_kms_key_id: _,
        storage_class: _,
        ca_bundle: _,
        upload_checksums: _,
        // Those are given beside.
        credentials: _,
    } = s3;
    let signer = Signer {
        credentials,
        profile: profile.as_deref(),
        anonymous: *no_sign_request,
        requester_pays: *requester_pays,
    };
    // Strings and flags: it can always be written.
    named(kind, &serde_json::to_vec(&signer).unwrap_or_default(), 16)
}

/// A kind, and that many bytes of a hash in hexadecimal.
pub(crate) fn named(kind: &str, text: &[u8], bytes: usize) -> String {
    let hash = Sha256::digest(text);
    let hex: String = hash.iter().take(bytes).map(|byte| format!("{byte:02x}")).collect();
    format!("{kind} {hex}")
}
