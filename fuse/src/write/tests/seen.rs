//! Whether what is seen is what the model says.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::model::{OTHER, Outcome, World};

/// Renames are copies and removals, and nothing tells one node of another's, nor of a second one
/// of a file that is not under change. What the bucket then holds are whole files, and none of
/// them is lost by it.
pub(super) fn is_whole(world: &World, bucket: &BTreeMap<String, Bytes>) -> bool {
    let known = |bytes: &Bytes| {
        world.history.contains(bytes) || world.bucket.values().any(|before| before == bytes)
    };
    let others = world.bucket.get(OTHER);
    bucket.values().all(known) && bucket.values().any(|bytes| Some(bytes) == others)
}

/// Whether what is seen is this world. `alone`: one process knows all of it. `weaves`: bytes may
/// have changed while they were sent.
pub(super) fn fits(
    world: &World,
    bucket: &BTreeMap<String, Bytes>,
    lost: &[Bytes],
    alone: bool,
    weaves: bool,
) -> bool {
    let kept = world.lost.iter().all(|bytes| lost.contains(bytes));
    let whole = lost.iter().all(|bytes| world.history.contains(bytes));
    // Who is not sure keeps a file too many; who knows all of it does not.
    let no_more = lost.len() == world.lost.len() || !alone;
    let same = |(key, bytes): (&String, &Bytes)| match bucket.get(key) {
        Some(there) if weaves => there == bytes || is_woven(there, &world.history),
        there => there == Some(bytes),
    };
    let stored = world.bucket.len() == bucket.len() && world.bucket.iter().all(same);
    stored && kept && no_more && whole
}

/// What a write that comes while parts are sent may make of a stored file: each byte is of
/// before or of after it, and the length is one of the two.
pub(super) fn is_woven(bytes: &Bytes, history: &[Bytes]) -> bool {
    let byte = |at: usize| history.iter().any(|of| of.get(at) == Some(&bytes[at]));
    history.iter().any(|of| of.len() == bytes.len()) && (0..bytes.len()).all(byte)
}

/// A world in few words.
pub(super) fn told(
    bucket: &BTreeMap<String, Bytes>,
    lost: &[Bytes],
    ends: (Option<Outcome>, Outcome),
) -> String {
    let word = |bytes: &Bytes| format!("{}:{:08x}", bytes.len(), crc32c::crc32c(bytes));
    let objects: Vec<_> = bucket
        .iter()
        .filter(|(key, _)| *key != "e/there")
        .map(|(key, bytes)| format!("{key}={}", word(bytes)))
        .collect();
    let lost: Vec<_> = lost.iter().map(word).collect();
    format!("{} lost {lost:?} results {ends:?}", objects.join(" "))
}
