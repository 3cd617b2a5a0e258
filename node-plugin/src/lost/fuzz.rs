use std::fs;

use weir_fuzz::near;

use super::*;

const RECORD: &str = concat!(
    r#"{"version":1,"bucket":"http://s3.example\u001fassets","key":"dir/k","cause":"no space","#,
    r#""size":5,"time_ms":1770000000000}"#
);
const HOSTILE: &str = concat!(
    r#"{"version":1,"bucket":"\u001fb\nX","key":"k\u001b[2J","cause":"c\r","#,
    r#""size":18446744073709551615,"time_ms":9223372036854775807}"#
);

#[test]
fn what_is_lost_is_a_line_each_whatever_its_record_says() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("lost");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("000000000000001f"), "bytes").unwrap();
    near(&[RECORD, HOSTILE], |text| {
        fs::write(folder.join("000000000000001f.json"), text).unwrap();
        let files = folder::list(dir.path()).unwrap();
        assert_eq!((files.len(), files[0].size), (1, 5));
        let table = table(&files);
        assert_eq!(table.lines().count(), 2, "{table:?}");
        assert!(!table.chars().any(|c| c.is_control() && c != '\n'), "{table:?}");
    });
}
