//! Trading a service-account token for credentials (AssumeRoleWithWebIdentity).

use std::time::SystemTime;

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{self, error::CredentialsError};
use aws_sdk_sts::error::DisplayErrorContext;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::retry::RetryConfig;
use weir_fuse::origin::OriginError;
use weir_fuse::origin::s3::http_client;

use super::credentials::WebIdentity;

/// Longest text of a refusal, in characters: the service decides how much it says.
const TEXT_MAX: usize = 1024;

/// A security token service.
#[derive(Clone, Debug)]
pub(super) struct Sts {
    endpoint_url: Option<String>,
    http: SharedHttpClient,
    retry: RetryConfig,
}

impl Sts {
    /// That of Amazon, or the one at an endpoint.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub(super) fn new(endpoint_url: Option<String>) -> Result<Self, OriginError> {
        Ok(Self { endpoint_url, http: http_client(None)?, retry: RetryConfig::standard() })
    }

    /// Credentials for the bearer of a token.
    ///
    /// # Errors
    /// What the service answers; the token is not repeated.
    pub(super) async fn trade(&self, web: &WebIdentity) -> provider::Result {
        let region = web.region.clone().unwrap_or_else(|| "us-east-1".to_owned());
        let mut config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(self.http.clone())
            .retry_config(self.retry.clone())
            .region(Region::new(region));
        if let Some(url) = &self.endpoint_url {
            config = config.endpoint_url(url);
        }
        let name: String = web.account.chars().map(|c| if c == '/' { '.' } else { c }).collect();
        let answer = aws_sdk_sts::Client::from_conf(config.build())
            .assume_role_with_web_identity()
            .set_role_arn(web.role_arn.clone())
            .role_session_name(name.chars().take(64).collect::<String>())
            .web_identity_token(&web.token)
            .send()
            .await
            .map_err(|error| {
                let text = DisplayErrorContext(&error).to_string();
                let text = text.replace(&web.token, "<token>");
                let one_line = |c: char| if c.is_control() { ' ' } else { c };
                let text: String = text.chars().map(one_line).take(TEXT_MAX).collect();
                CredentialsError::provider_error(format!("AssumeRoleWithWebIdentity: {text}"))
            })?;
        let keys = answer.credentials.ok_or_else(|| {
            CredentialsError::provider_error("AssumeRoleWithWebIdentity gave no credentials")
        })?;
        let expiry = SystemTime::try_from(keys.expiration).ok();
        Ok(Credentials::new(
            keys.access_key_id,
            keys.secret_access_key,
            Some(keys.session_token),
            expiry,
            "web identity",
        ))
    }
}

#[cfg(test)]
mod fuzz;
