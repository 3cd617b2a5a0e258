//! Whether the endpoint honours conditional writes. Some take the header and ignore it.

use tokio::sync::OnceCell;

use super::Writer;
use crate::origin::{Condition, OriginError, UploadBody, WriteIntent};

/// What is known of the endpoint.
#[derive(Default)]
pub(super) struct Conditions {
    honoured: OnceCell<bool>,
}

impl Writer {
    /// Whether If-Match and If-None-Match mean something here; asked once, before the first
    /// conditional write, with a probe object that is removed again.
    pub(super) async fn conditions_honoured(&self) -> bool {
        let known = self.conditions.honoured.get_or_try_init(|| self.probe()).await;
        // Not to know is not to do without: the condition is sent, and the answer is believed.
        known.copied().unwrap_or(true)
    }

    async fn probe(&self) -> Result<bool, OriginError> {
        let nonce = new_nonce();
        let key = format!("{}.weir-probe-{nonce}", self.names.settings.prefix);
        let write = |condition| WriteIntent { condition, writer: nonce.clone() };
        let origin = &self.names.origin;
        origin.put(&key, UploadBody::empty(), &write(Condition::Always)).await?;
        let second = origin.put(&key, UploadBody::empty(), &write(Condition::Absent)).await;
        if let Err(error) = origin.delete(&key, &Condition::Always).await {
            tracing::warn!(%key, %error, "probe object stays");
        }
        match second {
            Err(OriginError::Conflict) => Ok(true),
            Ok(_) | Err(OriginError::Unsupported(_) | OriginError::Invalid(_)) => {
                tracing::warn!(
                    "the endpoint ignores conditional writes; two writers of one name are told \
                     apart by a check before the write only"
                );
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The condition to send for `wanted`. Where the endpoint ignores conditions it is checked
    /// here instead, which leaves a short gap.
    pub(super) async fn enforce(
        &self,
        key: &str,
        wanted: &Condition,
    ) -> Result<Condition, OriginError> {
        if *wanted == Condition::Always || self.conditions_honoured().await {
            return Ok(wanted.clone());
        }
        let present = match self.names.origin.head(key).await {
            Ok(info) => Some(info),
            Err(OriginError::NotFound) => None,
            Err(error) => return Err(error),
        };
        let holds = match (wanted, present) {
            (Condition::Always, _) | (Condition::Absent, None) => true,
            (Condition::Absent, Some(_)) | (Condition::Matches(_), None) => false,
            (Condition::Matches(etag), Some(info)) => info.etag.as_ref() == Some(etag),
        };
        if holds { Ok(Condition::Always) } else { Err(OriginError::Conflict) }
    }
}

/// A text that no other writer uses.
pub(super) fn new_nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
}
