use super::*;

#[test]
fn what_is_at_the_target_is_replaced_where_it_is_what_was_meant_and_not_for_lack_of_a_tag() {
    let tag = |text| ETag::new(text).unwrap();
    let moved = |over, outdated| Moved {
        from: "a".into(),
        to: "b".into(),
        version: Version { etag: tag("source"), size: 1 },
        over,
        begun: true,
        copied: None,
        outdated,
    };
    let there = |etag| ObjectInfo {
        size: 1,
        etag,
        mtime: SystemTime::now(),
        version_id: None,
        writer: None,
    };
    let (untagged, old) = (there(None), there(Some(tag("old"))));
    let absent = moved(Condition::Absent, Some(tag("old")));
    assert_eq!(absent.may_replace(None), Some(Condition::Absent));
    assert_eq!(absent.may_replace(Some(&old)), Some(Condition::Matches(tag("old"))));
    assert_eq!(absent.may_replace(Some(&untagged)), None);
    assert_eq!(moved(Condition::Absent, None).may_replace(Some(&untagged)), None);
    let matches = moved(Condition::Matches(tag("old")), None);
    assert_eq!(matches.may_replace(Some(&old)), Some(Condition::Matches(tag("old"))));
    assert_eq!(matches.may_replace(Some(&untagged)), None);
    assert_eq!(moved(Condition::Always, None).may_replace(Some(&old)), None);
}
