//! A bucket of an S3-compatible server before the origin: a cache, or a replica. It is told to forget
//! nothing: a cache asks its origin for what is asked of it, and a replica is nobody's to change.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use tokio::time::timeout;

use super::{FetchJobs, RegionSettings, Replica};
use crate::blocking::aside;
use crate::model::version::Version;
use crate::origin::s3::{DirectClient, S3Origin, S3Settings};
use crate::origin::{Body, OriginError};

/// How long the server is waited for when it is asked what it is.
const ASKING: Duration = Duration::from_secs(2);

/// A bucket by the name of the origin's.
pub(super) struct ReplicaBucket(S3Origin);

impl ReplicaBucket {
    /// # Errors
    /// [`OriginError::Invalid`] where a file that is named cannot be used, no region is known, or the
    /// server says that it is AIStore.
    pub(super) async fn new(settings: &RegionSettings, bucket: &str) -> Result<Self, OriginError> {
        refuse_aistore(settings).await?;
        let s3 = S3Settings {
            bucket: bucket.to_owned(),
            endpoint_url: Some(settings.url.clone()),
            // The origin's keys are none of the region's business.
            no_sign_request: settings.profile.is_none(),
            profile: settings.profile.clone(),
            ca_bundle: settings.ca_bundle.clone(),
            ..S3Settings::default()
        };
        Ok(Self(S3Origin::connect(s3).await?))
    }
}

/// AIStore redirects what it is asked by its S3 API, and signatures do not survive that.
async fn refuse_aistore(settings: &RegionSettings) -> Result<(), OriginError> {
    let (url, ca_bundle) = (settings.url.clone(), settings.ca_bundle.clone());
    let client = aside(move |may| DirectClient::new(may, &url, ca_bundle.as_deref())).await?;
    let request = HttpRequest::get(&settings.url);
    let request = request.map_err(|error| OriginError::Invalid(format!("region: {error}")))?;
    // One that is away is asked for bytes all the same.
    let Ok(Ok(answer)) = timeout(ASKING, client.call(request)).await else { return Ok(()) };
    match answer.headers().get("server") {
        Some(server) if server.starts_with("AIStore") => Err(OriginError::Invalid(
            "the region says that it is AIStore: set the kind of the region to aistore".into(),
        )),
        _ => Ok(()),
    }
}

#[async_trait]
impl Replica for ReplicaBucket {
    fn can_have(&self, _: &str) -> bool {
        true
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        self.0.get_of_replica(key, version, range).await
    }

    fn jobs(&self) -> Option<&dyn FetchJobs> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::RegionKind;
    use super::super::scripted::{answer, serve, settings};
    use super::*;
    use crate::model::version::ETag;

    #[tokio::test]
    async fn a_key_that_it_does_not_have_is_absent_and_one_that_it_has_otherwise_is_stale() {
        let server = serve(|request| async move {
            let error = |code| format!("<Error><Code>{code}</Code></Error>");
            match request.starts_with("GET /b/absent") {
                true => answer(404, "", &error("NoSuchKey")),
                false => answer(412, "", &error("PreconditionFailed")),
            }
        });
        let settings = settings(RegionKind::S3, format!("http://{}", server.await));
        let replica = ReplicaBucket::new(&settings, "b").await.unwrap();
        let version = Version { etag: ETag::new("a").unwrap(), size: 1 };
        let error = async |key| replica.get(key, &version, 0..1).await.err().unwrap();
        assert!(matches!(error("absent").await, OriginError::NotFound));
        assert!(matches!(error("stale").await, OriginError::Changed));
    }
}
