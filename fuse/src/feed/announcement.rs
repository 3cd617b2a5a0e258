//! What Weir's own publishers send: changes, counted, so that whoever hears them knows of a gap.

use serde::{Deserialize, Serialize};

use super::Change;

/// Longest message that is read, in bytes: what a NATS server takes unless it is told otherwise.
pub const MESSAGE_MAX: usize = 1 << 20;

/// A message. One without changes repeats the last number: it says that nothing was missed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Announcement {
    /// Form of the message; 1.
    weir: u8,
    /// Who sends it.
    pub publisher: Box<str>,
    /// Which run of that: a publisher that starts again has another one.
    pub epoch: u64,
    /// How many with changes it has sent in this run, with this one.
    pub sequence: u64,
    /// What was changed.
    #[serde(default)]
    pub changes: Vec<Change>,
}

/// The form that is written, and read.
const FORM: u8 = 1;

impl Announcement {
    /// Says that these were changed; or, of none, how many such were sent.
    pub fn new(publisher: &str, epoch: u64, sequence: u64, changes: Vec<Change>) -> Self {
        Self { weir: FORM, publisher: publisher.into(), epoch, sequence, changes }
    }

    /// As it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Numbers and strings can be written, and memory takes all.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// What somebody has sent; `None`: it is none of Weir's, or of a form to come.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let read: Self = serde_json::from_slice(bytes).ok()?;
        (read.weir == FORM).then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_read_and_nothing_else() {
        let change = Change { bucket: "b".into(), key: "ü +%".into() };
        for changes in [vec![], vec![change]] {
            let sent = Announcement::new("p", 1, u64::MAX, changes);
            assert_eq!(Announcement::parse(&sent.to_bytes()), Some(sent));
        }
        let later = br#"{"weir":2,"publisher":"p","epoch":1,"sequence":1,"changes":[]}"#;
        for other in [&later[..], b"", br#"{"Records":[]}"#] {
            assert_eq!(Announcement::parse(other), None);
        }
    }
}
