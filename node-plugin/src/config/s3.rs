//! Which bucket, and how to speak to its endpoint.

use weir_fuse::origin::s3::{S3Settings, names_a_user};

use super::usage;
use crate::cli::{S3Args, UploadChecksums};
use crate::exit::Failure;

/// Whether a text can name a bucket, an access point or its alias.
pub fn is_bucket_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    (3..=255).contains(&text.len()) && text.chars().all(allowed)
}

fn check_sse(args: &S3Args) -> Result<(), Failure> {
    const KNOWN: [&str; 3] = ["AES256", "aws:kms", "aws:kms:dsse"];
    match (args.sse.as_deref(), &args.sse_kms_key_id) {
        (Some(sse), _) if !KNOWN.contains(&sse) => {
            Err(usage(format!("--sse {sse}: known are {}", KNOWN.join(", "))))
        }
        (None | Some("AES256"), Some(_)) => {
            Err(usage("--sse-kms-key-id needs --sse aws:kms or aws:kms:dsse"))
        }
        _ => Ok(()),
    }
}

/// An endpoint's URL as the SDK wants it: where it has a path it ends in a slash, lest the path and
/// the bucket's name become one word.
fn base_url(url: &str) -> String {
    let has_path = url.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    if has_path && !url.ends_with('/') { format!("{url}/") } else { url.to_owned() }
}

/// Checks the URL of an endpoint. One that names a user is not repeated: it may hold a secret.
///
/// # Errors
/// A usage failure that names the option.
pub fn check_endpoint(option: &str, url: &str) -> Result<(), Failure> {
    if names_a_user(url) {
        return Err(usage(format!(
            "{option}: the URL names a user (what stands before @); keys belong into the \
             environment or a profile, on Kubernetes into a Secret"
        )));
    }
    if !(url.starts_with("http://") || url.starts_with("https://")) {
        return Err(usage(format!("{option} {url}: must begin with http:// or https://")));
    }
    Ok(())
}

/// Checks the options of a bucket.
///
/// # Errors
/// A usage failure that names the option.
pub fn s3_settings(bucket: String, args: &S3Args) -> Result<S3Settings, Failure> {
    check_sse(args)?;
    if args.no_sign_request && args.profile.is_some() {
        return Err(usage("--no-sign-request and --profile contradict each other"));
    }
    if let Some(url) = &args.endpoint_url {
        check_endpoint("--endpoint-url", url)?;
    }
    Ok(S3Settings {
        bucket,
        region: args.region.clone(),
        endpoint_url: args.endpoint_url.as_deref().map(base_url),
        profile: args.profile.clone(),
        force_path_style: args.force_path_style.then_some(true),
        no_sign_request: args.no_sign_request,
        requester_pays: args.requester_pays,
        expected_bucket_owner: args.expected_bucket_owner.clone(),
        sse: args.sse.clone(),
        sse_kms_key_id: args.sse_kms_key_id.clone(),
        storage_class: args.storage_class.clone(),
        ca_bundle: args.ca_bundle.clone(),
        upload_checksums: args.upload_checksums == UploadChecksums::Crc32c,
        credentials: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_names_a_user_is_refused_and_not_repeated() {
        for url in ["http://KEY:HUSH@s3:9000", "KEY:HUSH@s3", "http:/KEY:HUSH@s3"] {
            let args = S3Args { endpoint_url: Some(url.into()), ..S3Args::default() };
            let failure = s3_settings("bucket".into(), &args).unwrap_err();
            assert!(failure.text.contains("Secret"), "{}", failure.text);
            assert!(!failure.text.contains("HUSH"), "{}", failure.text);
        }
        let args = S3Args { endpoint_url: Some("https://s3/a@b".into()), ..S3Args::default() };
        s3_settings("bucket".into(), &args).unwrap();
    }

    #[test]
    fn the_path_of_an_endpoint_ends_in_a_slash() {
        for (given, used) in [
            ("http://s3:9000", "http://s3:9000"),
            ("http://s3:9000/", "http://s3:9000/"),
            ("https://host/storage/v1/s3", "https://host/storage/v1/s3/"),
            ("https://host/storage/v1/s3/", "https://host/storage/v1/s3/"),
        ] {
            assert_eq!(base_url(given), used);
        }
    }
}
