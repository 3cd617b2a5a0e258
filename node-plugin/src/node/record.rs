//! What is kept in custody about a session, so that another run of the node can serve it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weir_fuse::adapter::Handshake;

use super::volume::Settings;
use crate::kubernetes::events::Subject;

/// What the fields mean. It grows when a release of before would serve a record wrongly; a field more
/// or less does not need that: one that is not known is passed over, one that is not there has its
/// default.
const SCHEMA: u32 = 1;

/// A target that shows a session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Published {
    /// The volume's handle.
    pub(super) volume_id: String,
    /// Whether the pod may only read.
    #[serde(default)]
    pub(super) read_only: bool,
    /// Whom it is shown to.
    #[serde(default)]
    pub(super) subject: Subject,
}

/// All of a session but its keys: no secret and no token.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(default)]
    schema: u32,
    /// What it was made with.
    pub(super) settings: Settings,
    /// What kernel and first engine agreed on.
    pub(super) handshake: Handshake,
    /// Device number of its mount, as `major:minor`.
    #[serde(default)]
    pub(super) device: String,
    /// A name that no other mount has or had.
    #[serde(default)]
    pub(super) mount: String,
    /// Where it is shown.
    #[serde(default)]
    pub(super) targets: BTreeMap<PathBuf, Published>,
}

impl Record {
    /// Of a session that is shown nowhere yet.
    pub(super) fn new(
        settings: Settings,
        handshake: Handshake,
        device: String,
        mount: String,
    ) -> Self {
        Self { schema: SCHEMA, settings, handshake, device, mount, targets: BTreeMap::new() }
    }

    /// Reads what [`Record::bytes`] made.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        match record.schema {
            0 | SCHEMA => Ok(record),
            newer => Err(format!("it is of schema {newer}, and this release knows {SCHEMA}")),
        }
    }

    /// As it goes into custody.
    pub(super) fn bytes(&self) -> Vec<u8> {
        // Maps of strings, and no number that JSON lacks: it can always be written.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn record() -> Record {
        let handshake = Handshake { request: vec![1, 2], reply: vec![3] };
        let mut settings = Settings::default();
        settings.s3.bucket = "assets".into();
        let mut record = Record::new(settings, handshake, "0:50".into(), "name".into());
        let published = Published {
            volume_id: "volume".into(),
            read_only: true,
            subject: Subject { pod: "pod".into(), ..Subject::default() },
        };
        record.targets.insert("/pods/uid/mount".into(), published);
        record
    }

    /// All records with one field less, at whatever depth.
    fn shorter(value: &Value, all: &mut Vec<Value>, wrap: &dyn Fn(Value) -> Value) {
        let Value::Object(fields) = value else { return };
        // A lifetime is one value, however it is written.
        for key in fields.keys().filter(|key| !key.ends_with("ttl")) {
            let mut fewer = fields.clone();
            fewer.remove(key);
            all.push(wrap(Value::Object(fewer)));
            let inner = |inner: Value| {
                let mut changed = fields.clone();
                changed.insert(key.clone(), inner);
                wrap(Value::Object(changed))
            };
            shorter(&fields[key], all, &inner);
        }
    }

    #[test]
    fn a_record_with_a_field_more_or_less_is_read() {
        let text = record().bytes();
        let whole: Value = serde_json::from_slice(&text).unwrap();
        let read = |value: &Value| Record::read(&serde_json::to_vec(value).unwrap());
        let mut all = Vec::new();
        shorter(&whole, &mut all, &|value| value);
        assert!(all.len() > 30, "{}", all.len());
        let refused: Vec<_> = all.iter().filter(|value| read(value).is_err()).collect();
        // The handshake and each half of it, the settings as a whole, and the handle of the volume
        // that a target shows: without those nothing can be served.
        assert_eq!(refused.len(), 5, "{refused:#?}");
        let mut more = whole.clone();
        more["new"] = Value::Bool(true);
        more["settings"]["s3"]["new"] = Value::from("text");
        more["settings"]["session"]["names"]["new"] = Value::from(1);
        let again = read(&more).unwrap();
        assert_eq!(again.bytes(), text);
        let mut newer = whole.clone();
        newer["schema"] = Value::from(SCHEMA + 1);
        assert!(read(&newer).err().unwrap().contains("schema 2"));
        assert!(Record::read(b"").is_err());
    }
}
