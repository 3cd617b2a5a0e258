//! Keys and tags come from whoever fills a bucket, and from the server.

use std::path::{Component, Path};
use std::time::{Instant, SystemTime};

use weir_fuzz::near_texts;

use super::key::{DirPrefix, KeyRole, NAME_MAX_BYTES};
use super::ttl::MetadataTtl;
use super::version::{BucketId, ETag, Version, VersionKey};

fn is_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let is_one = matches!(parts.next(), Some(Component::Normal(part)) if part == name);
    is_one && parts.next().is_none() && name.len() <= NAME_MAX_BYTES && !name.contains('\0')
}

/// The prefix is before the bar, the key behind it.
#[test]
fn every_key_is_shown_under_a_name_that_leads_back_to_it_or_not_at_all() {
    let long = format!("a/|a/{}", "x".repeat(NAME_MAX_BYTES));
    let real =
        ["|file", "a/|a/b", "a/b/|a/b/c/", "a/|a/", "|.weir-probe", "|a//b", "a|a/..", &long];
    near_texts(&real, |text| {
        let (prefix, key) = text.split_once('|').unwrap_or(("", text));
        let Ok(prefix) = DirPrefix::parse(prefix) else { return };
        assert!(prefix.is_root() || prefix.as_str().ends_with('/'));
        assert!(prefix.as_str().split_terminator('/').all(is_name));
        assert_eq!(DirPrefix::parse(prefix.as_str()).as_ref(), Ok(&prefix));
        match prefix.classify(key) {
            KeyRole::OwnMarker => assert_eq!(key, prefix.as_str()),
            KeyRole::File(name) => {
                assert!(is_name(name), "{name:?}");
                assert_eq!(prefix.key_of(name), key);
            }
            KeyRole::Dir(name) => {
                assert!(is_name(name), "{name:?}");
                assert_eq!(prefix.child(name).as_str(), key);
                assert_eq!(DirPrefix::parse(key), Ok(prefix.child(name)));
            }
            KeyRole::Hidden(_) => {}
        }
    });
}

#[test]
fn a_tag_is_itself_in_each_of_its_forms_and_stands_for_no_other() {
    let real = ["\"9b2cf535f27731c974343645a3985328-2\"", "abc", "W/\"abc\"", "\"*\"", "\"W/x\""];
    near_texts(&real, |text| {
        let Some(tag) = ETag::new(text) else { return };
        assert_eq!(ETag::new(tag.as_str()).as_ref(), Some(&tag));
        assert!(!tag.is_any());
        assert!(tag.is_same(Some(&tag)) && tag.bare().is_same(Some(&tag)), "{:?}", tag.bare());
        let other = ETag::new("of something else").unwrap();
        assert!(tag == other || !tag.bare().is_same(Some(&other)), "{:?}", tag.bare());
        assert_eq!(tag.bare().quoted(), tag);
        assert_eq!(tag.as_match().is_some(), tag.is_strong());
    });
}

/// Two identities, divided by a line; each of them is endpoint, bucket, key and tag.
#[test]
fn identities_have_the_same_bytes_where_they_are_the_same() {
    near_texts(&["http://s3|b|k|t\nhttp://s3|b|k|t", "e|b|k|\"t\"\ne|b|k\"t|\""], |text| {
        let (one, other) = text.split_once('\n').unwrap_or((text, ""));
        let key = |text: &str| {
            let mut parts = text.split('|');
            let mut next = || parts.next().unwrap_or_default().to_owned();
            let (bucket, key) = (BucketId::new(&next(), &next()), next().into());
            let version = Version { etag: ETag::new(&next())?, size: text.len() as u64 % 2 };
            Some(VersionKey { bucket, key, version })
        };
        let (Some(one), Some(other)) = (key(one), key(other)) else { return };
        assert_eq!(one == other, one.to_bytes() == other.to_bytes());
    });
}

#[test]
fn a_lifetime_that_is_taken_can_be_added_to_any_clock() {
    near_texts(&["1", "2.5", "minimal", "indefinite", "1000000000"], |text| {
        let Ok(ttl) = text.parse::<MetadataTtl>() else { return };
        Instant::now().checked_add(ttl.duration()).unwrap();
        SystemTime::now().checked_add(ttl.duration()).unwrap();
    });
}
