use std::sync::Arc;

use weir_fuzz::near;

use super::*;
use crate::metrics::Metrics;
use crate::model::key::check_name;

fn row(names: &[&str], size: u64) -> Vec<u8> {
    let file = FileEntry { size, etag: Some("\"e\"".into()), mtime_ms: 1_770_000_000_000 };
    let mut entries: Vec<ListingEntry> = names
        .iter()
        .map(|name| ListingEntry { name: (*name).into(), file: Some(file.clone()) })
        .collect();
    entries.extend(entries.first().cloned().map(|first| ListingEntry { file: None, ..first }));
    let fetched_ms = to_ms(SystemTime::now());
    postcard::to_stdvec(&ListingRow { fetched_ms, pages: 1, marker: false, entries }).unwrap()
}

/// A row is of a disk, which may have been another machine's.
#[test]
fn what_a_kept_listing_shows_are_names_of_files_that_there_can_be() {
    near(&[row(&["a", "file.txt"], 5), row(&[], 0), row(&["..", "a/b", ""], u64::MAX)], |bytes| {
        let Ok(row) = postcard::from_bytes::<ListingRow>(bytes) else { return };
        let (listing, _) = Listing::from_row(row);
        for (name, info) in &listing.entries {
            check_name(name).unwrap();
            assert!(info.as_ref().is_none_or(|info| info.size <= OBJECT_MAX));
        }
        let (again, _) = Listing::from_row(listing.to_row(SystemTime::now()));
        assert_eq!(again.fingerprint(), listing.fingerprint());
    });
}

/// Lines of names, the first of them the prefix; what ends in a bar is a group.
#[test]
fn what_a_listing_shows_are_names_whatever_its_keys_are() {
    let hidden = HiddenKeys::new(Arc::new(Metrics::new().unwrap()));
    near(&["\na\nb/|\nb", "d/\nd/\nd/x\nd/y/|\nd//|", "d/\n../x\nd/..|\nd/\0"], |text| {
        let text = String::from_utf8_lossy(text);
        let mut lines = text.lines();
        let Ok(prefix) = DirPrefix::parse(lines.next().unwrap_or_default()) else { return };
        let mut page = ListPage::default();
        for line in lines {
            let info = ObjectInfo {
                size: if line.len() % 7 == 6 { u64::MAX } else { line.len() as u64 },
                etag: ETag::new(line),
                mtime: SystemTime::UNIX_EPOCH,
                version_id: None,
                writer: None,
            };
            match line.strip_suffix('|') {
                Some(group) => page.prefixes.push(group.to_owned()),
                None => page.objects.push((line.to_owned(), info)),
            }
        }
        let keys = page.objects.len() + page.prefixes.len();
        let mut listing = Listing::default();
        listing.add(&prefix, page, &hidden);
        assert!(listing.entries.len() <= keys);
        for (name, info) in &listing.entries {
            check_name(name).unwrap();
            assert!(info.as_ref().is_none_or(|info| info.size <= OBJECT_MAX));
        }
        let (kept, _) = Listing::from_row(listing.to_row(SystemTime::now()));
        assert_eq!(kept.entries, listing.entries);
    });
}
