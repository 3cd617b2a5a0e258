//! What is checked before anything is mounted.

use weir_fuse::model::key::DirPrefix;
use weir_fuse::origin::s3::S3Settings;
use weir_fuse::origin::{ListRequest, Origin, OriginError};

use crate::exit::{Failure, Kind};

/// Asks the bucket for one key of the prefix: that shows the endpoint, the credentials, the
/// bucket and whether the prefix is a directory.
///
/// # Errors
/// What is wrong, and what to do.
pub async fn check_bucket(
    origin: &dyn Origin,
    s3: &S3Settings,
    prefix: &DirPrefix,
) -> Result<(), Failure> {
    let request = ListRequest {
        prefix: prefix.as_str().to_owned(),
        delimited: true,
        token: None,
        max_keys: 1,
    };
    let page = origin.list(&request).await.map_err(|error| explain(&error, s3))?;
    if page.objects.is_empty() && page.prefixes.is_empty() && !prefix.is_root() {
        check_not_a_file(origin, prefix, s3).await?;
    }
    Ok(())
}

/// A prefix without keys may become a directory, unless an object has its name.
async fn check_not_a_file(
    origin: &dyn Origin,
    prefix: &DirPrefix,
    s3: &S3Settings,
) -> Result<(), Failure> {
    let key = prefix.as_str().trim_end_matches('/');
    match origin.head(key).await {
        Ok(_) => {
            let bucket = &s3.bucket;
            let text = format!(
                "s3://{bucket}/{key} is an object, not a prefix; mount s3://{bucket} or the \
                 prefix that it is in"
            );
            Err(Failure::new(Kind::Bucket, text))
        }
        // Not to be allowed to look is no reason not to mount.
        Err(OriginError::NotFound | OriginError::Denied(_)) => Ok(()),
        Err(error) => Err(explain(&error, s3)),
    }
}

/// The failure that an error of the first request is.
pub fn explain(error: &OriginError, s3: &S3Settings) -> Failure {
    Failure::of_origin(error, &s3.bucket, s3.endpoint_url.as_deref())
}
