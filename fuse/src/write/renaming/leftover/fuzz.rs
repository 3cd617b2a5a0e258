//! Records as a process, a disk without room or a crash of the machine can leave them.

use weir_fuzz::{inputs, near};

use super::*;
use crate::blocking::MAY;

const CORPUS: &[u8] = include_bytes!("../../../../tests/corpus/rename-record");

#[test]
fn a_rename_that_was_left_is_read_however_its_record_was_cut_and_counts_who_tries_to_end_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1f.rename");
    near(&inputs(CORPUS), |text| {
        fs::write(&path, text).unwrap();
        let Some(found) = RenameLeftover::read(MAY, path.clone()) else { return };
        let said = String::from_utf8_lossy(text);
        assert!(found.objects.len() <= said.lines().count());
        for moved in &found.objects {
            let info = ObjectInfo {
                size: moved.version.size,
                etag: Some(moved.version.etag.clone()),
                mtime: SystemTime::now(),
                version_id: None,
                writer: None,
            };
            assert!(moved.is_source(&info));
            // What nobody knows the state of is not replaced, and nothing is taken for a copy that
            // was neither announced nor there after the rename began.
            assert!(moved.over != Condition::Always || moved.may_replace(None).is_none());
            let before = ObjectInfo { mtime: UNIX_EPOCH, ..info.clone() };
            if moved.copied.is_none() && found.began > UNIX_EPOCH + CLOCKS {
                assert!(!moved.is_copy(&before, &info, found.began));
            }
        }
        let tries = found.tries;
        found.note_try(MAY);
        let again = RenameLeftover::read(MAY, path.clone()).unwrap();
        assert_eq!((again.tries, again.forward), (tries + 1, found.forward));
        assert_eq!(again.objects.len(), found.objects.len());
    });
}
