//! Rows of an index that a disk, or somebody who could write to it, has damaged.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use weir_fuzz::{near, near_texts};

use super::lost::LostRow;
use super::records::{
    FileEntry, ListingEntry, ListingRow, ObjectRow, UploadRow, decode_segment, encode_segment,
};
use crate::model::blocks::{self, BlockMap, OBJECT_MAX, SEGMENT};

fn rewritten<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let row: T = postcard::from_bytes(bytes).ok()?;
    let again = postcard::to_stdvec(&row).unwrap();
    assert_eq!(postcard::from_bytes::<T>(&again).as_ref(), Ok(&row));
    // Not more than came: what is announced takes no memory before it is there.
    assert!(again.len() <= bytes.len());
    Some(row)
}

#[test]
fn a_row_of_the_index_is_read_as_it_would_be_written_or_not_at_all() {
    let object = ObjectRow {
        bucket: "http://s3\u{1f}b".into(),
        key: "dir/k".into(),
        etag: "\"e\"".into(),
        size: 1 << 40,
        held: 300,
        last_used: 1_770_000_000,
        verified_epoch: 3,
    };
    let file = FileEntry { size: 5, etag: Some("\"e\"".into()), mtime_ms: 1_770_000_000_000 };
    let entries = [("a", Some(file)), ("b", None)];
    let entries = entries.map(|(name, file)| ListingEntry { name: name.into(), file });
    let (pages, marker) = (2, true);
    let listing = ListingRow { fetched_ms: 7, pages, marker, entries: entries.into() };
    let upload = UploadRow { bucket: "http://s3\u{1f}b".into(), key: "k".into() };
    let real = [
        postcard::to_stdvec(&object).unwrap(),
        postcard::to_stdvec(&listing).unwrap(),
        postcard::to_stdvec(&upload).unwrap(),
    ];
    near(&real, |bytes| {
        rewritten::<ListingRow>(bytes);
        rewritten::<UploadRow>(bytes);
        let row = rewritten::<ObjectRow>(bytes);
        if let Some(key) = row.as_ref().and_then(ObjectRow::version_key) {
            let row = row.unwrap();
            assert_eq!((&*key.key, key.version.size), (&*row.key, row.size));
            // Whatever the size, the map of what is held takes no memory for it.
            assert_eq!(BlockMap::empty(blocks::count(row.size)).held(), 0);
        }
    });
}

#[test]
fn a_segment_of_checksums_is_read_whole_or_not_at_all() {
    let blocks = blocks::count(OBJECT_MAX);
    let segment = |held: &[u32]| {
        let mut map = BlockMap::empty(blocks);
        held.iter().for_each(|block| map.insert(*block, !block));
        encode_segment(&map, 0)
    };
    let all: Vec<u32> = (0..SEGMENT).collect();
    near(&[segment(&[]), segment(&[0, 9, 511]), segment(&all)], |row| {
        for number in [0, blocks / SEGMENT, u32::MAX / SEGMENT, u32::MAX] {
            let mut map = BlockMap::empty(blocks);
            let is_whole = decode_segment(&mut map, number, row);
            let held = map.held_blocks().count();
            assert_eq!(held, map.held() as usize);
            match number {
                0 if is_whole => assert_eq!(encode_segment(&map, 0), row),
                _ => assert!(is_whole || held == 0),
            }
            assert!(map.missing(0..blocks).len() <= held + 1);
        }
    });
}

#[test]
fn what_is_said_of_lost_bytes_is_read_as_it_was_written_or_not_at_all() {
    let real = concat!(
        r#"{"version":1,"bucket":"http://s3\u001fb","key":"dir/k","cause":"no space","size":5,"#,
        r#""time_ms":1770000000000}"#
    );
    near_texts(&[real], |text| {
        let Ok(row) = serde_json::from_str::<LostRow>(text) else { return };
        let again = serde_json::to_string(&row).unwrap();
        assert_eq!(serde_json::from_str::<LostRow>(&again).unwrap(), row);
    });
}
