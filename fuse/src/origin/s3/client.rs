//! Settings of an S3 endpoint, and the client made of them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::{TimeoutConfig, TimeoutConfigBuilder};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Builder, RequestChecksumCalculation};
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};
use aws_types::service_config::ServiceConfigKey;
use serde::{Deserialize, Serialize};

use super::http::{Http, is_plain, names_a_user};
use crate::blocking::aside;
use crate::origin::OriginError;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for the head of an answer, from the request's first byte on.
const READ: Duration = Duration::from_secs(20);

/// Which bucket, where, and how to speak to it.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct S3Settings {
    /// Name of the bucket.
    pub bucket: String,
    /// Region; from the environment or the profile where absent.
    pub region: Option<String>,
    /// URL of an S3-compatible endpoint; Amazon's for the region where absent.
    pub endpoint_url: Option<String>,
    /// Profile in the shared configuration files.
    pub profile: Option<String>,
    /// Name the bucket in the path, not in the host. `None`: so at every endpoint but Amazon's.
    pub force_path_style: Option<bool>,
    /// Send no credentials.
    pub no_sign_request: bool,
    /// Accept to be charged for requests.
    pub requester_pays: bool,
    /// Account id that must own the bucket.
    pub expected_bucket_owner: Option<String>,
    /// Server-side encryption: `AES256`, `aws:kms` or `aws:kms:dsse`.
    pub sse: Option<String>,
    /// Key for `aws:kms`.
    pub sse_kms_key_id: Option<String>,
    /// Storage class of new objects.
    pub storage_class: Option<String>,
    /// PEM file of certificate authorities to trust, besides the system's.
    pub ca_bundle: Option<PathBuf>,
    /// Send CRC32C with every upload.
    pub upload_checksums: bool,
    /// Credentials given by the caller; the SDK's chain where absent.
    #[serde(skip)]
    pub credentials: Option<SharedCredentialsProvider>,
}

impl fmt::Debug for S3Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Settings")
            .field("bucket", &self.bucket)
            .field("region", &self.region)
            .field("endpoint_url", &self.endpoint_url)
            .finish_non_exhaustive()
    }
}

impl S3Settings {
    /// With these keys instead of the SDK's chain.
    #[must_use]
    pub fn with_keys(mut self, access_key: &str, secret_key: &str) -> Self {
        let keys = Credentials::new(access_key, secret_key, None, None, "given");
        self.credentials = Some(SharedCredentialsProvider::new(keys));
        self
    }

    pub(super) fn sse(&self) -> Option<ServerSideEncryption> {
        self.sse.as_deref().map(ServerSideEncryption::from)
    }

    pub(super) fn storage_class(&self) -> Option<StorageClass> {
        self.storage_class.as_deref().map(StorageClass::from)
    }
}

/// Clients of one endpoint, by what is sent.
pub(super) struct Clients {
    /// For requests that are answered at once: an answer that is late is asked for again.
    pub(super) prompt: Client,
    /// For what the server works on for a while. The client's own read timeout would run over
    /// the request's body, too.
    pub(super) patient: Client,
    /// As `patient`, for what the caller sends again by himself when it fails.
    pub(super) once: Client,
}

impl Clients {
    pub(super) fn new(config: Builder) -> Self {
        let timeouts = |builder: TimeoutConfigBuilder| builder.connect_timeout(CONNECT).build();
        let patient = config
            .clone()
            .timeout_config(timeouts(TimeoutConfig::builder().disable_read_timeout()));
        let once = patient.clone().retry_config(RetryConfig::disabled());
        let prompt = config.timeout_config(timeouts(TimeoutConfig::builder().read_timeout(READ)));
        let [prompt, patient, once] =
            [prompt, patient, once].map(|config| Client::from_conf(config.build()));
        Self { prompt, patient, once }
    }
}

/// The endpoint that environment and profile name, the one for S3 alone before that for all
/// services, as aws-sdk-s3 resolves it. It is part of the bytes' identity in the cache.
fn endpoint_of(shared: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id("S3")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build();
    let own = key.ok().and_then(|key| shared.service_config()?.load_config(key));
    own.or_else(|| shared.endpoint_url().map(Into::into))
}

/// Has the SDK add checksums of its own to bodies that come without one, or not. Not over plain HTTP, where it
/// signs such bodies in pieces: a damaged one would be refused as one of somebody else's, and not be sent again.
pub(super) fn with_checksums(config: Builder, settings: &S3Settings, is_plain: bool) -> Builder {
    match settings.upload_checksums && !is_plain {
        true => config,
        false => config.request_checksum_calculation(RequestChecksumCalculation::WhenRequired),
    }
}

/// Builds the clients; the second value names the endpoint for cache identity.
pub(super) async fn build(settings: &S3Settings) -> Result<(Clients, String), OriginError> {
    let ca_bundle = settings.ca_bundle.clone();
    let http = aside(move |may| Http::new(may, ca_bundle.as_deref())).await?;
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.clone())
        // A reader waits: the first try again comes soon. Not the adaptive mode, which would
        // slow all readers of the node down for minutes after a short storm of 503.
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(4)
                .with_initial_backoff(Duration::from_millis(100))
                .with_max_backoff(Duration::from_secs(5)),
        )
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    } else if settings.endpoint_url.is_some() {
        // Beside an endpoint a region is a formality: not worth asking the instance's metadata
        // service for. us-east-1 is what S3-compatible servers expect when nobody says otherwise.
        let chain = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new())
            .or_else(Region::new("us-east-1"));
        loader = loader.region(chain);
    }
    if settings.no_sign_request {
        loader = loader.no_credentials();
    } else if let Some(profile) = &settings.profile {
        // Who names a profile wants it, also where the environment holds other credentials.
        let region = settings.region.clone().map(Region::new);
        let provider =
            ProviderConfig::without_region().with_region(region).with_http_client(http.clone());
        let chain = ProfileFileCredentialsProvider::builder().configure(&provider);
        loader = loader.credentials_provider(chain.profile_name(profile).build());
    } else if let Some(credentials) = &settings.credentials {
        loader = loader.credentials_provider(credentials.clone());
    }
    let shared = loader.load().await;
    let endpoint = settings.endpoint_url.clone().or_else(|| endpoint_of(&shared));
    if endpoint.as_deref().is_some_and(names_a_user) {
        let text = "the endpoint's URL (option, AWS_ENDPOINT_URL or profile) names a user; keys \
                    belong into the environment or a profile, on Kubernetes into a Secret";
        return Err(OriginError::Invalid(text.into()));
    }
    let Some(region) = shared.region().cloned() else {
        let advice = "no region: set --region, AWS_REGION or a profile's region";
        return Err(OriginError::Invalid(advice.into()));
    };
    let path_style = settings
        .force_path_style
        .unwrap_or_else(|| endpoint.as_ref().is_some_and(|e| !e.contains(".amazonaws.com")));
    let config = Builder::from(&shared)
        .http_client(http.for_endpoint(endpoint.as_deref()).await?)
        .region(region.clone())
        .force_path_style(path_style);
    let mut config = with_checksums(config, settings, endpoint.as_deref().is_some_and(is_plain));
    if let Some(url) = &endpoint {
        config = config.endpoint_url(url);
    }
    let name = endpoint.unwrap_or_else(|| format!("aws:{region}"));
    Ok((Clients::new(config), name))
}

#[cfg(test)]
mod tests {
    use aws_types::service_config::LoadServiceConfig;

    use super::*;

    #[derive(Debug)]
    struct OwnEndpoint;

    impl LoadServiceConfig for OwnEndpoint {
        fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
            (key.service_id() == "S3" && key.env() == "AWS_ENDPOINT_URL")
                .then(|| "http://s3.example".into())
        }
    }

    #[test]
    fn the_endpoint_for_s3_alone_goes_before_that_for_all_services() {
        let all = SdkConfig::builder().endpoint_url("http://all.example").build();
        assert_eq!(endpoint_of(&all).as_deref(), Some("http://all.example"));
        let own = all.into_builder().service_config(OwnEndpoint).build();
        assert_eq!(endpoint_of(&own).as_deref(), Some("http://s3.example"));
        assert_eq!(endpoint_of(&SdkConfig::builder().build()), None);
    }

    #[tokio::test]
    async fn an_endpoint_that_names_a_user_is_refused_without_its_secret() {
        let settings = S3Settings {
            bucket: "bucket".into(),
            region: Some("us-east-1".into()),
            endpoint_url: Some("http://KEY:HUSH@s3:9000".into()),
            ..S3Settings::default()
        };
        let Err(error) = build(&settings).await else { panic!("it is taken") };
        assert!(error.to_string().contains("Secret"), "{error}");
        assert!(!error.to_string().contains("HUSH"), "{error}");
    }
}
