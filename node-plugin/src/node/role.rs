//! The role that a pod's token is traded for, where its volume names none: what the annotation of the
//! pod's service account says, where that may be asked for.

use serde::{Deserialize, Serialize};
use weir_csi::Error;
use weir_csi::request::Publish;

use super::credentials::Source;
use super::volume::{Defaults, Settings};
use crate::kubernetes::accounts::{ANNOTATION, Account, NoRole};

/// What a service account was found to say.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Annotated {
    /// The ARN of a role.
    Role(String),
    /// Nothing: the agent of EKS Pod Identity may know one.
    Nothing,
}

impl Annotated {
    /// The ARN of the role, if one is named.
    pub(super) fn role(&self) -> Option<&str> {
        match self {
            Self::Role(arn) => Some(arn),
            Self::Nothing => None,
        }
    }
}

/// What the service account of a pod says about its role; `None` where the volume says so itself, or
/// where nobody is asked. A target that shows a session goes on with what that was `made` with: nobody
/// is asked again until the pod starts anew.
///
/// # Errors
/// What is wrong with the account, or why it cannot be read.
pub(super) async fn annotated(
    publish: &Publish,
    defaults: &Defaults,
    made: Option<&Settings>,
) -> Result<Option<Annotated>, Error> {
    if !Source::lacks_role(publish) {
        return Ok(None);
    }
    if let Some(made) = made {
        return Ok(made.annotated.clone());
    }
    let Some(accounts) = &defaults.accounts else { return Ok(None) };
    let account = account(publish).ok_or_else(|| {
        Error::Invalid("kubelet does not say which service account the pod has".into())
    })?;
    match accounts.role(&account).await? {
        Some(role) => {
            tracing::info!(%account, role, "the role of a pod");
            Ok(Some(Annotated::Role(role)))
        }
        None if defaults.tokens.has_agent => Ok(Some(Annotated::Nothing)),
        None => Err(Error::Precondition(format!(
            "nothing names a role for the pod: {account} has no annotation {ANNOTATION}, and the \
             volume no roleArn; give it one of them"
        ))),
    }
}

/// Asks anew the next time: a publish has failed, and it may be by the role.
pub(super) fn forget(publish: &Publish, defaults: &Defaults) {
    if let (Some(accounts), Some(account)) = (&defaults.accounts, account(publish)) {
        accounts.forget(&account);
    }
}

fn account(publish: &Publish) -> Option<Account> {
    let get = |key: &str| publish.context.get(&format!("csi.storage.k8s.io/{key}"));
    Account::new(get("pod.namespace")?, get("serviceAccount.name")?)
}

impl From<NoRole> for Error {
    fn from(error: NoRole) -> Self {
        let text = error.to_string();
        match error {
            NoRole::Malformed { .. } | NoRole::NotFound(_) => Self::Precondition(text),
            NoRole::Forbidden(_) => Self::Denied(text),
            NoRole::Unanswered { .. } => Self::Unavailable(text),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
