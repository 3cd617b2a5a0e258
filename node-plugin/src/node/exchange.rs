//! Trading a service-account token for keys: at a security token service
//! (AssumeRoleWithWebIdentity), or at the agent of EKS Pod Identity.

mod agent;

use std::path::Path;
use std::time::SystemTime;

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{self, error::CredentialsError};
use aws_sdk_sts::error::DisplayErrorContext;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::retry::RetryConfig;
use weir_fuse::blocking::MayBlock;
use weir_fuse::origin::OriginError;
use weir_fuse::origin::s3::http_client;

use agent::Agent;

use super::credentials::{Through, WebIdentity};
use crate::config::s3;
use crate::exit::{Failure, Kind};

/// Longest text of a refusal, in characters: the service decides how much it says.
const TEXT_MAX: usize = 1024;

/// Where tokens are traded.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    sts_url: Option<String>,
    http: SharedHttpClient,
    agent: Option<Agent>,
    retry: RetryConfig,
}

impl Exchange {
    /// At the security token service of Amazon, or at the one at `sts_url`, whose certificate may be
    /// of an authority in `ca_bundle`; and at the agent at `agent_url`, if there is one.
    ///
    /// # Errors
    /// When the bundle cannot be read, or one of the URLs is none.
    pub(super) fn new(
        may: &MayBlock,
        sts_url: Option<String>,
        ca_bundle: Option<&Path>,
        agent_url: Option<&str>,
    ) -> Result<Self, Failure> {
        let urls =
            [("--sts-endpoint-url", sts_url.as_deref()), ("--pod-identity-agent-url", agent_url)];
        for (option, url) in urls {
            url.map_or(Ok(()), |url| s3::check_endpoint(option, url))?;
        }
        let agent = agent_url.map(Agent::new).transpose()?;
        let unread =
            |error: OriginError| Failure::new(Kind::Usage, format!("--sts-ca-bundle: {error}"));
        let http = http_client(may, ca_bundle).map_err(unread)?;
        Ok(Self { sts_url, http, agent, retry: RetryConfig::standard() })
    }

    /// Keys for the bearer of a token.
    ///
    /// # Errors
    /// What is answered; the token is not repeated.
    pub(super) async fn trade(&self, web: &WebIdentity) -> provider::Result {
        match (web.through, &self.agent) {
            (Through::Sts, _) => self.at_sts(web).await,
            (Through::Agent, Some(agent)) => agent.trade(&web.token).await,
            (Through::Agent, None) => {
                let text = "this node knows no agent of EKS Pod Identity any more";
                Err(CredentialsError::provider_error(text))
            }
        }
    }

    async fn at_sts(&self, web: &WebIdentity) -> provider::Result {
        let region = web.region.clone().unwrap_or_else(|| "us-east-1".to_owned());
        let mut config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(self.http.clone())
            .retry_config(self.retry.clone())
            .region(Region::new(region));
        if let Some(url) = &self.sts_url {
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
