//! Records as a process, a disk without room or a crash of the machine can leave them.

use weir_fuzz::{inputs, near};

use super::*;
use crate::blocking::MAY;

const CORPUS: &[u8] = include_bytes!("../../../../tests/corpus/draft-record");

#[test]
fn what_is_noted_on_a_leftover_is_known_to_the_next_process_however_it_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    let staging = dir.path().join("1f");
    let newer = |text: &[u8]| {
        let lines = text.split(|byte| *byte == b'\n');
        let lines = lines.map_while(|line| serde_json::from_slice::<Line>(line).ok());
        lines.filter_map(|line| line.version).any(|version| version > VERSION)
    };
    near(&inputs(CORPUS), |text| {
        fs::write(path_of(&staging), text).unwrap();
        let found = Leftover::read(MAY, staging.clone());
        if found.owner.is_none() || newer(text) {
            return;
        }
        if let Some(fh) = found.handles.first() {
            found.note_closed(MAY, *fh);
            let again = Leftover::read(MAY, staging.clone());
            let left = found.handles.iter().filter(|handle| *handle != fh).copied();
            assert_eq!(again, Leftover { handles: left.collect(), ..found.clone() });
        }
        let found = Leftover::read(MAY, staging.clone());
        if found.keep_record(MAY) {
            let again = Leftover::read(MAY, staging.clone());
            assert_eq!(again, Leftover { kept: found.kept + 1, upload: None, ..found });
        } else {
            assert!(found.kept >= KEPT_MAX);
        }
    });
}

#[test]
fn a_line_of_a_record_is_read_as_it_would_be_written() {
    near(&inputs(CORPUS), |text| {
        for line in text.split(|byte| *byte == b'\n') {
            let Ok(line) = serde_json::from_slice::<Line>(line) else { continue };
            let written = serde_json::to_string(&line).unwrap();
            let again: Line = serde_json::from_str(&written).unwrap();
            assert_eq!(serde_json::to_string(&again).unwrap(), written);
        }
    });
}
