//! Whose credentials a volume uses.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{self, ProvideCredentials, future};
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use serde::{Deserialize, Serialize};
use weir_csi::Error;
use weir_csi::request::{Publish, Secrets};

use super::exchange::Exchange;
use super::role::Annotated;
use crate::cli::S3Args;
use crate::mounter::protocol::Expiry;

/// How long the SDK may use credentials before it asks for them again, so that new ones are
/// used soon after they came.
const ASKED_EVERY: Duration = Duration::from_secs(20);
/// What is left of a session token's life when a new one is fetched.
const RENEWED_BEFORE: Duration = Duration::from_secs(120);
/// Audience of the service-account token for EKS Pod Identity.
const EKS_AUDIENCE: &str = "pods.eks.amazonaws.com";

/// Keys from a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keys {
    pub(super) access_key: String,
    pub(super) secret_key: String,
    pub(super) session_token: Option<String>,
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
}

/// A service-account token, and the role that it is traded for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WebIdentity {
    pub(super) token: String,
    /// When the token is of no use any more, in seconds since 1970, if kubelet says.
    #[serde(default)]
    pub(super) expires: Option<u64>,
    pub(super) role_arn: Option<String>,
    pub(super) region: Option<String>,
    /// `namespace/service account`.
    pub(super) account: String,
    /// Who trades it.
    #[serde(default)]
    pub(super) through: Through,
}

impl WebIdentity {
    /// Whether keys of one are those of the other: only the token differs.
    fn is_whom(&self, other: &Self) -> bool {
        let of = |web: &Self| {
            (web.role_arn.clone(), web.region.clone(), web.account.clone(), web.through)
        };
        of(self) == of(other)
    }
}

/// Who trades a service-account token for keys.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Through {
    /// A security token service.
    #[default]
    Sts,
    /// The agent of EKS Pod Identity on the node.
    Agent,
}

/// Which tokens kubelet is asked for.
#[derive(Clone, Debug)]
pub(super) struct Tokens {
    /// Audience of the token for the security token service.
    pub(super) audience: String,
    /// Whether there is an agent of EKS Pod Identity, for volumes that name no role.
    pub(super) has_agent: bool,
}

/// Where credentials come from.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// [`Source::Driver`].
    #[default]
    Driver,
    /// [`Source::Secret`].
    Secret,
    /// [`Source::Pod`].
    Pod,
}

/// Whose credentials.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Source {
    /// The node's own: the chain of the SDK.
    Driver,
    /// Those of a secret that the volume names.
    Secret(Keys),
    /// Those that the pod's service account is given.
    Pod(WebIdentity),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind().fmt(f)
    }
}

impl Source {
    /// Reads a request. A secret beside no `authenticationSource` is what counts; a role that the
    /// volume does not name is what the pod's service account was found to say.
    ///
    /// # Errors
    /// [`Error::Invalid`] when what the source needs is missing.
    pub(super) fn parse(
        publish: &Publish,
        tokens: &Tokens,
        annotated: Option<&Annotated>,
    ) -> Result<Self, Error> {
        let get = |key: &str| publish.context.get(key).filter(|value| !value.is_empty());
        let default = if publish.secrets.is_empty() { "driver" } else { "secret" };
        match get("authenticationSource").unwrap_or(default) {
            "driver" => Ok(Self::Driver),
            "secret" => Keys::parse(publish).map(Self::Secret),
            "pod" => WebIdentity::parse(publish, tokens, annotated).map(Self::Pod),
            other => Err(Error::Invalid(format!(
                "authenticationSource {other:?} is unknown; known are driver, secret and pod"
            ))),
        }
    }

    /// Whether the request is for what a pod's token is given, and names no role.
    pub(super) fn lacks_role(publish: &Publish) -> bool {
        let get = |key: &str| publish.context.get(key).filter(|value| !value.is_empty());
        get("authenticationSource") == Some("pod") && get("roleArn").is_none()
    }

    /// Which it is.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Driver => Kind::Driver,
            Self::Secret(_) => Kind::Secret,
            Self::Pod(_) => Kind::Pod,
        }
    }

    /// What is needed to sign, as it is kept in custody, and until when; `None` for the driver's,
    /// which each run of the node has by itself.
    pub(super) fn keys(&self) -> Option<(Vec<u8>, Expiry)> {
        let at = match self {
            Self::Driver => return None,
            Self::Secret(_) => None,
            Self::Pod(web) => web.expires,
        };
        // Strings alone: it can always be written.
        Some((serde_json::to_vec(self).unwrap_or_default(), Expiry { at }))
    }

    /// Reads what [`Source::keys`] made, for a session whose credentials are of this kind. `None`
    /// where nothing was kept, or nothing that can be used: then kubelet's next publish brings them.
    pub(super) fn kept(kind: Kind, keys: Option<&[u8]>) -> Option<Self> {
        if kind == Kind::Driver {
            return Some(Self::Driver);
        }
        let source: Self = serde_json::from_slice(keys?).ok()?;
        (source.kind() == kind).then_some(source)
    }

    /// Puts what the credentials say about the endpoint into the options.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the secret of an inline volume names an endpoint.
    pub(super) fn add_to(&self, options: &mut S3Args, inline: bool) -> Result<(), Error> {
        let Self::Secret(keys) = self else { return Ok(()) };
        if inline && keys.endpoint.is_some() {
            let text = "the secret of an inline volume may not name an endpoint";
            return Err(Error::Invalid(text.into()));
        }
        if options.endpoint_url.is_none() {
            options.endpoint_url.clone_from(&keys.endpoint);
        }
        if options.region.is_none() {
            options.region.clone_from(&keys.region);
        }
        Ok(())
    }
}

impl Keys {
    fn parse(publish: &Publish) -> Result<Self, Error> {
        Self::of_secrets(&publish.secrets)?.ok_or_else(|| {
            let text = "authenticationSource: secret needs a nodePublishSecretRef";
            Error::Invalid(text.into())
        })
    }

    /// Reads keys; `None` where there are no secrets.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names what is missing.
    pub(crate) fn of_secrets(secrets: &Secrets) -> Result<Option<Self>, Error> {
        if secrets.is_empty() {
            return Ok(None);
        }
        let get = |names: [&str; 2]| {
            let found = names.into_iter().find_map(|name| secrets.get(name));
            found.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let need = |names: [&str; 2]| {
            get(names).ok_or_else(|| {
                Error::Invalid(format!("the secret has neither {} nor {}", names[0], names[1]))
            })
        };
        Ok(Some(Self {
            access_key: need(["key_id", "accessKeyID"])?,
            secret_key: need(["access_key", "secretAccessKey"])?,
            session_token: get(["session_token", "sessionToken"]),
            endpoint: get(["endpoint", "endpointUrl"]),
            region: get(["region", "awsRegion"]),
        }))
    }

    /// Endpoint and region that the secret names.
    pub(crate) fn place(&self) -> (Option<String>, Option<String>) {
        (self.endpoint.clone(), self.region.clone())
    }

    /// As the SDK wants them.
    pub(crate) fn credentials(&self) -> Credentials {
        let (key, secret) = (self.access_key.clone(), self.secret_key.clone());
        Credentials::new(key, secret, self.session_token.clone(), None, "secret")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    token: String,
    expiration_timestamp: Option<String>,
}

impl WebIdentity {
    fn parse(
        publish: &Publish,
        asked: &Tokens,
        annotated: Option<&Annotated>,
    ) -> Result<Self, Error> {
        let get = |key: &str| publish.context.get(key).filter(|value| !value.is_empty());
        let role_arn = get("roleArn").or(annotated.and_then(Annotated::role)).map(str::to_owned);
        let (through, audience) = match role_arn {
            None if asked.has_agent => (Through::Agent, EKS_AUDIENCE),
            _ => (Through::Sts, &*asked.audience),
        };
        let missing = || {
            let text = format!(
                "kubelet gave no service-account token for {audience}; the CSIDriver object must \
                 ask for it in tokenRequests (chart: podIdentity)"
            );
            Error::Invalid(text)
        };
        let tokens = get("csi.storage.k8s.io/serviceAccount.tokens").ok_or_else(missing)?;
        // Without the parser's own words, which would repeat the token.
        let mut tokens: std::collections::HashMap<String, Token> = serde_json::from_str(tokens)
            .map_err(|_| Error::Invalid("serviceAccount.tokens is not JSON".into()))?;
        let token = tokens.remove(audience).ok_or_else(missing)?;
        let expires = token.expiration_timestamp.and_then(|text| {
            let at = DateTime::from_str(&text, Format::DateTime).ok()?;
            u64::try_from(at.secs()).ok()
        });
        let part = |key| get(key).unwrap_or_default();
        Ok(Self {
            token: token.token,
            expires,
            role_arn,
            region: get("stsRegion").map(str::to_owned),
            account: format!(
                "{}/{}",
                part("csi.storage.k8s.io/pod.namespace"),
                part("csi.storage.k8s.io/serviceAccount.name")
            ),
            through,
        })
    }
}

/// Credentials of a session that can be replaced while it is used.
pub(super) struct Rotating {
    exchange: Exchange,
    state: Mutex<State>,
}

struct State {
    /// `None` until kubelet publishes the volume again.
    source: Option<Source>,
    session: Option<Credentials>,
}

impl fmt::Debug for Rotating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state().source.as_ref().map(Source::kind).fmt(f)
    }
}

impl Rotating {
    /// A provider of what `source` gives.
    pub(super) fn new(source: Option<Source>, exchange: Exchange) -> Arc<Self> {
        Arc::new(Self { exchange, state: Mutex::new(State { source, session: None }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether these are what it gives.
    pub(super) fn is(&self, source: &Source) -> bool {
        self.state().source.as_ref() == Some(source)
    }

    /// Uses this source from now on, and what it was given before where it is the same role's.
    pub(super) fn replace(&self, source: Source) {
        let mut state = self.state();
        let same = match (&state.source, &source) {
            (Some(Source::Pod(before)), Source::Pod(now)) => before.is_whom(now),
            _ => false,
        };
        if !same {
            state.session = None;
        }
        state.source = Some(source);
    }

    /// What is needed to sign, as it is kept in custody.
    pub(super) fn keys(&self) -> Option<(Vec<u8>, Expiry)> {
        self.state().source.as_ref().and_then(Source::keys)
    }

    async fn provide(&self) -> provider::Result {
        let (source, session) = {
            let state = self.state();
            (state.source.clone(), state.session.clone())
        };
        let awaited = "no keys until kubelet publishes the volume again, about a minute";
        let awaited = || provider::error::CredentialsError::not_loaded(awaited);
        match source.ok_or_else(awaited)? {
            Source::Driver => Err(provider::error::CredentialsError::not_loaded("not rotating")),
            Source::Secret(keys) => {
                let mut credentials = keys.credentials();
                *credentials.expiry_mut() = Some(SystemTime::now() + ASKED_EVERY);
                Ok(credentials)
            }
            Source::Pod(web) => {
                let valid = |c: &Credentials| {
                    c.expiry().is_some_and(|at| at > SystemTime::now() + RENEWED_BEFORE)
                };
                if let Some(session) = session.filter(valid) {
                    return Ok(session);
                }
                let fresh = self.exchange.trade(&web).await?;
                self.state().session = Some(fresh.clone());
                Ok(fresh)
            }
        }
    }
}

impl ProvideCredentials for Rotating {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.provide())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_fuse::blocking::MayBlock;

    fn web(token: &str, role: &str) -> Source {
        Source::Pod(WebIdentity {
            token: token.into(),
            expires: None,
            role_arn: Some(role.into()),
            region: None,
            account: "games/player".into(),
            through: Through::default(),
        })
    }

    #[test]
    fn keys_of_a_role_sign_for_no_other() {
        let exchange = Exchange::new(&MayBlock::own_thread(), None, None, None).unwrap();
        let rotating = Rotating::new(Some(web("one", "a")), exchange);
        let given = Credentials::new("id", "secret", None, None, "test");
        rotating.state().session = Some(given);
        rotating.replace(web("two", "a"));
        assert!(rotating.state().session.is_some(), "only the token is new");
        rotating.replace(web("two", "b"));
        assert!(rotating.state().session.is_none());
    }
}
