//! The agent of EKS Pod Identity: it runs on each node of a cluster of Amazon's, and gives the bearer
//! of a service-account token the keys of the role that is associated with the account
//! (`GET /v1/credentials`, the token as `Authorization`; what container credential providers of the
//! SDKs speak).

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{self, error::CredentialsError};
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use crate::exit::{Failure, Kind};

/// It is on the same machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an answer that are read.
const ANSWER_MAX: usize = 64 << 10;

/// Where it listens.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    credentials: Uri,
    http: Client<HttpConnector, Empty<Bytes>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: String,
    secret_access_key: String,
    token: String,
    expiration: String,
}

impl Agent {
    /// The one at `url`, without a path.
    ///
    /// # Errors
    /// When that is no `http` URL.
    pub(super) fn new(url: &str) -> Result<Self, Failure> {
        let text = format!("--pod-identity-agent-url {url:?} is no http URL");
        let wrong = || Failure::new(Kind::Usage, text.clone());
        let base = url.trim_end_matches('/');
        if !base.starts_with("http://") {
            return Err(wrong());
        }
        let credentials = format!("{base}/v1/credentials").parse().map_err(|_| wrong())?;
        Ok(Self { credentials, http: Client::builder(TokioExecutor::new()).build_http() })
    }

    /// Keys for the bearer of a token.
    ///
    /// # Errors
    /// What the agent answers; neither token nor keys are repeated.
    pub(super) async fn trade(&self, token: &str) -> provider::Result {
        let failed = |text: String| {
            CredentialsError::provider_error(format!("the agent of EKS Pod Identity: {text}"))
        };
        let mut bearer = HeaderValue::from_str(token)
            .map_err(|_| failed("the token can be in no header".into()))?;
        bearer.set_sensitive(true);
        let mut request = Request::get(self.credentials.clone()).body(Empty::new());
        if let Ok(request) = &mut request {
            request.headers_mut().insert(AUTHORIZATION, bearer);
        }
        let request = request.map_err(|error| failed(error.to_string()))?;
        let answered = async {
            let answer = self.http.request(request).await.map_err(|e| failed(e.to_string()))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
            let body = body.map_err(|error| failed(error.to_string()))?.to_bytes();
            if !status.is_success() {
                return Err(failed(format!("it answers {status}")));
            }
            Ok(body)
        };
        let body = tokio::time::timeout(PATIENCE, answered)
            .await
            .map_err(|_| failed(format!("no answer within {} s", PATIENCE.as_secs())))??;
        // Without the parser's own words, which would repeat keys.
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| failed("it answers what is no JSON of keys".into()))?;
        let expiry = DateTime::from_str(&answer.expiration, Format::DateTime)
            .ok()
            .and_then(|at| SystemTime::try_from(at).ok());
        let (key, secret) = (answer.access_key_id, answer.secret_access_key);
        Ok(Credentials::new(key, secret, Some(answer.token), expiry, "EKS Pod Identity"))
    }
}
