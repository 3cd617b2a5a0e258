//! Event records of S3's, and of servers like it, as they come in messages of queues and webhooks.
//!
//! Sources: "Event message structure" and "EventBridge event message structure" in Amazon's guide to S3,
//! and what MinIO sends, which is of the first form. Keys are form-encoded in the first, and plain in
//! the second.

use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::Change;

/// Envelopes in each other that are opened: SNS in SQS is one.
const ENVELOPES_MAX: usize = 3;

/// Why a message says nothing.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is no JSON, or of another form than those that are known.
    #[error("not an event of S3's: {0}")]
    Form(String),
    /// A key that is not what it says.
    #[error("the key of a record is not form-encoded UTF-8")]
    Key,
}

/// The objects of which a message says that they were changed: none, where it is about something else.
///
/// # Errors
/// [`Unreadable`]: it may have said something.
pub fn changes(message: &[u8]) -> Result<Vec<Change>, Unreadable> {
    let mut message = message.to_owned();
    for _ in 0..ENVELOPES_MAX {
        let read: Message = serde_json::from_slice(&message).map_err(form)?;
        match read {
            Message::Records { records } => {
                return records.into_iter().filter_map(of_record).collect();
            }
            Message::Bridged { source, kind, detail } => return of_bridge(&source, &kind, detail),
            Message::Notification { message: inner } => message = inner.into_bytes(),
            Message::Test { .. } => return Ok(Vec::new()),
        }
    }
    Err(Unreadable::Form("too many envelopes in each other".into()))
}

fn form(error: serde_json::Error) -> Unreadable {
    Unreadable::Form(error.to_string())
}

/// What messages are known, by the fields that each alone has.
#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Records {
        #[serde(rename = "Records")]
        records: Vec<Record>,
    },
    /// Of EventBridge's.
    Bridged {
        source: String,
        #[serde(rename = "detail-type", default)]
        kind: String,
        detail: serde_json::Value,
    },
    /// Of SNS's.
    Notification {
        #[serde(rename = "Message")]
        message: String,
    },
    /// What S3 sends when a queue is named to it.
    Test {
        #[serde(rename = "Event")]
        _event: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    #[serde(default)]
    event_name: String,
    s3: Option<About>,
}

#[derive(Deserialize)]
struct About {
    bucket: Bucket,
    object: Object,
}

#[derive(Deserialize)]
struct Bucket {
    name: Box<str>,
}

#[derive(Deserialize)]
struct Object {
    key: Box<str>,
}

/// What an event of this name is about: `s3:ObjectAccessed:Get`, as MinIO calls it, and
/// `ObjectAccessed:Get` are one.
fn kind(name: &str) -> &str {
    let name = name.strip_prefix("s3:").unwrap_or(name);
    name.split(':').next().unwrap_or(name)
}

fn of_record(record: Record) -> Option<Result<Change, Unreadable>> {
    let about = record.s3?;
    let kind = kind(&record.event_name);
    // It leaves the object what it was.
    if kind == "ObjectAccessed" {
        return None;
    }
    // Of what is not known it cannot be said that the object is there.
    let gone = kind != "ObjectCreated";
    let spaced = about.object.key.replace('+', " ");
    let key = percent_decode_str(&spaced).decode_utf8();
    let change = |key: &str| Change { bucket: about.bucket.name, key: key.into(), gone };
    Some(key.map(|key| change(&key)).map_err(|_| Unreadable::Key))
}

fn of_bridge(
    source: &str,
    kind: &str,
    detail: serde_json::Value,
) -> Result<Vec<Change>, Unreadable> {
    if source != "aws.s3" {
        return Ok(Vec::new());
    }
    let about: About = serde_json::from_value(detail).map_err(form)?;
    let gone = kind != "Object Created";
    Ok(vec![Change { bucket: about.bucket.name, key: about.object.key, gone }])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(message: &serde_json::Value) -> Result<Vec<Change>, Unreadable> {
        changes(&serde_json::to_vec(message).unwrap())
    }

    fn change(bucket: &str, key: &str) -> Change {
        Change { bucket: bucket.into(), key: key.into(), gone: false }
    }

    fn removal(bucket: &str, key: &str) -> Change {
        Change { gone: true, ..change(bucket, key) }
    }

    fn record(event: &str, key: &str) -> serde_json::Value {
        json!({
            "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": event,
            "s3": { "bucket": { "name": "b", "arn": "arn:aws:s3:::b" },
                    "object": { "key": key, "size": 5, "eTag": "e", "sequencer": "1" } },
        })
    }

    #[test]
    fn keys_of_records_are_form_encoded_and_those_of_event_bridge_are_plain() {
        for (encoded, key) in [
            ("a+b%2Bc", "a b+c"),
            ("100%25", "100%"),
            ("%C3%BCber/%E2%82%AC", "über/€"),
            ("a/b", "a/b"),
        ] {
            let message = json!({ "Records": [record("ObjectCreated:Put", encoded)] });
            assert_eq!(read(&message), Ok(vec![change("b", key)]));
            let message = json!({
                "version": "0", "detail-type": "Object Created", "source": "aws.s3",
                "detail": { "bucket": { "name": "b" }, "object": { "key": key, "etag": "e" } },
            });
            assert_eq!(read(&message), Ok(vec![change("b", key)]));
        }
    }

    #[test]
    fn a_message_has_one_record_or_many_in_an_envelope_or_none() {
        let records = json!({
            "EventName": "s3:ObjectCreated:Put", "Key": "b/one",
            "Records": [
                record("s3:ObjectCreated:Put", "one"), record("ObjectRemoved:Delete", "two"),
                record("s3:ObjectAccessed:Get", "three"), record("ObjectAccessed:Head", "three"),
            ],
        });
        let expected = vec![change("b", "one"), removal("b", "two")];
        assert_eq!(read(&records), Ok(expected.clone()));
        let envelope =
            json!({ "Type": "Notification", "TopicArn": "t", "Message": records.to_string() });
        assert_eq!(read(&envelope), Ok(expected));
    }

    #[test]
    fn what_is_about_something_else_says_nothing_and_what_may_be_about_an_object_is_not_passed_over()
     {
        let test = json!({ "Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b" });
        assert_eq!(read(&test), Ok(Vec::new()));
        let other = json!({ "source": "aws.ec2", "detail": { "state": "running" } });
        assert_eq!(read(&other), Ok(Vec::new()));
        assert_eq!(read(&json!({ "Records": [{ "eventSource": "aws:sqs" }] })), Ok(Vec::new()));
        let bad = json!({ "Records": [record("ObjectCreated:Put", "%ff")] });
        assert_eq!(read(&bad), Err(Unreadable::Key));
        let nested =
            (0..5).fold("{}".to_owned(), |inner, _| json!({ "Message": inner }).to_string());
        for bad in
            ["", "{", "[]", "{}", "null", nested.as_str(), r#"{"source":"aws.s3","detail":{}}"#]
        {
            assert!(matches!(changes(bad.as_bytes()), Err(Unreadable::Form(_))), "{bad}");
        }
    }
}
