//! What Weir's own publishers send: changes, counted, so that whoever hears them knows of a gap.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Change;

/// Longest message that is read, in bytes: what a NATS server takes unless it is told otherwise.
pub const MESSAGE_MAX: usize = 1 << 20;
/// Longest name of a publisher that is heard, in bytes.
pub const NAME_MAX: usize = 256;
/// Most buckets that one relay says it relays.
const BUCKETS_MAX: usize = 1024;

/// What a publisher publishes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Its own writes. That it says nothing means nothing.
    #[default]
    Node,
    /// All changes of some buckets, whoever makes them. While one is heard, silence says that nothing was
    /// changed there.
    Relay,
}

/// A message. One without changes repeats the last number: it says that nothing was missed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Announcement {
    /// Form of the message; 1.
    pub weir: u8,
    /// Who sends it. Of a relay: what it relays, so that who takes its place has its name.
    pub publisher: Box<str>,
    /// What it publishes.
    #[serde(default)]
    pub role: Role,
    /// Which run of that: a publisher that starts again has another one.
    pub epoch: u64,
    /// How many with changes it has sent in this run, with this one.
    pub sequence: u64,
    /// The publisher's own clock, in milliseconds since this run began.
    #[serde(default)]
    pub clock_ms: u64,
    /// The buckets whose changes a relay relays, all of them. The number: within so many milliseconds an
    /// object that it wrote there came back to it as an event, the last time that it tried.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub relays: BTreeMap<Box<str>, Option<u64>>,
    /// Whether it is the last of this run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub goodbye: bool,
    /// What was changed.
    #[serde(default)]
    pub changes: Vec<Change>,
}

/// The form that is written, and read.
const FORM: u8 = 1;

impl Announcement {
    /// A message of a run that has sent so many with changes.
    pub fn new(publisher: &str, role: Role, epoch: u64, sequence: u64) -> Self {
        Self {
            weir: FORM,
            publisher: publisher.into(),
            role,
            epoch,
            sequence,
            clock_ms: 0,
            relays: BTreeMap::new(),
            goodbye: false,
            changes: Vec::new(),
        }
    }

    /// As it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Numbers and strings can be written, and memory takes all.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// What somebody has sent; `None`: it is none of Weir's, or of a form to come.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let read: Self = serde_json::from_slice(bytes).ok()?;
        let can_be = read.publisher.len() <= NAME_MAX && read.relays.len() <= BUCKETS_MAX;
        (read.weir == FORM && can_be).then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_read_and_nothing_else() {
        let change = |gone| Change { bucket: "b".into(), key: "ü +%".into(), gone };
        for changes in [vec![], vec![change(false), change(true)]] {
            let sent = Announcement {
                relays: BTreeMap::from([("b".into(), Some(40)), ("c".into(), None)]),
                goodbye: changes.is_empty(),
                changes,
                ..Announcement::new("p", Role::Relay, 1, u64::MAX)
            };
            assert_eq!(Announcement::parse(&sent.to_bytes()), Some(sent));
        }
        let later = br#"{"weir":2,"publisher":"p","epoch":1,"sequence":1,"changes":[]}"#;
        let long = Announcement::new(&"p".repeat(NAME_MAX + 1), Role::Node, 1, 1).to_bytes();
        for other in [&later[..], &long, b"", br#"{"Records":[]}"#] {
            assert_eq!(Announcement::parse(other), None);
        }
    }
}
